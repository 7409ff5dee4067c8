"""The prefix tree of all answers, as flat tensors.

Nodes are numbered level by level and, inside a level, by parent and token; the root is node 0. The edges of node `n` are
`offsets[n]:offsets[n + 1]`, sorted by token (compressed sparse rows), so that a search walks the tree with index arithmetic only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_prunerec.errors import UserError

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Trie:
    """A prefix tree whose leaves are answers; all tensors are int64 and on one device."""

    offsets: Tensor  # (node + 1,) where each node's edges begin
    tokens: Tensor  # (edge,)
    children: Tensor  # (edge,) the node that each edge leads to
    titles: Tensor  # (node,) index of the answer that ends here, -1 at inner nodes
    depth: int  # tokens in the longest answer

    def to(self, device: torch.device | str) -> Trie:
        """The same tree on `device`."""
        return Trie(self.offsets.to(device), self.tokens.to(device), self.children.to(device), self.titles.to(device), self.depth)

    @classmethod
    def build(cls, answers: Sequence[np.ndarray | list[int]]) -> Trie:
        """The tree of `answers`, each a sequence of token ids.

        Raises `UserError`, with the indices of the offending answers, if there are none, or if one is empty, repeated, or a prefix of another.
        """
        if not len(answers):
            raise UserError("there are no answers to build a prefix tree of; give at least one title")
        lengths = np.array([len(answer) for answer in answers])
        flat = np.concatenate([np.asarray(answer, dtype=np.int64) for answer in answers])
        starts = np.cumsum(lengths) - lengths
        base = flat.max(initial=0) + 1
        node = np.zeros(len(answers), dtype=np.int64)  # where each answer stands; after the loop, where it ends
        parents, tokens, first = [], [], [np.zeros(1, dtype=np.int64)]
        nodes = 1
        for level in range(lengths.max()):
            going = np.flatnonzero(lengths > level)
            keys, index, inverse = np.unique(node[going] * base + flat[starts[going] + level], return_index=True, return_inverse=True)
            node[going] = nodes + inverse
            nodes += len(keys)
            parents.append(keys // base)
            tokens.append(keys % base)
            first.append(going[index])
        degree = np.bincount(np.concatenate(parents), minlength=nodes) if parents else np.zeros(1, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(degree)])
        _check(lengths, node, offsets, np.concatenate(first))
        titles = np.full(nodes, -1)
        titles[node] = np.arange(len(answers))
        edges = np.arange(1, nodes)  # in this numbering edge e leads to node e + 1
        tensor = torch.from_numpy
        return cls(tensor(offsets), tensor(np.concatenate(tokens)), tensor(edges), tensor(titles), int(lengths.max()))


def _check(lengths: np.ndarray, node: np.ndarray, offsets: np.ndarray, first: np.ndarray) -> None:
    """Refuse answers that end at the root, where another ends, or at an inner node. `first` (node,) is the first answer through each node."""
    empty = np.flatnonzero(lengths == 0)
    _, ends, group = np.unique(node, return_index=True, return_inverse=True)
    original = ends[group]
    repeated = np.flatnonzero((original != np.arange(len(node))) & (lengths > 0))
    prefix = np.flatnonzero((offsets[node + 1] > offsets[node]) & (lengths > 0))
    problems = [
        _listed("empty", map(str, empty), len(empty)),
        _listed("repeated", (f"{index} equals {original[index]}" for index in repeated), len(repeated)),
        _listed("a prefix of another", (f"{index} of {first[offsets[node[index]] + 1]}" for index in prefix), len(prefix)),
    ]
    if found := "; ".join(filter(None, problems)):
        raise UserError(
            f"answers must be distinct and end where no other goes on, got {found} (indices from 0); merge equal titles, end each with a terminator"
        )


def _listed(what: str, items: Iterable[str], count: int) -> str:
    shown = [item for item, _ in zip(items, range(_SHOWN), strict=False)]
    return f"{count} {what}: {', '.join(shown)}{', ...' if count > _SHOWN else ''}" if count else ""
