"""How many key/value heads remain under each policy. Integers only, so that settings are checked before torch is loaded."""

from __future__ import annotations

from typing import Literal

from recbole_prunerec.errors import UserError

KvPolicy = Literal["expand", "group", "balanced", "merge"]


def kv_heads_after(heads: int, kv_heads: int, keep: int, policy: KvPolicy, keep_kv: int | None = None) -> int:
    """The number of key/value heads once `keep` of `heads` query heads stay (METHOD 2).

    `expand` gives one to each kept head, `group` those of the whole groups kept, `balanced` all of them, `merge` the `keep_kv` asked for. Raises
    `UserError`, whose text starts with the setting's name, where the policy cannot do it.
    """
    if not 1 <= keep <= heads:
        raise UserError(f"heads={keep} is not between 1 and {heads}, the heads of the model")
    if policy == "merge":
        fitting = [count for count in range(1, kv_heads + 1) if keep % count == 0]
        if keep_kv not in fitting:
            got = "kv_heads is missing" if keep_kv is None else f"kv_heads={keep_kv} does not fit"
            raise UserError(f"{got}: kv_policy=merge shares kv_heads evenly among heads={keep}; choose kv_heads={_either(fitting)}")
        return keep_kv
    size = heads // kv_heads
    if policy == "group" and keep % size:
        options = _either(_neighbours(keep, size, heads))
        raise UserError(f"heads={keep} is not a multiple of {size}, the heads that share one key/value head; choose {options}, or kv_policy=expand")
    if policy == "balanced" and keep % kv_heads:
        raise UserError(
            f"heads={keep} is not a multiple of kv_heads={kv_heads}; choose {_either(_neighbours(keep, kv_heads, heads))}, or kv_policy=expand"
        )
    after = {"expand": keep, "group": keep // size, "balanced": kv_heads}[policy]
    if keep_kv not in (None, after):
        raise UserError(f"kv_heads={keep_kv} contradicts kv_policy={policy}, which gives kv_heads={after}; leave it out, or choose kv_policy=merge")
    return after


def _neighbours(value: int, unit: int, most: int) -> list[int]:
    """The multiples of `unit` next to `value`, from `unit` to `most`."""
    below = value // unit * unit
    return [multiple for multiple in (below, below + unit) if unit <= multiple <= most]


def _either(options: list[int]) -> str:
    return " or ".join(map(str, options))
