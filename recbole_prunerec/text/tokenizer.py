"""The tiny backbone's tokenizer: byte-level BPE, trained on a catalogue's titles."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END = "<|endoftext|>"


def train_tokenizer(titles: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of at most `size` tokens: the end token (which also pads), all 256 bytes, and merges learnt from quoted titles.

    Text is split as GPT-2 does before merging, so that no token crosses a space, and any string round-trips.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator((f'"{title}"\n' for title in titles), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
