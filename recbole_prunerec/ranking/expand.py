"""Scoring what follows in the prefix tree: the machinery that beam search and exact search share.

A *row* is one prefix of one user that goes through the model; rows are sorted by user. Its children are scored in *blocks* of `BLOCK`, so that nodes
of any degree share one flat tensor, and a user's best are found by looking for the best blocks first. An expansion waits for the device once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

from recbole_prunerec.ranking.attention import Slots
from recbole_prunerec.ranking.trie import Trie

BLOCK = 16  # children in a block
LOGITS = {"cpu": 2**22, "cuda": 2**27}  # of as many rows at once as have so many: else they would take more memory than all else
_ROWS = 32  # rows of logits that are normalised at once, so that they stay in a processor's cache

# A *key* orders by score and breaks ties by index, so that top-k has one right answer: the bits of |score| (scores are <= 0, and the bits of
# non-negative floats sort as integers) above 32 bits of index. Smaller is better.
INDEX = (1 << 32) - 1
NONE = (0x7F800000 << 32) | INDEX  # score -inf, index -1


def key_of(score: Tensor, index: Tensor) -> Tensor:
    """Keys of float32 scores <= 0 and indices from 0; `NONE` where the score is -inf."""
    return torch.where(score > -torch.inf, (score.abs().view(torch.int32).to(torch.int64) << 32) | index, NONE)


def score_of(key: Tensor) -> Tensor:
    """The score that a key holds."""
    return (key >> 32).to(torch.int32).view(torch.float32).neg()


def index_of(key: Tensor) -> Tensor:
    """The index that a key holds; -1 in `NONE`."""
    return key.to(torch.int32).to(torch.int64)


class Head(NamedTuple):
    """What a softmax needs to know, once for all users."""

    weight: Tensor  # (row, dim) of the output head
    places: Tensor | None  # (vocab,) the row of each token, where not all tokens have one: the catalogue's softmax
    ends: Tensor  # (node,) whether a title is settled there


class Assistant(NamedTuple):
    """D3's text-free assistant (arXiv 2406.14900): a score is (1 - weight) * log P_model + weight * log P_assistant at every prefix."""

    sums: Tensor  # (user, answer + 1) float64: sums of its probabilities over the first sorted answers
    weight: float


class Rows(NamedTuple):
    """Prefixes that went through the model, sorted by user, and what the host knows of them."""

    user: Tensor  # (row,)
    node: Tensor  # (row,)
    score: Tensor  # (row,) float32
    slot: Tensor  # (row,) where `Slots` has the prefix's last token; -1 for the prompt
    hidden: Tensor  # (row, dim)
    ends: list[int]  # blocks of the children up to the end of each piece of rows; the last number is that of all
    blocks_of_user: int  # the most that one user has


