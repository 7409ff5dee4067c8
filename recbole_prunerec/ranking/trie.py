"""The prefix tree of all answers, as flat tensors.

Nodes are numbered level by level and, inside a level, by parent and token; the root is node 0. The children of node `n` are the nodes
`first[n]` to `first[n + 1] - 1`, in the order of their tokens (compressed sparse rows), so that a search walks the tree with index arithmetic only.
Titles sorted by their token ids have the answers below a node side by side: sorted positions `low[n]` to `high[n] - 1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from recbole_prunerec.errors import UserError
from recbole_prunerec.storage import write_bytes

FILE = "trie.safetensors"
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Trie:
    """A prefix tree whose leaves are answers; all tensors are int32 and on one device."""

    first: Tensor  # (node + 1,) each node's first child
    tokens: Tensor  # (node,) the token that leads to each node; -1 at the root
    low: Tensor  # (node,) where the answers below each node begin, among the sorted ones
    high: Tensor  # (node,) and where they end
    order: Tensor  # (answer,) index of each sorted answer among those that were given
    lengths: Tensor  # (answer,) tokens of each sorted answer
    levels: Tensor  # (depth + 2,) each level's first node, then the number of nodes

    @property
    def depth(self) -> int:
        """Tokens of the longest answer."""
        return len(self.levels) - 2

    @property
    def nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.tokens)

    @property
    def count(self) -> int:
        """Number of answers."""
        return len(self.order)

    def to(self, device: torch.device | str) -> Trie:
        """The same tree on `device`."""
        return Trie(*(getattr(self, field.name).to(device) for field in fields(self)))

    def children(self, node: int) -> tuple[Tensor, Tensor]:
        """Tokens that may follow at `node`, ascending, and the nodes that they lead to. Both (child,)."""
        start, end = self.first[node : node + 2].tolist()
        return self.tokens[start:end], torch.arange(start, end)

    def parents(self) -> Tensor:
        """Each node's parent; the root's is itself. Shape (node,), int64."""
        degree = self.first.diff()
        above = torch.repeat_interleave(torch.arange(self.nodes, device=degree.device), degree, output_size=self.nodes - 1)
        return torch.cat([above.new_zeros(1), above])

    def sums(self, probabilities: np.ndarray, least: float = 0.0) -> Tensor:
        """Of `probabilities` (row, answer), each at `least`, those of all answers before each sorted one. Shape (row, answer + 1), float64.

        What is below a node has `sums[:, high] - sums[:, low]`. On the CPU.
        """
        in_order = probabilities[:, self.order.cpu().numpy()].astype(np.float64, copy=False)
        return torch.nn.functional.pad(torch.from_numpy(in_order).clamp_(min=least).cumsum_(1), (1, 0))

    @classmethod
    def build(cls, answers: Sequence[np.ndarray | list[int]]) -> Trie:
        """The tree of `answers`, each a sequence of token ids below 2 ** 31.

        Raises `UserError`, with the indices of the offending answers, if there are none, or if one is empty, repeated, or a prefix of another.
        """
        if not len(answers):
            raise UserError("there are no answers to build a prefix tree of; give at least one title")
        lengths = np.fromiter(map(len, answers), dtype=np.int64, count=len(answers))
        flat = np.concatenate([np.asarray(answer, dtype=np.int32) for answer in answers])
        starts = np.cumsum(lengths) - lengths
        base = np.int64(flat.max(initial=0)) + 1
        order, node, nodes = np.arange(len(answers)), np.zeros(len(answers), dtype=np.int64), 1  # answers by what was read so far, and where each is
        root = np.zeros(1, dtype=np.int32)
        tokens, low, high, degree, leader, levels = [root - 1], [root], [root + len(answers)], [], [root], [0, 1]
        for level in range(lengths.max()):
            places = np.flatnonzero(lengths[order] > level)
            going = order[places]
            keys = node[going] * base + flat[starts[going] + level]
            by_key = np.argsort(keys, kind="stable")
            keys, going = keys[by_key], going[by_key]
            order[places] = going
            begins = np.flatnonzero(np.diff(keys, prepend=-1))
            node[going] = np.repeat(np.arange(nodes, nodes + len(begins)), np.diff(begins, append=len(keys)))
            heads, ends = places[begins], places[np.append(begins[1:], len(keys)) - 1] + 1
            degree.append(np.bincount(keys[begins] // base - levels[-2], minlength=nodes - levels[-2]))
            for part, values in zip((tokens, low, high, leader), (keys[begins] % base, heads, ends, going[begins]), strict=True):
                part.append(values.astype(np.int32))
            nodes += len(begins)
            levels.append(nodes)
        degree.append(np.zeros(nodes - levels[-2], dtype=np.int64))
        first = 1 + np.concatenate([[0], np.cumsum(np.concatenate(degree))])
        _check(lengths, node, first, np.concatenate(leader))
        return cls(*(torch.from_numpy(np.asarray(part, dtype=np.int32)) for part in (
            first, np.concatenate(tokens), np.concatenate(low), np.concatenate(high), order, lengths[order], levels,
        )))  # fmt: skip

    def save(self, path: Path, made_of: Mapping[str, str]) -> None:
        """Write the tree to `path`, atomically; `made_of` says what it was made of, and comes back from `load`."""
        write_bytes(path, save({field.name: getattr(self, field.name).contiguous() for field in fields(self)}, dict(made_of)))

    @classmethod
    def load(cls, path: Path) -> tuple[Trie, dict[str, str]]:
        """The tree in `path`, mapped into memory and read where it is used, and what it was made of. Raises `UserError` where it is damaged."""
        try:
            with safe_open(path, "pt") as file:
                return cls(*(file.get_tensor(field.name) for field in fields(cls))), file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or no prefix tree: {error}; remove it, and it is made again") from error


def _check(lengths: np.ndarray, node: np.ndarray, first: np.ndarray, leader: np.ndarray) -> None:
    """Refuse answers that end at the root, where another ends, or at an inner node. `leader` (node,) is the first answer through each node."""
    empty = np.flatnonzero(lengths == 0)
    _, ends, group = np.unique(node, return_index=True, return_inverse=True)
    original = ends[group]
    repeated = np.flatnonzero((original != np.arange(len(node))) & (lengths > 0))
    prefix = np.flatnonzero((first[node + 1] > first[node]) & (lengths > 0))
    problems = [
        _listed("empty", map(str, empty), len(empty)),
        _listed("repeated", (f"{index} equals {original[index]}" for index in repeated), len(repeated)),
        _listed("a prefix of another", (f"{index} of {leader[first[node[index]]]}" for index in prefix), len(prefix)),
    ]
    if found := "; ".join(filter(None, problems)):
        raise UserError(
            f"answers must be distinct and end where no other goes on, got {found} (indices from 0); merge equal titles, end each with a terminator"
        )


def _listed(what: str, items: Iterable[str], count: int) -> str:
    shown = [item for item, _ in zip(items, range(_SHOWN), strict=False)]
    return f"{count} {what}: {', '.join(shown)}{', ...' if count > _SHOWN else ''}" if count else ""
