"""Folders as a step leaves them, of random models of any family, with the byte-level tokenizers that such families have."""

from pathlib import Path

import torch
from served_folder import CATALOGUE, TITLES, TOKENIZER
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recbole_prunerec.backbone.load import save_step
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Prompts

BY_THREE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(splitting: pre_tokenizers.PreTokenizer, special: list[str]) -> Tokenizer:
    """A byte-level BPE that has seen the titles."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = splitting, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f'"{title} 1999 (12345)"\n' for title in TITLES] * 3, trainer)
    return tokenizer


def llama3_style() -> PreTrainedTokenizerBase:
    """As Llama 3's: digits by three, and a BOS that is put first."""
    parts = [pre_tokenizers.Split(Regex(BY_THREE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    backend = trained(pre_tokenizers.Sequence(parts), ["<|begin|>", "<|end|>"])
    backend.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>")


def smollm2_style() -> PreTrainedTokenizerBase:
    """As SmolLM2's: digits apart, special tokens first, and one that is added without being special."""
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend = trained(pre_tokenizers.Sequence(parts), ["<|endoftext|>", "<|start|>", "<|stop|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|start|>", eos_token="<|stop|>", pad_token="<|stop|>")
    tokenizer.add_tokens(["<think>"])
    return tokenizer


STYLES = {"qwen2": lambda: TOKENIZER, "llama-bpe": llama3_style, "smollm": smollm2_style}  # by llama.cpp's names of how they split


def write_exportable(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase = TOKENIZER, catalogue: Catalogue = CATALOGUE
) -> Prompts:
    """Write the folder, and return its prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = Prompts(tokenizer, catalogue, "list", 512)
    save_step(folder, model.to(torch.float32), tokenizer, prompts.terminators, prompts.prompt([1]))
    prompts.save(folder)
    return prompts
