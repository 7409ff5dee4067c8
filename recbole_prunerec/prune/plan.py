"""The decision as data: a `Plan` says what is kept, and the choosing functions make it from scores. Nothing here touches a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from recbole_prunerec.backbone.family import Left, Sizes
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.shapes import KvPolicy, kv_heads_after


class WeightFile(BaseModel):
    """A safetensors file beside a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str


class Plan(BaseModel):
    """What one step keeps of a model. Indices are those of the model before the cut, one list for each of its layers; None means all.

    Raises `UserError` where the parts contradict each other or the sizes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["vocabulary", "width", "mlp", "depth"]
    criterion: str
    sizes_before: Sizes
    sizes_after: Sizes
    query_heads: list[list[int]] | None = None  # in the order that they have in the cut model
    kv_heads: list[list[int]] | None = None  # the source of each key/value head; repeats are copies
    hidden: list[int] | None = None
    intermediate: list[list[int]] | None = None
    layers: list[int] | None = None
    halves: list[Left] | None = None  # what is left of each layer that stays; the weights of the other half become zero
    tokens: list[int] | None = None  # in the order that they have in the cut model
    norm_scales: dict[str, float] | None = None  # factors on the weights of norms, by module name
    update: WeightFile | None = None  # new weights, of the sizes before the cut and by the names there
    filled: list[Literal["hidden"]] | None = None  # parts that the criterion does not score, chosen by PruneRec's own score

    @classmethod
    def of(
        cls,
        step: Literal["vocabulary", "width", "mlp", "depth"],
        criterion: str,
        sizes: Sizes,
        heads: tuple[list[list[int]], list[list[int]]] | None = None,
        hidden: list[int] | None = None,
        intermediate: list[list[int]] | None = None,
        layers: list[int] | None = None,
        tokens: list[int] | None = None,
        norm_scales: dict[str, float] | None = None,
        halves: list[Left] | None = None,
        filled: list[Literal["hidden"]] | None = None,
    ) -> Plan:
        """A plan for a model of `sizes`; `heads` is what `choose_heads` returns. The sizes after the cut follow."""
        query_heads, kv_heads = heads or (None, None)
        after = _sizes_after(sizes, query_heads, kv_heads, hidden, intermediate, layers, halves, tokens)
        return cls(
            step=step,
            criterion=criterion,
            sizes_before=sizes,
            sizes_after=after,
            query_heads=query_heads,
            kv_heads=kv_heads,
            hidden=hidden,
            intermediate=intermediate,
            layers=layers,
            halves=halves,
            tokens=tokens,
            norm_scales=norm_scales,
            filled=filled,
        )

    @property
    def note(self) -> str | None:
        """What a reader of this step's figures must know."""
        notes = [f"hidden dimensions by prunerec, which {self.criterion} does not score"] if self.filled else []
        zero = [half for half in ("attention", "mlp") for left in self.sizes_after.halves_by_layer if left not in ("both", half)]
        if zero:
            notes.append(f"parameters without zeroed halves of layers: {zero.count('attention')} attention, {zero.count('mlp')} MLP")
        return "; ".join(notes) or None

    @model_validator(mode="after")
    def _check(self) -> Plan:
        before = self.sizes_before
        if (self.query_heads is None) != (self.kv_heads is None):
            raise UserError("a plan needs query_heads and kv_heads together")
        parts: list[tuple[str, list[list[int]] | None, int, int]] = [
            ("query_heads", self.query_heads, before.layers, before.heads),
            ("kv_heads", self.kv_heads, before.layers, before.kv_heads),
            ("intermediate", self.intermediate, before.layers, before.intermediate),
            ("hidden", None if self.hidden is None else [self.hidden], 1, before.hidden),
            ("layers", None if self.layers is None else [self.layers], 1, before.layers),
            ("tokens", None if self.tokens is None else [self.tokens], 1, before.vocab),
        ]
        for name, lists, count, size in parts:
            if lists is not None:
                _check_lists(name, lists, count, size, copies=name == "kv_heads")
        if self.halves is not None and len(self.halves) != len(before.halves_by_layer if self.layers is None else self.layers):
            raise UserError(f"a plan's halves must be one for each layer that stays; got {len(self.halves)}")
        expected = _sizes_after(before, self.query_heads, self.kv_heads, self.hidden, self.intermediate, self.layers, self.halves, self.tokens)
        if self.sizes_after != expected:
            raise UserError(f"a plan's sizes_after is {self.sizes_after}, but what it keeps gives {expected}")
        if expected.heads % expected.kv_heads:
            raise UserError(f"a plan keeps {expected.heads} query heads on {expected.kv_heads} key/value heads, which do not divide them")
        return self


def _check_lists(name: str, lists: list[list[int]], count: int, size: int, copies: bool) -> None:
    if len(lists) != count or len({len(indices) for indices in lists}) != 1 or not lists[0]:
        raise UserError(f"a plan's {name} must be {count} lists of one length, at least 1; got lengths {[len(indices) for indices in lists]}")
    for indices in lists:
        if not set(indices) <= set(range(size)) or (len(set(indices)) < len(indices) and not copies):
            raise UserError(f"a plan's {name} must be different indices from 0 to {size - 1}; got {indices}")


