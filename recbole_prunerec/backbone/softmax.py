"""What a next token's probability is normalised over, and logits no wider than that (METHOD 1 and 7).

The `vocabulary` softmax runs over all tokens. The `catalogue` softmax runs over the tokens that go on with some title: the children of a node of the
prefix tree, so that a title's probability is that of its place among all titles. Positions come in *parts* whose logits have one shape, so that no
more logits exist at once than a part has, and none that a softmax does not read.

Both are over *answer positions*, one before each answer token of `labels` (batch, position), -100 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from recbole_prunerec.ranking.trie import Trie

IGNORE = -100
AT_ONCE = {"cpu": 2**24, "cuda": 2**27}  # logits, or numbers gathered from the output head for them, that exist at once


class Part(NamedTuple):
    """Some of a batch's positions, whose logits are computed at once."""

    places: Tensor  # (position,) which of the positions they are
    tokens: Tensor | None  # None: the whole vocabulary; (token,): the same for all; (position, token): each its own, -1 where it has no more
    targets: Tensor  # (position,) the column of the token that comes next


class Softmax(Protocol):
    """A softmax at the answer positions of a batch."""

    def positions(self, labels: Tensor) -> Tensor:
        """The answer positions where more than one token may come. At the others the next token has probability 1. Shape (batch, position)."""

    def parts(self, labels: Tensor, width: int) -> list[Part]:
        """Those positions, numbered in the order of `labels.flatten()`, as parts. `width` is that of the hidden states."""


def answer_mask(labels: Tensor) -> Tensor:
    """Answer positions of `labels` (batch, position): True one position before each answer token. Shape (batch, position)."""
    return pad(labels[:, 1:] != IGNORE, (0, 1))


