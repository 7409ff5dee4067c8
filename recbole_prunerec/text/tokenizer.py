"""The tiny backbone's tokenizer: byte-level BPE, trained on a catalogue's titles, of the class that transformers loads for its model."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

END = "<|endoftext|>"


def train_tokenizer(titles: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """A Qwen2 tokenizer of at most `size` tokens: the end token (which also pads), all 256 bytes, and merges learnt from quoted titles.

    `AutoTokenizer` gives every Qwen2 model this class with its own normalizer (NFC) and splitting (no token crosses a space, digits stand alone),
    whatever tokenizer.json says: with any other a checkpoint would spell its titles otherwise when it is loaded again.
    """
    rules = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator((f'"{title}"\n' for title in titles), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(vocab=trained["vocab"], merges=[tuple(pair) for pair in trained["merges"]])  # type: ignore[misc]  # as its BPE takes them