def _sizes_after(
    before: Sizes,
    query_heads: list[list[int]] | None,
    kv_heads: list[list[int]] | None,
    hidden: list[int] | None,
    intermediate: list[list[int]] | None,
    layers: list[int] | None,
    halves: Sequence[Left] | None,
    tokens: list[int] | None,
) -> Sizes:
    if halves is None:
        halves = before.halves if layers is None or not before.halves else [before.halves[layer] for layer in layers if layer < before.layers]
    return replace(
        before,
        heads=before.heads if query_heads is None else len(query_heads[0]),
        kv_heads=before.kv_heads if kv_heads is None else len(kv_heads[0]),
        hidden=before.hidden if hidden is None else len(hidden),
        intermediate=before.intermediate if intermediate is None else len(intermediate[0]),
        layers=before.layers if layers is None else len(layers),
        halves=() if set(halves) <= {"both"} else tuple(halves),
        vocab=before.vocab if tokens is None else len(tokens),
    )


def _top(scores: Sequence[float], keep: int, ties: Sequence[float] | None = None) -> list[int]:
    """The `keep` best indices, best first; equal scores go by `ties`, then to the lower index."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], -ties[index] if ties else 0.0, index))
    return order[:keep]


def choose_heads(scores: Tensor, kv_heads: int, keep: int, policy: KvPolicy, keep_kv: int | None = None) -> tuple[list[list[int]], list[list[int]]]:
    """The query heads of each layer in their new order, and the source of each key/value head, by `policy` (METHOD 2). `scores` is (layer, head).

    In the cut model query head j reads key/value head j // (heads / kv_heads), as the stock attention has it. Raises `UserError` like
    `kv_heads_after`.
    """
    after = kv_heads_after(scores.shape[1], kv_heads, keep, policy, keep_kv)
    layers = [_POLICIES[policy](layer, scores.shape[1] // kv_heads, keep, after) for layer in scores.tolist()]
    return [query for query, _ in layers], [kv for _, kv in layers]


def _expand(scores: list[float], size: int, keep: int, after: int) -> tuple[list[int], list[int]]:
    query = sorted(_top(scores, keep))
    return query, [head // size for head in query]


def _group(scores: list[float], size: int, keep: int, after: int) -> tuple[list[int], list[int]]:
    kv = sorted(_top([sum(scores[start : start + size]) for start in range(0, len(scores), size)], after))
    return [group * size + place for group in kv for place in range(size)], kv


def _balanced(scores: list[float], size: int, keep: int, after: int) -> tuple[list[int], list[int]]:
    query = [start + place for start in range(0, len(scores), size) for place in sorted(_top(scores[start : start + size], keep // after))]
    return query, list(range(after))


def _merge(scores: list[float], size: int, keep: int, after: int) -> tuple[list[int], list[int]]:
    best_first = _top(scores, keep)
    sums = [sum(scores[head] for head in best_first if head // size == group) for group in range(len(scores) // size)]
    kv = sorted(_top(sums, after))
    places: dict[int, list[int]] = {group: [] for group in kv}
    for head in best_first:
        own = head // size
        with_room = [group for group in kv if len(places[group]) < keep // after]
        places[own if own in with_room else with_room[0]].append(head)
    return [head for group in kv for head in sorted(places[group])], kv


_POLICIES = {"expand": _expand, "group": _group, "balanced": _balanced, "merge": _merge}


def choose_hidden(scores: Tensor, keep: int) -> list[int]:
    """The `keep` best hidden dimensions, sorted. `scores` is (hidden,)."""
    _check_count("hidden", keep, len(scores))
    return sorted(_top(scores.tolist(), keep))


def choose_intermediate(scores: Tensor, keep: int, ties: Tensor | None = None) -> list[list[int]]:
    """The `keep` best MLP dimensions of each layer, sorted. `scores`, and `ties` for equal ones, are (layer, intermediate)."""
    _check_count("intermediate", keep, scores.shape[1])
    tie_rows = [None] * len(scores) if ties is None else ties.tolist()
    return [sorted(_top(layer, keep, tie)) for layer, tie in zip(scores.tolist(), tie_rows, strict=True)]


def choose_layers(scores: Tensor, keep: int) -> list[int]:
    """The `keep` best layers, in order. `scores` is (layer,)."""
    _check_count("layers", keep, len(scores))
    return sorted(_top(scores.tolist(), keep))


def choose_halves(stays: Tensor) -> tuple[list[int], list[Left]]:
    """The layers of which something stays, in order, and what that is. `stays` (layer, 2) is 1 for the attention and the MLP that stay."""
    kept = [(layer, _LEFT[attention > 0, mlp > 0]) for layer, (attention, mlp) in enumerate(stays.tolist()) if attention or mlp]
    return [layer for layer, _ in kept], [left for _, left in kept]


_LEFT: dict[tuple[bool, bool], Left] = {(True, True): "both", (True, False): "attention", (False, True): "mlp"}


def _check_count(name: str, keep: int, size: int) -> None:
    if not 1 <= keep <= size:
        raise UserError(f"{name}={keep} is not between 1 and {size}, the size in the model")