class Vocabulary:
    """Over all tokens, which are `size`."""

    def __init__(self, size: int) -> None:
        self._size = size

    def positions(self, labels: Tensor) -> Tensor:
        """All answer positions."""
        return answer_mask(labels)

    def parts(self, labels: Tensor, width: int) -> list[Part]:
        """As many positions at once as memory holds."""
        targets = labels[:, 1:][labels[:, 1:] != IGNORE]
        places = torch.arange(len(targets), device=labels.device)
        return [Part(some, None, targets[some]) for some in places.split(max(1, _at_once(labels) // self._size))]


class Catalogue:
    """Over the tokens that go on with some title of a prefix tree (MSL, arXiv 2504.04178, eq. 6)."""

    def __init__(self, trie: Trie) -> None:
        self._trie = trie

    @cached_property
    def _keys(self) -> Tensor:
        """parent * base + token of every node but the root: ascending, by the order of nodes. Shape (node - 1,)."""
        trie = self._trie
        return trie.parents()[1:] * self._base + trie.tokens[1:]

    @cached_property
    def _base(self) -> int:
        return int(self._trie.tokens.max()) + 1

    def nodes(self, labels: Tensor) -> Tensor:
        """The node at each answer position, whose children may come next; -1 elsewhere. Shape (batch, position).

        An answer begins where a label follows none, or another answer's last. All rows are walked together, token by token.
        """
        answers = pad(labels, (0, 1), value=IGNORE)[:, 1:]
        node = torch.full_like(labels, -1)
        here = (answers != IGNORE) & pad(answers == IGNORE, (1, 0), value=True)[:, :-1]  # the last prompt positions
        row, column = here.nonzero(as_tuple=True)
        at = torch.zeros_like(row)
        while len(row):
            node[row, column] = at
            token = answers[row, column]
            at = 1 + torch.searchsorted(self._keys, at * self._base + token)
            at = torch.where(self._degree[at] > 0, at, 0)  # behind an answer's last token the next begins
            column = column + 1
            going = (column < labels.shape[1]) & (answers[row, column.clamp_max(labels.shape[1] - 1)] != IGNORE)
            row, column, at = row[going], column[going], at[going]
        return node

    def positions(self, labels: Tensor) -> Tensor:
        """Answer positions whose node has more than one child."""
        node = self.nodes(labels)
        return (node >= 0) & (self._degree[node] > 1)

    @cached_property
    def _degree(self) -> Tensor:
        return self._trie.first.diff()

    def parts(self, labels: Tensor, width: int) -> list[Part]:
        """Positions at the root share their tokens; all others have their own, and are put together by powers of two of children."""
        trie, node = self._trie, self.nodes(labels)
        mask = (node >= 0) & (self._degree[node] > 1)
        node, following = node[mask], pad(labels, (0, 1), value=IGNORE)[:, 1:][mask]
        first = trie.first.to(torch.int64)[node]
        degree = self._degree[node].to(torch.int64)
        target = torch.searchsorted(self._keys, node * self._base + following) + 1 - first
        places = torch.arange(len(node), device=labels.device)
        tokens = trie.tokens[1 : int(trie.first[1])].to(torch.int64)
        parts = [Part(some, tokens, target[some]) for some in places[node == 0].split(max(1, _at_once(labels) // len(tokens))) if len(some)]
        size = torch.where(node == 0, 0, 2 ** (degree - 1).float().frexp().exponent.to(torch.int64))  # the power of two that holds them
        for wide in sorted(set(size.tolist()) - {0}):
            columns = torch.arange(wide, device=labels.device)
            for some in places[size == wide].split(max(1, _at_once(labels) // (wide * width))):
                child = first[some, None] + columns
                tokens = torch.where(columns < degree[some, None], trie.tokens[child.clamp_max(trie.nodes - 1)].to(torch.int64), -1)
                parts.append(Part(some, tokens, target[some]))
        return parts

    def shares(self, labels: Tensor, sums: Tensor) -> Callable[[Part], Tensor]:
        """What a distribution over titles says of a part's tokens: log-probabilities up to a constant, -inf where there is none. (position, token).

        `sums` (answer, title + 1), float64, are the cumulative probabilities of the titles in the tree's order, a row for each answer of `labels`.
        """
        trie, node = self._trie, self.nodes(labels)
        mask = (node >= 0) & (self._degree[node] > 1)
        node, number = node[mask], ((node == 0).flatten().cumsum(0).view_as(node) - 1)[mask]
        least = torch.finfo(torch.float32).tiny

        def of(part: Part) -> Tensor:
            tokens: Any = part.tokens
            here, answer = node[part.places], number[part.places, None]
            columns = torch.arange(tokens.shape[-1], device=labels.device)
            child = (trie.first.to(torch.int64)[here, None] + columns).clamp_max(trie.nodes - 1)
            below = sums[answer, trie.high[child].to(torch.int64)] - sums[answer, trie.low[child].to(torch.int64)]
            there = columns < self._degree[here, None]
            return below.clamp_min(least).log().float().masked_fill(~there, -torch.inf)

        return of


def _at_once(labels: Tensor) -> int:
    return AT_ONCE.get(labels.device.type, AT_ONCE["cuda"])


def softmax_of(name: str, trie: Trie, vocab: int, device: torch.device | str = "cpu") -> Softmax:
    """The softmax called `name`, "vocabulary" or "catalogue"."""
    return Vocabulary(vocab) if name == "vocabulary" else Catalogue(trie.to(device))


def part_logits(part: Part, hidden: Tensor, weight: Tensor) -> Tensor:
    """Logits of a part's tokens, -inf where there is none, in float32 or better. Shape (position, token).

    `hidden` (answer, dim) are the final hidden states at all positions of the batch, `weight` (vocab, dim) is the output head's.
    """
    return _logits(part, hidden[part.places], _rows(part, weight, hidden.dtype))


def _rows(part: Part, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of the output head that a part reads: (token, dim), or (position, token, dim) where each position has its own."""
    return (weight if part.tokens is None else weight[part.tokens.clamp_min(0)]).to(dtype)


def _logits(part: Part, hidden: Tensor, rows: Tensor) -> Tensor:
    logits = linear(hidden, rows) if rows.dim() == 2 else torch.bmm(rows, hidden[:, :, None])[..., 0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if part.tokens is None or part.tokens.dim() == 1 else logits.masked_fill(part.tokens < 0, -torch.inf)


class _SummedLoss(torch.autograd.Function):
    """Loss and gradients part by part, so that no more logits are kept for the backward pass than one part has."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, parts: list[Part], loss: Callable[[Part, Tensor], Tensor]) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        low = hidden.to(dtype)
        ctx.gradients = [torch.zeros_like(tensor) if ctx.needs_input_grad[place] else None for place, tensor in enumerate((hidden, weight))]
        whole = weight.to(dtype) if parts and parts[0].tokens is None else weight
        sums: list[Tensor] = []
        with torch.autocast(kind, enabled=False):
            for part in parts:
                states, rows = low[part.places], _rows(part, whole, dtype)
                logits = _logits(part, states, rows)
                if not any(ctx.needs_input_grad):
                    sums.append(loss(part, logits))
                    continue
                with torch.enable_grad():
                    values = loss(part, logits.requires_grad_())
                    step = torch.autograd.grad(values[0], logits)[0].to(dtype)
                sums.append(values.detach())
                _add_gradients(ctx.gradients, part, step, states, rows)
        return torch.stack(sums).sum(0) if sums else loss(*_nothing(hidden))

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, ()  # the graph may live on, with the loss, and must not keep them
        return *(None if gradient is None else gradient.mul_(outer[0]) for gradient in gradients), None, None


def _add_gradients(gradients: list[Tensor | None], part: Part, step: Tensor, states: Tensor, rows: Tensor) -> None:
    """Add what `step`, the gradient of a part's logits, is to the hidden states and the output head. Every position is in one part only."""
    to_hidden, to_weight = gradients
    if rows.dim() == 2:
        if to_hidden is not None:
            to_hidden[part.places] = (step @ rows).to(to_hidden.dtype)
        if to_weight is not None:
            change = (step.T @ states).to(to_weight.dtype)
            to_weight.add_(change) if part.tokens is None else to_weight.index_add_(0, part.tokens, change)
        return
    if to_hidden is not None:
        to_hidden[part.places] = torch.bmm(step[:, None], rows)[:, 0].to(to_hidden.dtype)
    if to_weight is not None:
        change = step[..., None] * states[:, None]
        to_weight.index_add_(0, part.tokens.clamp_min(0).flatten(), change.flatten(0, 1).to(to_weight.dtype))  # type: ignore[union-attr]


def _nothing(hidden: Tensor) -> tuple[Part, Tensor]:
    none = torch.zeros(0, dtype=torch.int64, device=hidden.device)
    return Part(none, none, none), hidden.new_zeros(0, 1)


def summed_loss(hidden: Tensor, weight: Tensor, parts: list[Part], loss: Callable[[Part, Tensor], Tensor]) -> Tensor:
    """The sum over `parts` of `loss(part, logits)`, a vector whose first number alone has a gradient.

    `hidden` (answer, dim) are the final hidden states at the parts' positions, `weight` (vocab, dim) is the output head's. Under autocast the
    products with the head run in its precision. The gradients are those of the plain computation, without its logits being kept.
    """
    if not torch.is_grad_enabled():  # else a parameter would get a gradient that nobody asked for
        hidden, weight = hidden.detach(), weight.detach()
    return _SummedLoss.apply(hidden, weight, parts, loss)