class Children(NamedTuple):
    """All children of some rows. Blocks are sorted by row, the children in a row's blocks by token."""

    rows: Rows
    row: Tensor  # (block,) whose children they are
    start: Tensor  # (user,) number of the user's first block
    node: Tensor  # (block, BLOCK)
    score: Tensor  # (block, BLOCK) float32; -inf where there is no child, or it is excluded
    ends: Tensor  # (block, BLOCK) whether the child settles which title it is

    def best(self, count: int, allowed: Tensor | None = None) -> Tensor:
        """Keys of each user's best children, all or those `allowed` (block, BLOCK): (user, at most count), better first.

        Ties go to the earlier row, then the lower token. A key's index is the child's number among all children of its user.
        """
        score = self.score if allowed is None else torch.where(allowed, self.score, -torch.inf)
        user = self.rows.user[self.row]
        place = torch.arange(len(user), device=user.device) - self.start[user]
        block = torch.full((len(self.start), self.rows.blocks_of_user), NONE, device=user.device)
        block[user, place] = key_of(score.amax(1), place)
        if count < block.shape[1]:
            block = block.topk(count, largest=False, sorted=False).values
        place = index_of(block)
        score = torch.where((place >= 0)[..., None], score[(self.start[:, None] + place).clamp_(0, len(user) - 1)], -torch.inf)
        child = place[..., None] * BLOCK + torch.arange(BLOCK, device=user.device)
        key = key_of(score, child).flatten(1)
        return key.topk(min(count, key.shape[1]), largest=False).values

    def at(self, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the children that keys (user, any) name: their nodes, the slots of their parents, and whether they end a title."""
        flat = (self.start[:, None] * BLOCK + index_of(key)).clamp_(0, self.node.numel() - 1)
        return self.node.flatten()[flat], self.rows.slot[self.row[flat // BLOCK]], self.ends.flatten()[flat]


class Expansion:
    """A batch of users on their way through the tree.

    `hidden` (user, dim) are the hidden states at the ends of the prompts that `slots` holds. `excluded` (user, any) are sorted places of answers
    that must not be found, ascending, padded with the number of answers. With `bounds`, the score of every scored
    prefix is kept.
    """

    def __init__(
        self,
        head: Head,
        trie: Trie,
        slots: Slots,
        hidden: Tensor,
        excluded: Tensor | None = None,
        assistant: Assistant | None = None,
        bounds: bool = False,
    ) -> None:
        self.trie, self.slots, self.users = trie, slots, len(hidden)
        self._hidden, self._catalogue, self._excluded, self._assistant = hidden, head.places is not None, excluded, assistant
        self.device = hidden.device
        self._head = head
        self._piece = max(1, LOGITS.get(self.device.type, LOGITS["cuda"]) // len(head.weight))  # rows whose logits are there at once
        self._broken = torch.zeros((), dtype=torch.bool, device=self.device)
        self._bounds = torch.full((self.users, trie.nodes + 1), torch.nan, device=self.device) if bounds else None  # the last column is for no child

    @property
    def finite(self) -> bool:
        """Whether all scores so far were."""
        return not self._broken

    def root(self) -> Rows:
        """The empty prefix of every user."""
        user = torch.arange(self.users, device=self.device)
        node = torch.zeros_like(user)
        blocks = -(-int(self.trie.first[1] - self.trie.first[0]) // BLOCK)
        ends = [blocks * min(end + self._piece, self.users) for end in range(0, self.users, self._piece)]
        return Rows(user, node, torch.zeros(self.users, device=self.device), node - 1, self._hidden, ends, blocks)

    def expand(self, key: Tensor, node: Tensor, parent: Tensor, others: Tensor | None = None) -> Rows | None:
        """Feed prefixes, all (user, any), the better first, `NONE` at the end: `key` holds the score, `parent` is a slot. None if there is none.

        `others` are slots (user, any), or -1, that more prefixes may go on from later.
        """
        alive = key < NONE
        blocks = torch.where(alive, self._blocks(node), 0)
        parent = torch.where(alive, parent, -1)
        needed = self.slots.needed(parent if others is None else torch.cat([parent, others], 1))
        order = (~alive).flatten().sort(stable=True).indices
        counts = torch.stack([alive.sum(), alive.sum(1).amax(), blocks.sum(1).amax(), needed.sum(1).amax()])
        pieces = pad(blocks.flatten()[order], (0, -len(order) % self._piece)).cumsum(0)[self._piece - 1 :: self._piece]
        count, width, blocks_of_user, most_needed, *ends = torch.cat([counts, pieces]).tolist()  # the one wait for the device
        if not count:
            return None
        chosen = order[:count]
        user, place = chosen // key.shape[1], chosen % key.shape[1]
        key, node, parent = (part.flatten()[chosen] for part in (key, node, parent))
        hidden, slot = self.slots.feed(self.trie.tokens[node].to(torch.int64), user, place, width, parent, needed, most_needed)
        return Rows(user, node, score_of(key), slot, hidden, ends[: -(-count // self._piece)], blocks_of_user)

    def _blocks(self, node: Tensor) -> Tensor:
        """Blocks of each node's children."""
        return (self.trie.first[node + 1] - self.trie.first[node] + (BLOCK - 1)) // BLOCK

    def children(self, rows: Rows) -> Children:
        """Score all children of `rows`."""
        trie, device = self.trie, self.device
        blocks = self._blocks(rows.node)
        row = torch.repeat_interleave(torch.arange(len(blocks), device=device), blocks, output_size=rows.ends[-1])
        number = torch.arange(rows.ends[-1], device=device) - (blocks.cumsum(0) - blocks)[row]
        above = rows.node[row]
        node = (trie.first[above].to(torch.int64) + number * BLOCK)[:, None] + torch.arange(BLOCK, device=device)
        exists = node < trie.first[above + 1][:, None]
        node = node.clamp_(max=trie.nodes - 1)
        step = self._log_probabilities(rows, row, node, exists)
        if self._assistant:
            step = (1 - self._assistant.weight) * step + self._assistant.weight * self._assisted(rows, row, trie.low[node], trie.high[node])
            step = torch.where(exists, step, -torch.inf).float()
        score = rows.score[row][:, None] + step.clamp_(max=0)  # differences of an assistant's sums may be rounded to above 0
        self._broken |= score.isnan().any()
        if self._bounds is not None:
            self._bounds[rows.user[row][:, None], torch.where(exists, node, trie.nodes)] = score
        if self._excluded is not None:
            low, high = trie.low[node], trie.high[node]
            below = self._gone_before(rows, row, high) - self._gone_before(rows, row, low)
            score = torch.where(below == high - low, -torch.inf, score)
        of_user = torch.zeros(self.users, dtype=torch.int64, device=device).index_add_(0, rows.user, blocks.to(torch.int64))
        return Children(rows, row, of_user.cumsum(0) - of_user, node, score, self._head.ends[node])

    def _gone_before(self, rows: Rows, row: Tensor, place: Tensor) -> Tensor:
        """How many excluded answers of its user stand before each sorted `place` (block, BLOCK)."""
        excluded: Tensor = self._excluded  # type: ignore[assignment]
        return torch.searchsorted(excluded[rows.user[row]], place.to(torch.int64))

    def _log_probabilities(self, rows: Rows, row: Tensor, node: Tensor, exists: Tensor) -> Tensor:
        """log p(child | prefix), float32, (block, BLOCK); -inf where there is none."""
        weight, places, _ = self._head
        token = self.trie.tokens[node]
        token = (token if places is None else places[token]).to(torch.int64)
        logit, normal = [], []
        for number, (hidden, (start, end)) in enumerate(zip(rows.hidden.split(self._piece), pairwise([0, *rows.ends]), strict=True)):
            logits = linear(hidden, weight)
            logit.append(logits[row[start:end, None] - number * self._piece, token[start:end]].float())
            if not self._catalogue:
                normal += [_logsumexp(part.float()) for part in logits.split(_ROWS if self.device.type == "cpu" else self._piece)]
        step = torch.where(exists, torch.cat(logit), -torch.inf)
        return step - (self._over_children(step, row, len(rows.hidden)) if self._catalogue else torch.cat(normal))[row][:, None]

    def _over_children(self, logit: Tensor, row: Tensor, count: int) -> Tensor:
        """log sum exp over all children of each of `count` rows; `logit` (block, BLOCK), `row` (block,)."""
        most = torch.full((count,), -torch.inf, device=logit.device).scatter_reduce_(0, row, logit.amax(1), "amax")
        return most + torch.zeros_like(most).index_add_(0, row, (logit - most[row][:, None]).exp().sum(1)).log()

    def _assisted(self, rows: Rows, row: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The assistant's log-probability of each child given its prefix: sums over all titles below, as differences of prefix sums."""
        sums, user = self._assistant.sums, rows.user  # type: ignore[union-attr]
        above = sums[user, self.trie.high[rows.node]] - sums[user, self.trie.low[rows.node]]
        user = user[row][:, None]
        return (sums[user, high] - sums[user, low]).log() - above.log()[row][:, None]

    def merge(self, found: Tensor, key: Tensor, node: Tensor, length_penalty: float = 0.0) -> Tensor:
        """The best of the titles `found`, keys (user, k), and of those that end at `node`, with `key` (both user, any; `NONE` where none ends)."""
        place = self.trie.low[node].to(torch.int64)
        score = score_of(key)
        if length_penalty:
            score = score / self.trie.lengths[place] ** length_penalty
        key = key_of(score, self.trie.order[place].to(torch.int64))
        return torch.cat([found, key], 1).topk(found.shape[1], largest=False).values

    def bounds(self) -> Tensor | None:
        """The score of each title's deepest scored prefix, (user, answer), where it was asked for."""
        if self._bounds is None:
            return None
        bound, parents, levels = self._bounds[:, :-1], self.trie.parents(), self.trie.levels.tolist()
        bound[:, 0] = 0
        for start, end in pairwise(levels):
            inherited = bound[:, parents[start:end]]
            bound[:, start:end] = torch.where(bound[:, start:end].isnan(), inherited, bound[:, start:end])
        leaves = (self.trie.first.diff() == 0).nonzero()[:, 0]
        title = self.trie.order[self.trie.low[leaves]].to(torch.int64)
        return torch.empty(self.users, self.trie.count, device=bound.device).index_copy_(1, title, bound[:, leaves])


def head_of(model: PreTrainedModel, trie: Trie, softmax: str) -> Head:
    """For the "vocabulary" all rows of the output head; for the "catalogue" (METHOD 7) those of the tokens in `trie`.

    A title is settled at its last token, or, for the "catalogue", where no other title begins like it: what is left has probability 1.
    """
    weight = model.get_output_embeddings().weight
    if softmax == "vocabulary":
        return Head(weight, None, trie.first.diff() == 0)
    used = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    used[trie.tokens[1:].to(torch.int64)] = True
    return Head(weight[used], used.cumsum(0) - 1, trie.high - trie.low == 1)


def _logsumexp(logits: Tensor) -> Tensor:
    """log sum exp over the last dimension; torch's own is fifteen times slower on a CPU."""
    most = logits.amax(-1, keepdim=True)
    return most[..., 0] + (logits - most).exp_().sum(-1).log()
