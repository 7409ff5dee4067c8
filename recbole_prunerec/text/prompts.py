"""From a catalogue's items to tokens: prompts, answers and their prefix tree, samples, packed chunks (METHOD 1)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers import PreTrainedTokenizerBase

from recbole_prunerec.backbone.softmax import IGNORE
from recbole_prunerec.ranking.trie import FILE, Trie
from recbole_prunerec.settings import Settings
from recbole_prunerec.storage import hash_of, write_bytes
from recbole_prunerec.text.answers import answer_problems
from recbole_prunerec.text.catalogue import Catalogue, tidy
from recbole_prunerec.text.spelling import TEMPLATES, Spelling
from recbole_prunerec.text.wording import Softmax, Wording

ENCODED = 2**14  # titles that are encoded at once
SPELLS = ("normalizer", "pre_tokenizer", "model", "added_tokens")  # the parts of a tokenizer on which ids depend; padding comes and goes

logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """One row to learn from: `ids` (position,) and `labels` (position,), which is -100 everywhere but at answer tokens.

    `histories` are the items that come before each of its answers, in their order.
    """

    ids: np.ndarray
    labels: np.ndarray
    histories: tuple[np.ndarray, ...] = ()


class Prompts(Spelling):
    """Everything that turns items into token ids, for one tokenizer, catalogue and template.

    The catalogue's answers are kept in `cache`, if given, under a hash of all they depend on. Raises `UserError` where the tokenizer cannot tell
    titles apart, or a title's answer has more than `max_title_tokens` (None: no limit). With their `trie` from a file, titles are known to be good,
    and encoded when first needed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        catalogue: Catalogue,
        template: str,
        max_prompt_tokens: int,
        cache: Path | None = None,
        max_title_tokens: int | None = None,
        trie: Trie | None = None,
    ) -> None:
        self.catalogue, self._cache, self._max_title_tokens, self._stored = catalogue, cache, max_title_tokens, trie
        short = catalogue.written != catalogue.titles
        self._wording = Wording(template=template, max_prompt_tokens=max_prompt_tokens, short_titles=short)
        super().__init__(tokenizer, template, max_prompt_tokens)

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self._stored is not None:
            return problems
        return [*answer_problems(self.catalogue.texts, self.answers, self.closing, self._max_title_tokens), *problems]

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Prompts:
        """The same catalogue and wording in the tokens of another tokenizer. Raises `UserError` as the constructor does."""
        return Prompts(tokenizer, self.catalogue, self._wording.template, self.max_prompt_tokens, self._cache, self._max_title_tokens)

    @property
    def used_ids(self) -> set[int]:
        """Every token id that a prompt or an answer may have."""
        return {*np.concatenate(self.answers).tolist(), *self.around}

    @cached_property
    def made_of(self) -> dict[str, str]:
        """Hashes of what the answers and their prefix tree depend on."""
        return made_of(self.tokenizer, self.catalogue, self._wording.template)

    @cached_property
    def answers(self) -> list[np.ndarray]:
        """Token ids of every distinct title's answer, in the order of `catalogue.distinct`."""
        if self._cache is None:
            return self._encode_answers()
        path = self._cache / f"answers-{hash_of(self.made_of)[:16]}.safetensors"
        answers = _read_answers(path) if path.exists() else None
        if answers is None:
            answers = self._encode_answers()
            ids, ends = np.concatenate(answers), np.cumsum([len(answer) for answer in answers])
            write_bytes(path, save({"ids": ids, "ends": ends}, {"sha256": _digest(ids, ends)}))
        return answers

    def _encode_answers(self) -> list[np.ndarray]:
        texts, answers = [text + self.template.closing for text in self.catalogue.texts], []
        for start in range(0, len(texts), ENCODED):
            answers += [np.array(ids + self._end) for ids in self.tokenizer(texts[start : start + ENCODED], add_special_tokens=False).input_ids]
        return answers

    def _spell(self, title: str) -> np.ndarray:
        """Token ids of a title's answer; one that the catalogue lacks is written whole."""
        return super()._spell(self.catalogue.text_of.get(tidy(title), title))

    @cached_property
    def trie(self) -> Trie:
        """The prefix tree of all answers."""
        return Trie.build(self.answers) if self._stored is None else self._stored

    def answer(self, item: int) -> np.ndarray:
        """Token ids of an item's answer: title, whole or shortened, closing quote, terminator."""
        return self.answers[self.catalogue.title_of[item]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each item in a history, opening quote and separator not counted; 0 for padding. Shape (item,)."""
        return np.array([0, *(len(self.answer(item)) for item in range(1, len(self.catalogue)))])

    @property
    def terminators(self) -> list[int]:
        """The ids that end an answer. A plain `generate` with these as its eos stops after one title."""
        return sorted({int(answer[-1]) for answer in self.answers})

    def prompt(self, history: Sequence[int]) -> np.ndarray:
        """`prompt_of` the titles of a history of items, oldest first."""
        return self.prompt_of([self.catalogue.titles[item] for item in history])

    def pieces(self, history: Sequence[int]) -> tuple[str, ...]:
        """The texts whose token ids, each encoded alone, make up `prompt(history)`; for people who build prompts elsewhere."""
        texts = [self.template.before]
        for index, item in enumerate(history):
            texts += [self.template.separator] if index and self.template.separator else []
            texts += [self.template.opening, self.catalogue.written[item] + self.template.closing]
        return tuple(filter(None, (*texts, self.template.after, self.template.opening)))

    def example(self, history: Sequence[int], target: int) -> Example:
        """One sample: the prompt for `history`, then the answer of `target`, which alone is labelled."""
        prompt, answer = self.prompt(history), self.answer(target)
        labels = np.concatenate([np.full(len(prompt), IGNORE), answer])
        return Example(np.concatenate([prompt, answer]), labels, (np.array(history, dtype=np.int64),))

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
        before = tuple(np.array(items[:place], dtype=np.int64) for place, target in enumerate(labelled) if target)
        return Example(np.concatenate(ids), np.concatenate(labels), before)

    def save(self, folder: Path, softmax: Softmax = "vocabulary") -> None:
        """Write `catalogue.json`, `prompts.json` and the prefix tree into `folder`, the catalogue last.

        With the tokenizer they are all that it takes to make the same prompts again. `softmax` is the one that the model is to be ranked with.
        """
        self.trie.save(folder / FILE, self.made_of)
        self._wording.model_copy(update={"softmax": softmax}).save(folder)
        self.catalogue.save(folder)


def texts_as_tokens(settings: Settings, catalogue: Catalogue) -> list[str]:
    """The texts that `title_tokens` makes one token each: every title's answer, without an end token. None where the settings do not ask for it."""
    return [text + TEMPLATES[settings.template].closing for text in catalogue.texts] if settings.title_tokens else []


def made_of(tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, template: str) -> dict[str, str]:
    """Hashes of what answers and their prefix tree depend on: `spelling`, the tokenizer with what ends an answer, and `titles`."""
    parts, around = json.loads(tokenizer.backend_tokenizer.to_str()), TEMPLATES[template]
    ending = [around.closing, tokenizer.eos_token_id if around.end_token else None]
    return {"spelling": hash_of([*(parts[key] for key in SPELLS), *ending]), "titles": hash_of(catalogue.texts)}


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
