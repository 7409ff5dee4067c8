"""From texts to tokens: templates, and how any title is spelled (METHOD 1).

A title has one spelling everywhere: its *answer*, the title with closing quote and terminator, is encoded once, alone, and the same ids stand in
histories, labels and the prefix tree. An opening quote is encoded by itself and ends the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from recbole_prunerec.errors import UserError
from recbole_prunerec.text.catalogue import tidy

REMEMBERED = 2**16  # titles whose token ids are kept at hand


@dataclass(frozen=True)
class Template:
    """The text around the titles. `closing` follows a title in its answer; `end_token` says whether the tokenizer's end token follows that."""

    before: str
    opening: str
    separator: str
    after: str
    closing: str
    end_token: bool

    @property
    def packs(self) -> bool:
        """Whether a history and its answer read like one longer history, which is what packing needs."""
        return not (self.separator or self.after or self.end_token)


TEMPLATES = {
    "list": Template(before="Chosen so far:\n", opening='"', separator="", after="", closing='"\n', end_token=False),
    "lines": Template(before="\n", opening="", separator="", after="", closing="\n", end_token=False),
    "bigrec": Template(
        before=(
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nGiven a list of items the user has chosen before, please recommend a new item to the user.\n\n"
            "### Input:\nThe user has chosen the following items before: "
        ),
        opening='"',
        separator=", ",
        after="\n\n### Response:\n",
        closing='"',
        end_token=True,
    ),
}


class Spelling:
    """How any titles become token ids, whether a catalogue has them or not, for one tokenizer and template. A title is encoded alone, once.

    Raises `UserError` where `template` needs an end token that the tokenizer lacks, or `max_prompt_tokens` does not hold the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, max_prompt_tokens: int) -> None:
        self.template, self.max_prompt_tokens = TEMPLATES[template], max_prompt_tokens
        if self.template.end_token and tokenizer.eos_token_id is None:
            raise UserError(f"template={template} ends answers with the tokenizer's end token, and this tokenizer has none; choose template=list")
        self.tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
        begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id in tokenizer("").input_ids else []
        self._before = np.array(begin + self._encode(self.template.before))
        self._after = np.array(self._encode(self.template.after), dtype=np.int64)
        self._open = np.array(self._encode(self.template.opening), dtype=np.int64)
        self._separator = np.array(self._encode(self.template.separator), dtype=np.int64)
        self._end = [tokenizer.eos_token_id] if self.template.end_token else []
        self.spell = lru_cache(REMEMBERED)(self._spell)
        problems = self._problems()
        if problems:
            raise UserError("\n".join(problems))

    @property
    def around(self) -> list[int]:
        """Token ids of all that stands around titles: the template, opening quote, separator, closing and terminator."""
        return [*np.concatenate([self._before, self._after, self._open, self._separator]).tolist(), *self.closing]

    @property
    def closing(self) -> list[int]:
        """Token ids of an answer without a title."""
        return self._encode(self.template.closing) + self._end

    def _problems(self) -> list[str]:
        shortest = len(self._before) + len(self._after) + len(self._open)
        if self.max_prompt_tokens >= shortest:
            return []
        return [f"max_prompt_tokens={self.max_prompt_tokens} does not even hold the template; choose at least {shortest}"]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _spell(self, title: str) -> np.ndarray:
        """Token ids of a title's answer: title, its white space tidied, closing quote, terminator. The latest are remembered."""
        return np.array(self._encode(tidy(title) + self.template.closing) + self._end)

    def prompt_of(self, titles: Sequence[str]) -> np.ndarray:
        """Token ids of the prompt for a history of titles, oldest first, ending with the opening quote, if any. Without any it is the template alone.

        A prompt of more than `max_prompt_tokens` drops its oldest titles, never the template.
        """
        room = self.max_prompt_tokens - len(self._before) - len(self._after) - len(self._open)
        pieces: list[np.ndarray] = []
        for title in reversed(titles):
            answer = self.spell(title)
            newest = [self._open, answer[: len(answer) - len(self._end)], *([self._separator] if pieces else [])]
            room -= sum(map(len, newest))
            if room < 0:
                break
            pieces[:0] = newest
        return np.concatenate([self._before, *pieces, self._after, self._open])
