"""The tokens that a catalogue needs, and a byte-level BPE tokenizer that has no others (METHOD 8).

A title keeps its spelling: byte-level BPE always applies the first of the merges that fit, a title's own are all kept, and those that are gone were
never the first that fit. Bytes are kept, so that every other text can still be read, in more tokens.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Step
from recbole_prunerec.text.prompts import Prompts


def kept_tokens(prompts: Prompts) -> list[int]:
    """The ids that stay, ascending: those of all answers and of the template, all that these are merged from, all bytes, and all added tokens.

    Raises `UserError`, which says what is in the way, where the tokenizer is no byte-level BPE, or would spell a title otherwise without the rest.
    """
    content = content_of(prompts.tokenizer)
    vocab: dict[str, int] = content["model"]["vocab"]
    sources: dict[str, list[str]] = defaultdict(list)  # the parts of every merge that makes a token
    for left, right in merges_of(content):
        sources[left + right] += [left, right]
    names = {number: token for token, number in vocab.items()}
    found = prompts.used_ids | {vocab[byte] for byte in pre_tokenizers.ByteLevel.alphabet() if byte in vocab}
    waiting = [names[number] for number in found if number in names]
    while waiting:
        parts = [part for part in sources.pop(waiting.pop(), ()) if vocab[part] not in found]
        found |= {vocab[part] for part in parts}
        waiting += parts
    tokenizer = prompts.tokenizer
    found |= {token["id"] for token in content["added_tokens"]} | {number for number in tokenizer.all_special_ids if number is not None}
    kept = sorted(found)
    _check(prompts, kept)
    return kept


def trimmed_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """`tokenizer` with the tokens `kept` alone, whose new ids are their places there: what its files give when they are loaded.

    A merge stays where its two parts and what they make do. Raises `UserError` where the tokenizer is no byte-level BPE.
    """
    content, place = content_of(tokenizer), {old: new for new, old in enumerate(kept)}
    vocab = {token: place[number] for token, number in content["model"]["vocab"].items() if number in place}
    merges = [[left, right] for left, right in merges_of(content) if left in vocab and right in vocab and left + right in vocab]
    content["model"] |= {"vocab": vocab, "merges": merges}
    content["added_tokens"] = [{**token, "id": place[token["id"]]} for token in content["added_tokens"]]
    for token in _named_in(content["post_processor"]):
        token["ids"] = [place[number] for number in token["ids"]]
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder)


def vocabulary_after(steps: Sequence[Step], prompts: Prompts) -> int | None:
    """How many tokens a vocabulary step leaves; None where there is none among the steps, or it cannot trim."""
    if not any(step.do == "vocabulary" for step in steps):
        return None
    try:
        return len(kept_tokens(prompts))
    except UserError:
        return None


def content_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tokenizer.json holds. Raises `UserError` for all but byte-level BPE."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {} if backend is None else json.loads(backend.to_str())
    kind, model = type(tokenizer).__name__, content.get("model", {})
    if model.get("type") != "BPE":
        raise UserError(f"its tokenizer ({kind}) is {model.get('type', 'not one of the tokenizers library')} and no byte-level BPE")
    if model.get("byte_fallback") or not any(_parts(content.get(part)) for part in ("pre_tokenizer", "normalizer")):
        raise UserError(f"its tokenizer ({kind}) is a BPE over characters and no byte-level one")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or content["post_processor"] not in (None, *_known(content)):
        raise UserError(f"its tokenizer ({kind}) marks the parts of words, or wraps texts, in a way that is not known here")
    return content


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The byte-level parts of a pre-tokenizer or normalizer, which may be a sequence of several."""
    steps = [part] if part else []
    steps = [step for outer in steps for step in outer.get("pretokenizers", outer.get("normalizers", [outer]))]
    return [step for step in steps if step["type"] == "ByteLevel"]


def _known(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The post-processor, alone in a list, where it is one whose ids can be found."""
    processor = content["post_processor"]
    parts = processor.get("processors", [processor])
    return [processor] if all(part["type"] in ("ByteLevel", "TemplateProcessing") for part in parts) else []


def _named_in(processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The special tokens that a post-processor adds, to be changed in place."""
    for part in (processor or {}).get("processors", [processor] if processor else []):
        yield from part.get("special_tokens", {}).values()


def merges_of(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs in their order; older files write a pair as one text."""
    for pair in content["model"]["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        yield left, right


def _check(prompts: Prompts, kept: Sequence[int]) -> None:
    """Raises `UserError` where the new tokenizer does not write each title and the template as the old one does."""
    new, old = trimmed_tokenizer(prompts.tokenizer, kept), prompts.tokenizer
    names = old.convert_ids_to_tokens(list(kept))
    if new.convert_ids_to_tokens(list(range(len(kept)))) != names or len(new) != len(kept):
        raise UserError("its tokenizer does not keep its ids when it is made anew")
    again = prompts.with_tokenizer(new)
    same = all(
        len(before) == len(after) and all(kept[token] == number for token, number in zip(after.tolist(), before.tolist(), strict=True))
        for before, after in zip(prompts.answers, again.answers, strict=True)
    )
    if not same or [kept[token] for token in again.prompt_of([])] != prompts.prompt_of([]).tolist():
        raise UserError("its tokenizer would write a title in other tokens without the rest")
