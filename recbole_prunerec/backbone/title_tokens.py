"""Whole titles as tokens of a tokenizer, embedded as the mean of the tokens that they were written in (METHOD 1; Gee et al., EMNLP Industry 2022)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_prunerec.backbone.family import Sizes, family_of

Parts = Mapping[int, Sequence[int]]  # of each new token: the tokens that its text was written in


def with_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[PreTrainedTokenizerBase, Parts]:
    """A tokenizer that writes each of `texts` as one token, and what the new ones were written in before; `tokenizer` itself stays as it is.

    Where several of `texts` begin at one place the longest is read, as added tokens always are. New ids follow the tokenizer's own, in the order of
    `texts`.
    """
    written = tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    parts = {text: ids for text, ids in zip(texts, written, strict=True) if len(ids) > 1}
    if not parts:
        return tokenizer, {}
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens([AddedToken(text, normalized=False) for text in parts])
    vocab = larger.get_vocab()
    return larger, {vocab[text]: ids for text, ids in parts.items()}


@torch.no_grad()
def embed(model: PreTrainedModel, parts: Parts) -> None:
    """Give `model` the new tokens: each one's row of the embedding, and of an output head that is not tied, is the mean of its parts'. In place."""
    if not parts:
        return
    sizes, family = Sizes.of(model), family_of(model.config)
    model.resize_token_embeddings(max(sizes.vocab, *(number + 1 for number in parts)), mean_resizing=False)
    for name in (family.embedding, *([] if sizes.tied else [family.head])):
        weight = model.get_parameter(f"{name}.weight")
        weight[list(parts)] = torch.stack([weight[list(ids)].mean(0) for ids in parts.values()])
