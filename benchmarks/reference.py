"""What ranking is compared with: Hugging Face's own beam search, a plain prefill, and every title's score by teacher forcing."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

SHAPES = ((1, 256), (4, 128), (4, 256), (16, 64), (16, 128))  # rows and tokens of the prefills that are timed
LEAST_SECONDS = 0.2  # a shape is repeated for, so that what a small model takes is not one tick of the clock
TITLES = 256  # whose scores are taken at once
SAME = 1e-4  # titles whose scores differ by less are equally good

Node = dict[int, Any]  # a prefix's continuations by token


class Generate:
    """`generate` with beams and `prefix_allowed_tokens_fn` over a prefix tree of nested dictionaries, as people write it."""

    def __init__(self, model: PreTrainedModel, answers: Sequence[np.ndarray], terminators: Sequence[int], pad_id: int) -> None:
        self.model, self.terminators, self.pad_id = model, list(terminators), pad_id
        self.longest = max(map(len, answers))
        self.titles = {tuple(answer.tolist()): title for title, answer in enumerate(answers)}
        self.root: Node = {}
        for answer in self.titles:
            node = self.root
            for token in answer:
                node = node.setdefault(token, {})

    def rank(self, prompts: Sequence[np.ndarray], beams: int) -> list[list[int]]:
        """The `beams` titles that `generate` finds for each prompt, best first, in one batch, padded on the left; -1 where it spells none."""
        width = max(map(len, prompts))
        ids, mask = torch.full((len(prompts), width), self.pad_id), torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.from_numpy(prompt), 1

        def allowed(_: int, sequence: Tensor) -> list[int]:
            node = self.root
            for token in sequence[width:].tolist():
                node = node.get(token, {})
            return list(node) or self.terminators  # `generate` needs something to go on with where a beam has nowhere to go

        # The checkpoint's own generation config may sample or punish repetition, and what a call does not name comes from there.
        self.model.generation_config = GenerationConfig(eos_token_id=self.terminators, pad_token_id=self.pad_id)
        found = self.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask,
            prefix_allowed_tokens_fn=allowed,
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            max_new_tokens=self.longest,
            use_cache=True,
        )
        titles = [self._title(sequence) for sequence in found[:, width:].tolist()]
        return [titles[start : start + beams] for start in range(0, len(titles), beams)]

    def rank_all(
        self, prompts: Sequence[np.ndarray], beams: int, batch_size: int, progress: Callable[[int], object] = lambda users: None
    ) -> list[list[int]]:
        """`rank` in batches of prompts of similar lengths. `progress` is called with the number of a batch's users."""
        titles: list[list[int]] = [[]] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        for start in range(0, len(prompts), batch_size):
            rows = order[start : start + batch_size]
            for row, found in zip(rows, self.rank([prompts[row] for row in rows], beams), strict=True):
                titles[row] = found
            progress(len(rows))
        return titles

    def _title(self, sequence: list[int]) -> int:
        end = next((place for place, token in enumerate(sequence, 1) if token in self.terminators), len(sequence))
        return self.titles.get(tuple(sequence[:end]), -1)


@torch.inference_mode()
def seconds_per_token(model: PreTrainedModel, shapes: Sequence[tuple[int, int]] = SHAPES) -> float:
    """The best of several shapes: seconds a token of a batched prefill of random tokens, with logits at every position."""
    took = []
    for rows, width in shapes:
        ids, calls, start = torch.randint(model.config.vocab_size, (rows, width)), 0, time.perf_counter()
        while not calls or time.perf_counter() - start < LEAST_SECONDS:
            model(input_ids=ids, use_cache=False)
            calls += 1
        took.append((time.perf_counter() - start) / (calls * rows * width))
    return min(took)


@torch.inference_mode()
def title_scores(model: PreTrainedModel, prompt: np.ndarray, answers: Sequence[np.ndarray]) -> Tensor:
    """Log-probability of each answer after `prompt`, the sum over its tokens, in float32. Shape (answer,).

    The prompt goes through the model once, and every batch of answers gets a copy of its keys and values.
    """
    scores = torch.empty(len(answers))
    start = model(input_ids=torch.from_numpy(prompt)[None], past_key_values=DynamicCache(), use_cache=True)
    first = start.logits[0, -1].float().log_softmax(-1)
    order = np.argsort([len(answer) for answer in answers], kind="stable").tolist()
    for begin in range(0, len(order), TITLES):
        chosen = order[begin : begin + TITLES]
        ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(answers[title]) for title in chosen], batch_first=True, padding_value=-100)
        cache = copy.deepcopy(start.past_key_values)
        cache.batch_repeat_interleave(len(chosen))
        logits = model(input_ids=ids.clamp(min=0), past_key_values=cache, use_cache=True).logits[:, :-1].float()
        later = cross_entropy(logits.transpose(1, 2), ids[:, 1:], ignore_index=-100, reduction="none")
        scores[chosen] = first[ids[:, 0]] - later.sum(1)
    return scores


def alike(found: Sequence[int], expected: Sequence[int], score: Callable[[int], float]) -> bool:
    """Whether two lists of titles are equal place by place, where titles whose scores differ by less than `SAME` count as equal.

    `score` gives a title's score, and is asked only where the lists differ.
    """
    if len(found) != len(expected) or len(set(found)) < len(found):
        return False
    return all(one == other or (min(one, other) >= 0 and abs(score(one) - score(other)) < SAME) for one, other in zip(found, expected, strict=True))
