"""From a history of items to tokens: templates, prompts, answers, packed chunks (METHOD 1).

A title has one spelling everywhere: its *answer*, the title with closing quote and terminator, is encoded once, alone, and the same ids stand in
histories, labels and the prefix tree. The opening quote is encoded by itself and ends the prompt.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers import PreTrainedTokenizerBase

from recbole_prunerec.backbone.forward import IGNORE
from recbole_prunerec.errors import UserError
from recbole_prunerec.storage import hash_of, write_bytes
from recbole_prunerec.text.answers import answer_problems
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.wording import Wording

QUOTE = '"'

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Template:
    """The text around the titles. `closing` follows a title in its answer; `end_token` says whether the tokenizer's end token follows that."""

    before: str
    separator: str
    after: str
    closing: str
    end_token: bool

    @property
    def packs(self) -> bool:
        """Whether a history and its answer read like one longer history, which is what packing needs."""
        return not (self.separator or self.after or self.end_token)


TEMPLATES = {
    "list": Template(before="Chosen so far:\n", separator="", after="", closing='"\n', end_token=False),
    "bigrec": Template(
        before=(
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nGiven a list of items the user has chosen before, please recommend a new item to the user.\n\n"
            "### Input:\nThe user has chosen the following items before: "
        ),
        separator=", ",
        after="\n\n### Response:\n",
        closing='"',
        end_token=True,
    ),
}


class Example(NamedTuple):
    """One row to learn from: `ids` (position,) and `labels` (position,), which is -100 everywhere but at answer tokens."""

    ids: np.ndarray
    labels: np.ndarray


