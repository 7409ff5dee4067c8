"""Ranking the titles of a prefix tree for any number of prompts, in batches of similar lengths that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking.attention import Slots, tree_attention
from recbole_prunerec.ranking.beam import beam_search
from recbole_prunerec.ranking.exact import exact_search
from recbole_prunerec.ranking.expand import Assistant, Expansion, Head, head_of, index_of, score_of
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.settings import Ranking
from recbole_prunerec.text.wording import Softmax

MEMORY_MIB = 1024  # where neither the settings nor a GPU say more
FIRST_BUDGET = 512  # prefixes that the exact search expands for a user at first; users that need more go again with four times as many
PREFILL = {"cpu": 2**24, "cuda": 2**30}  # bytes that a layer may take for prompts; they are fed a few at a time
LEAST = 1e-12  # least probability of a title for an assistant, so that every title has a score
USUAL_SLOTS, MOST_SLOTS = 4, 6  # times the beams: slots after the prompt that are allocated at once, and that a beam search has needed
LARGEST_BATCH = {"cpu": 128, "cuda": 1024}  # users at once; more no longer fit into a processor's cache, measured on a model of a million parameters


class Found(NamedTuple):
    """The best titles of each user, best first; equal scores by the lower title."""

    titles: Tensor  # (user, k) int64, padded with -1
    scores: Tensor  # (user, k) float32, padded with -inf: sums of the answer tokens' log-probabilities
    expanded: (
        Tensor  # (user,) prefixes that went through the model, those of a search that began again included, so that it may be more than a budget
    )
    proven: Tensor  # (user,) whether these are the best titles for certain, which only exact search can say
    bounds: Tensor | None  # (user, title) float32: the score of each title's deepest scored prefix, where asked for


@torch.inference_mode()
def rank(
    model: PreTrainedModel,
    trie: Trie,
    prompts: Sequence[np.ndarray],
    options: Ranking,
    k: int,
    *,
    softmax: Softmax = "vocabulary",
    excluded: Sequence[Sequence[int]] | None = None,
    assistant: np.ndarray | None = None,
    bounds: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Found:
    """The `k` best titles of each prompt, by the search that `options` names, on the model's device. Rows are in the order of `prompts`, on the CPU.

    A prompt is a 1-D array of token ids whose next token is an answer's first. A title's score is the sum of log softmax (float32 whatever the
    model's type) over its tokens: over the whole vocabulary, or, with `softmax="catalogue"`, over the tokens that go on with some title. Beam search
    keeps `options.beams` prefixes, or `k` if that is more. `excluded` are each user's titles that must not be found. `assistant` (user, title) are
    D3's probabilities. `progress` is called with the number of users done. Raises `UserError` for an empty prompt, and where scores are not finite.
    """
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    if not lengths.all():
        raise UserError(f"{(lengths == 0).sum()} of {len(prompts)} prompts are empty; a prompt needs at least one token")
    ranker = _Ranker(model.eval(), trie.to(model.device), options, k, softmax, bounds, assistant is not None)
    found = Found(
        torch.full((len(prompts), k), -1),
        torch.full((len(prompts), k), -torch.inf),
        torch.zeros(len(prompts), dtype=torch.int64),
        torch.zeros(len(prompts), dtype=torch.bool),
        torch.empty(len(prompts), trie.count) if bounds else None,
    )
    left = np.argsort(-lengths, kind="stable")
    with tree_attention(model):
        beginning = ranker.beginning(prompts)
        for budget in ranker.budgets:
            last = budget == ranker.budgets[-1]
            for rows in ranker.batches(left, lengths, budget):
                part = ranker.batch([prompts[row] for row in rows], beginning, budget, *_of(rows, excluded, assistant))
                part = part._replace(expanded=part.expanded.cpu() + found.expanded[rows])
                for whole, some_rows in zip(found, part, strict=True):
                    if whole is not None and some_rows is not None:
                        whole[rows] = some_rows.cpu()
                if progress:
                    progress(len(rows) if last else int(part.proven.sum()))
            left = left[~found.proven[left].numpy()]
    if ranker.budgets[0] and len(left):
        barred, helped = _of(left, excluded, assistant)
        beam = options.model_copy(update={"search": "beam"})
        _add(found, left, rank(model, trie, [prompts[row] for row in left], beam, k, softmax=softmax, excluded=barred, assistant=helped))
    return found


def _of(
    rows: np.ndarray, excluded: Sequence[Sequence[int]] | None, assistant: np.ndarray | None
) -> tuple[list[Sequence[int]] | None, np.ndarray | None]:
    """What `rank` was given of some rows."""
    return None if excluded is None else [excluded[row] for row in rows], None if assistant is None else assistant[rows]


def _add(found: Found, rows: np.ndarray, second: Found) -> None:
    """Put what a second search found into the lists of `rows`: those that a budget did not prove are then no worse than beam search's."""
    for row, titles, scores in zip(rows.tolist(), second.titles.tolist(), second.scores.tolist(), strict=True):
        best = dict(zip(titles, scores, strict=True)) | dict(zip(found.titles[row].tolist(), found.scores[row].tolist(), strict=True))
        best.pop(-1, None)
        order = sorted(best, key=lambda title: (-best[title], title))[: found.titles.shape[1]]
        found.titles[row, : len(order)] = torch.tensor(order, dtype=torch.int64)
        found.scores[row, : len(order)] = torch.tensor([best[title] for title in order])
    found.expanded[rows] += second.expanded


def batch_memory(options: Ranking, device: torch.device) -> int:
    """Bytes for the users that are ranked at once on `device`."""
    if options.memory_mib is None and device.type == "cuda":
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free, though kept by torch
        return (torch.cuda.mem_get_info(device)[0] + own) // 2
    return (options.memory_mib or MEMORY_MIB) * 2**20


@dataclass(frozen=True)
class _Ranker:
    """What all batches of a ranking share."""

    model: PreTrainedModel
    trie: Trie
    options: Ranking
    k: int
    softmax: Softmax
    bounds: bool
    assisted: bool

    @property
    def beams(self) -> int:
        """Prefixes of a user that go through the model at once."""
        return min(max(self.options.beams, self.k), self.trie.count)

    @property
    def budgets(self) -> list[int]:
        """Prefixes a user that each round allows: exact search has several, each for those that the one before left unproven; beam search has one."""
        if self.options.search != "exact":
            return [0]
        rounds = [FIRST_BUDGET]
        while rounds[-1] < self.options.budget:
            rounds.append(4 * rounds[-1])
        return [*rounds[:-1], self.options.budget]

    def beginning(self, prompts: Sequence[np.ndarray]) -> Slots | None:
        """The slots of what all prompts begin with, computed once; every prompt keeps a token of its own."""
        if len(prompts) < 2:
            return None
        shortest = min(map(len, prompts))
        begins = np.stack([prompt[:shortest] for prompt in prompts])
        shared = min(int((begins == begins[0]).all(0).cumprod().sum()), shortest - 1)
        if not shared:
            return None
        ids = torch.from_numpy(prompts[0][:shared]).to(self.model.device)
        place = torch.arange(shared, device=ids.device)
        slots = Slots(self.model, place.new_tensor([shared]), shared)
        slots.prefill(ids, torch.zeros_like(place), place, slice(0, 1))
        return slots

    def batches(self, rows: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
        """`rows`, the longest first, in batches that fit into memory."""
        memory = batch_memory(self.options, self.model.device)
        while len(rows):
            size = min(max(1, memory // self._bytes(int(lengths[rows[0]]), budget)), LARGEST_BATCH.get(self.model.device.type, 1024))
            yield rows[:size]
            rows = rows[size:]

    def _bytes(self, prompt: int, budget: int) -> int:
        """Bytes that a user takes: keys and values, masks, what scoring holds, and the bounds."""
        sizes, beams, number = Sizes.of(self.model), self.beams, self.model.dtype.itemsize
        slots = prompt + (budget or MOST_SLOTS * beams)
        stored = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * slots * number
        masks = beams * sizes.heads // sizes.kv_heads * slots * (number + 1)
        titles = (4 * self.trie.nodes if self.bounds else 0) + (32 * self.trie.count if self.assisted else 0)
        return stored + masks + 100 * self._widest + titles

    @cached_property
    def _widest(self) -> int:
        """The most children that a user's prefixes can have together."""
        return int(self.trie.first.diff().topk(min(self.beams, self.trie.nodes)).values.sum())

    @cached_property
    def head(self) -> Head:
        """What the softmax needs to know."""
        return head_of(self.model, self.trie, self.softmax)

    def batch(
        self,
        prompts: Sequence[np.ndarray],
        beginning: Slots | None,
        budget: int,
        excluded: Sequence[Sequence[int]] | None,
        assistant: np.ndarray | None,
    ) -> Found:
        """`rank` for one batch."""
        trie, lengths = self.trie, np.array([len(prompt) for prompt in prompts])
        on_device = torch.from_numpy(lengths).to(self.model.device)
        slots = Slots(self.model, on_device, int(lengths.max()), trie.depth, beginning, USUAL_SLOTS * self.beams)
        hidden = self._prefill(slots, prompts, lengths, 0 if beginning is None else beginning.longest)
        search = Expansion(self.head, trie, slots, hidden, self._excluded(excluded), self._assistant(assistant), self.bounds)
        if self.options.search == "exact":
            found, proven = exact_search(search, self.beams, self.k, budget)
        else:
            found = beam_search(search, self.beams, self.k, self.options.length_penalty)
            proven = torch.zeros(len(prompts), dtype=torch.bool)
        if not search.finite:
            raise UserError(
                f"the model ({hidden.dtype}) gives scores that are not finite, so titles cannot be ranked; use float32 or bfloat16 weights"
            )
        return Found(index_of(found), score_of(found), slots.fed, proven, search.bounds())

    def _prefill(self, slots: Slots, prompts: Sequence[np.ndarray], lengths: np.ndarray, start: int) -> Tensor:
        """Feed the prompts from place `start` on, a few users at a time. Returns the hidden states at their ends, (user, dim)."""
        token = (3 * self.model.config.intermediate_size + 6 * self.model.config.hidden_size) * self.model.dtype.itemsize
        at_once = max(1, PREFILL.get(self.model.device.type, PREFILL["cuda"]) // (token * int(lengths.max())))
        ends = []
        for first in range(0, len(prompts), at_once):
            users = slice(first, min(first + at_once, len(prompts)))
            own = lengths[users] - start
            user, place = np.repeat(np.arange(users.start, users.stop), own), np.concatenate([np.arange(start, start + count) for count in own])
            tokens = np.concatenate([prompt[start:] for prompt in prompts[users]]).astype(np.int64)
            ids, of, at, last = (torch.from_numpy(part).to(self.model.device) for part in (tokens, user, place, own.cumsum() - 1))
            ends.append(slots.prefill(ids, of, at, users)[last])
        return torch.cat(ends)

    def _excluded(self, excluded: Sequence[Sequence[int]] | None) -> Tensor | None:
        """Where excluded titles stand among the sorted ones: (user, any), ascending, padded with the number of titles."""
        if excluded is None or not any(map(len, excluded)):
            return None
        places = torch.full((len(excluded), max(map(len, excluded))), self.trie.count)
        for row, titles in zip(places, excluded, strict=True):
            distinct = self._places[torch.tensor(sorted(set(titles)), dtype=torch.int64)]
            row[: len(distinct)] = distinct.sort().values
        return places.to(self.model.device)

    @cached_property
    def _places(self) -> Tensor:
        """Where each title stands among the sorted ones, (title,), on the CPU."""
        return torch.empty(self.trie.count, dtype=torch.int64).index_copy_(0, self.trie.order.to("cpu", torch.int64), torch.arange(self.trie.count))

    def _assistant(self, probabilities: np.ndarray | None) -> Assistant | None:
        if probabilities is None:
            return None
        return Assistant(self.trie.sums(probabilities, LEAST).to(self.model.device), self.options.assistant_weight)
