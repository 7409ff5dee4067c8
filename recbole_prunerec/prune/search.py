"""Which shapes meet a budget of parameters, the best first. Integers and their shares only: no weights, no torch.

A shape is heads with their key/value heads, hidden size, MLP width and layers; heads keep their width. Candidates are all shapes that a stock class
loads, each with the widest MLP that the budget allows. docs/planning.md says in words how they are ordered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.budget import HIDDEN_DIVIDES
from recbole_prunerec.prune.shapes import KvPolicy, kv_heads_after
from recbole_prunerec.settings import Depth, Mlp, Pruning, Width

if TYPE_CHECKING:
    from recbole_prunerec.backbone.family import Sizes

Count = Literal["total", "non_embedding"]  # all parameters, or those that are no embedding

APART = 1.25  # shapes are unlike where one of their sizes differs by this factor or more
CUT = ("heads", "hidden", "intermediate", "layers")  # what steps make smaller
DIGITS = 9  # of a distance: shapes that differ in rounding alone are equally far


@dataclass(frozen=True)
class Candidate:
    """A shape within the budget, and how far it is from one with the backbone's proportions that uses the budget up."""

    sizes: Sizes
    spread: float  # standard deviation of the logarithms of the kept shares of heads, hidden, intermediate and layers; 0: the backbone's proportions
    distance: float  # spread + |log(budget / parameters)|


@dataclass(frozen=True)
class Space:
    """The shapes that a backbone can be cut to: hidden and intermediate are multiples of `round_to`, or the backbone's own.

    `sizes` are the backbone's, with the tokens that stay.
    """

    sizes: Sizes
    family: str
    policy: KvPolicy
    round_to: int

    def heads(self) -> list[tuple[int, int]]:
        """Query heads, and the key/value heads that the policy gives them."""
        heads, kv_heads, found = self.sizes.heads, self.sizes.kv_heads, []
        for keep in range(1, heads + 1):
            for keep_kv in range(1, kv_heads + 1) if self.policy == "merge" else [None]:
                try:
                    found.append((keep, kv_heads_after(heads, kv_heads, keep, self.policy, keep_kv)))
                except UserError:  # this policy cannot keep so many
                    continue
        return found

    def hidden(self, heads: int) -> list[int]:
        """Hidden sizes that go with so many query heads."""
        divisor = heads if self.family in HIDDEN_DIVIDES else 1
        return [hidden for hidden in self._rounded(self.sizes.hidden) if hidden % divisor == 0]

    def intermediate(self) -> list[int]:
        """MLP widths."""
        return self._rounded(self.sizes.intermediate)

    def _rounded(self, size: int) -> list[int]:
        return sorted({*range(self.round_to, size + 1, self.round_to), size})

    def widths(self) -> Iterator[Sizes]:
        """The backbone's sizes with every choice of heads and hidden size."""
        for heads, kv_heads in self.heads():
            for hidden in self.hidden(heads):
                yield replace(self.sizes, heads=heads, kv_heads=kv_heads, hidden=hidden)

    def within(self, budget: int, count: Count) -> list[Candidate]:
        """The shapes with at most `budget` parameters, each with the widest MLP that fits, the least distant first.

        Of equally distant ones the deeper comes first, then the wider, then that with more heads.
        """
        narrowest, widest = self.intermediate()[0], self.sizes.intermediate
        found = []
        for wide in self.widths():
            # parameters = bare + (layers - 1) * layer + layers * more * intermediate
            bare = parameters(replace(wide, layers=1, intermediate=0), count)
            layer = parameters(replace(wide, layers=2, intermediate=0), count) - bare
            more = parameters(replace(wide, layers=1, intermediate=1), count) - bare
            for layers in range(1, self.sizes.layers + 1):
                room = ((budget - bare + layer) // layers - layer) // more
                intermediate = widest if room >= widest else room // self.round_to * self.round_to
                if intermediate >= narrowest:
                    found.append(self._candidate(replace(wide, layers=layers, intermediate=intermediate), budget, count))
        return sorted(found, key=lambda each: (each.distance, -each.sizes.layers, -each.sizes.hidden, -each.sizes.heads, -each.sizes.kv_heads))

    def smallest(self, budget: int, count: Count) -> Candidate:
        """The shape with the fewest parameters: the nearest to a budget that none meets."""
        narrow = (replace(wide, layers=1, intermediate=self.intermediate()[0]) for wide in self.widths())
        return self._candidate(min(narrow, key=lambda sizes: parameters(sizes, count)), budget, count)

    def _candidate(self, sizes: Sizes, budget: int, count: Count) -> Candidate:
        logs = [math.log(getattr(sizes, name) / getattr(self.sizes, name)) for name in CUT]
        mean = sum(logs) / len(logs)
        spread = math.sqrt(sum((log - mean) ** 2 for log in logs) / len(logs))
        unused = abs(math.log(budget / parameters(sizes, count)))
        return Candidate(sizes, round(spread, DIGITS), round(spread + unused, DIGITS))

    def steps(self, sizes: Sizes) -> list[Pruning]:
        """The steps that lead to a shape of this space; what keeps its size has none."""
        before, steps = self.sizes, list[Pruning]()
        if (sizes.heads, sizes.kv_heads, sizes.hidden) != (before.heads, before.kv_heads, before.hidden):
            shared = {"kv_heads": sizes.kv_heads} if self.policy == "merge" else {}
            width = {"do": "width", "heads": sizes.heads, "hidden": sizes.hidden, "kv_policy": self.policy, **shared}
            steps.append(Width.model_validate(width))
        if sizes.intermediate != before.intermediate:
            steps.append(Mlp(do="mlp", intermediate=sizes.intermediate))
        if sizes.layers != before.layers:
            steps.append(Depth(do="depth", layers=sizes.layers))
        return steps


def parameters(sizes: Sizes, count: Count) -> int:
    """A model's parameters, by what is counted."""
    return sizes.total_parameters if count == "total" else sizes.non_embedding_parameters


def unlike(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """The first `most` candidates that are unlike all before them."""
    chosen: list[Candidate] = []
    for candidate in candidates:
        if len(chosen) == most:
            break
        if all(any(_apart(getattr(candidate.sizes, name), getattr(other.sizes, name)) for name in CUT) for other in chosen):
            chosen.append(candidate)
    return chosen


def _apart(one: int, other: int) -> bool:
    return max(one, other) >= APART * min(one, other)