class Prompts:
    """Everything that turns items into token ids, for one tokenizer, catalogue and template.

    `answers[t]` are the ids of distinct title t, in the order of `catalogue.distinct`. They are kept in `cache`, if given, under a hash of all they
    depend on. Raises `UserError` where the tokenizer cannot tell titles apart, or a title's answer has more than `max_title_tokens` (None: no limit).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        catalogue: Catalogue,
        template: str,
        max_prompt_tokens: int,
        cache: Path | None = None,
        max_title_tokens: int | None = None,
    ) -> None:
        self.catalogue, self.template, self.max_prompt_tokens = catalogue, TEMPLATES[template], max_prompt_tokens
        self._wording = Wording(template=template, max_prompt_tokens=max_prompt_tokens)
        if self.template.end_token and tokenizer.eos_token_id is None:
            raise UserError(f"template={template} ends answers with the tokenizer's end token, and this tokenizer has none; choose template=list")
        self._tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
        begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id in tokenizer("").input_ids else []
        self._before = np.array(begin + self._encode(self.template.before))
        self._after = np.array(self._encode(self.template.after), dtype=np.int64)
        self._open = np.array(self._encode(QUOTE))
        self._separator = np.array(self._encode(self.template.separator), dtype=np.int64)
        self._end = [tokenizer.eos_token_id] if self.template.end_token else []
        self.answers = self._cached_answers(cache)
        problems = answer_problems(catalogue.distinct, self.answers, self._encode(self.template.closing) + self._end, max_title_tokens)
        shortest = len(self._before) + len(self._after) + len(self._open)
        if max_prompt_tokens < shortest:
            problems.append(f"max_prompt_tokens={max_prompt_tokens} does not even hold the template; choose at least {shortest}")
        if problems:
            raise UserError("\n".join(problems))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _encode_answers(self) -> list[np.ndarray]:
        texts = [title + self.template.closing for title in self.catalogue.distinct]
        return [np.array(ids + self._end) for ids in self._tokenizer(texts, add_special_tokens=False).input_ids]

    def _cached_answers(self, cache: Path | None) -> list[np.ndarray]:
        if cache is None:
            return self._encode_answers()
        key = hash_of([self._tokenizer.backend_tokenizer.to_str(), self.catalogue.distinct, self.template.closing, self.template.end_token])
        path = cache / f"answers-{key[:16]}.safetensors"
        answers = _read_answers(path) if path.exists() else None
        if answers is None:
            answers = self._encode_answers()
            ids, ends = np.concatenate(answers), np.cumsum([len(answer) for answer in answers])
            write_bytes(path, save({"ids": ids, "ends": ends}, {"sha256": _digest(ids, ends)}))
        return answers

    def answer(self, item: int) -> np.ndarray:
        """Token ids of an item's answer: title, closing quote, terminator."""
        return self.answers[self.catalogue.title_of[item]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each item in a history, opening quote and separator not counted; 0 for padding. Shape (item,)."""
        return np.array([0, *(len(self.answer(item)) for item in range(1, len(self.catalogue)))])

    @property
    def terminators(self) -> list[int]:
        """The ids that end an answer. A plain `generate` with these as its eos stops after one title."""
        return sorted({int(answer[-1]) for answer in self.answers})

    def _listed(self, items: Sequence[int]) -> list[np.ndarray]:
        """The pieces of a history: each title in quotes, with separators between."""
        pieces: list[np.ndarray] = []
        for item in items:
            if pieces and len(self._separator):
                pieces.append(self._separator)
            answer = self.answer(item)
            pieces += [self._open, answer[:-1] if self.template.end_token else answer]
        return pieces

    def prompt(self, history: Sequence[int]) -> np.ndarray:
        """Token ids of the prompt for a history of items, oldest first, ending with the opening quote.

        A prompt of more than `max_prompt_tokens` drops its oldest titles, never the template.
        """
        history = list(history)
        while True:
            ids = np.concatenate([self._before, *self._listed(history), self._after, self._open])
            if len(ids) <= self.max_prompt_tokens or not history:
                return ids
            history = history[1:]

    def pieces(self, history: Sequence[int]) -> tuple[str, ...]:
        """The texts whose token ids, each encoded alone, make up `prompt(history)`; for people who build prompts elsewhere."""
        texts = [self.template.before]
        for index, item in enumerate(history):
            texts += [self.template.separator] if index and self.template.separator else []
            texts += [QUOTE, self.catalogue.titles[item] + self.template.closing]
        return (*texts, *([self.template.after] if self.template.after else []), QUOTE)

    def example(self, history: Sequence[int], target: int) -> Example:
        """One sample: the prompt for `history`, then the answer of `target`, which alone is labelled."""
        prompt, answer = self.prompt(history), self.answer(target)
        return Example(np.concatenate([prompt, answer]), np.concatenate([np.full(len(prompt), IGNORE), answer]))

    def chunk(self, items: Sequence[int], labelled: Sequence[bool]) -> Example:
        """A packed chunk: consecutive titles, of which those marked in `labelled` are targets, each seeing the chunk's earlier titles.

        Only for a template that packs. A chunk whose last prompt would exceed `max_prompt_tokens` drops its oldest titles.
        """
        items, labelled = list(items), list(labelled)
        opening = len(self._open)
        while len(self._before) + sum(opening + len(self.answer(item)) for item in items[:-1]) + opening > self.max_prompt_tokens:
            items, labelled = items[1:], [False, *labelled[2:]]
        ids, labels = [self._before], [np.full(len(self._before), IGNORE)]
        for item, target in zip(items, labelled, strict=True):
            answer = self.answer(item)
            ids += [self._open, answer]
            labels += [np.full(opening, IGNORE), answer if target else np.full(len(answer), IGNORE)]
        return Example(np.concatenate(ids), np.concatenate(labels))

    def save(self, folder: Path) -> None:
        """Write `catalogue.json` and `prompts.json` into `folder`: with the tokenizer, all that it takes to make the same prompts again."""
        self.catalogue.save(folder)
        self._wording.save(folder)


def _digest(ids: np.ndarray, ends: np.ndarray) -> str:
    return hashlib.sha256(ids.tobytes() + ends.tobytes()).hexdigest()


def _read_answers(path: Path) -> list[np.ndarray] | None:
    """Answers that were kept before; None, with a word, where the file is damaged, since they are quickly made again."""
    try:
        with safe_open(path, "np") as file:
            ids, ends, digest = file.get_tensor("ids"), file.get_tensor("ends"), (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        ids, ends, digest = np.empty(0), np.empty(0), str(error)
    if digest == _digest(ids, ends):
        return np.split(ids, ends[:-1])
    logger.warning("%s is damaged; its tokens are made again", path)
    return None
