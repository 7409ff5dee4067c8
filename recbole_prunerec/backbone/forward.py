"""Forward passes that compute logits only where there are labels.

A *batch* is a dictionary of `input_ids`, `attention_mask` and `labels`, each `(batch, position)`, padded on the right; `labels` is -100 everywhere
but at answer tokens. The *answer positions* are those whose logits predict an answer token, one before it (METHOD 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

IGNORE = -100

Batch = Mapping[str, Tensor]


class Answers(NamedTuple):
    """What a model says at a batch's answer positions, row by row, in order."""

    logits: Tensor  # (answer, vocab)
    targets: Tensor  # (answer,) the token that each position should predict
    rows: Tensor  # (answer,) the row of the batch that each position belongs to


def answer_mask(labels: Tensor) -> Tensor:
    """Answer positions of `labels` (batch, position): True one position before each answer token. Shape (batch, position)."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE
    return mask


def answer_logits(model: PreTrainedModel, batch: Batch) -> Answers:
    """Logits at the answer positions only: hidden states are gathered before the output head, so no (batch, position, vocab) tensor exists.

    The attention mask is not passed on: under causal attention nothing before the padding sees it, and attention without a mask is faster.
    """
    mask = answer_mask(batch["labels"])
    hidden = model.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[mask])
    targets = batch["labels"][:, 1:][mask[:, :-1]]
    return Answers(logits, targets, mask.nonzero()[:, 0])


def mean_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Mean of `values` (answer,) inside each of `count` rows. Shape (count,)."""
    sums = torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(0, rows, values)
    return sums / torch.bincount(rows, minlength=count)
