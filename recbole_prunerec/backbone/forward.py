"""Forward passes up to the final hidden states, which are gathered where a softmax needs them: logits exist only there.

A *batch* is a dictionary of `input_ids`, `attention_mask` and `labels`, each `(batch, position)`, padded on the right; `labels` is -100 everywhere
but at answer tokens. The *answer positions* are those whose logits predict an answer token, one before it (METHOD 1).

The attention mask is not passed on: under causal attention nothing before the padding sees it, and attention without a mask is faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.softmax import Softmax, answer_mask

Batch = Mapping[str, Tensor]


def answer_states(model: PreTrainedModel, batch: Batch, softmax: Softmax) -> Tensor:
    """Final hidden states at the positions where `softmax` has a choice, row by row, in order. Shape (answer, hidden)."""
    hidden = model.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
    return hidden[softmax.positions(batch["labels"])]


@contextmanager
def headless(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's `logits` are its final hidden states (batch, position, hidden).

    Training must go through the model's own call, or that of what wraps it for several devices, and its output head would make every logit.
    """
    head = model.get_output_embeddings()
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward


@contextmanager
def attending_by(model: PreTrainedModel, implementation: str | None) -> Iterator[None]:
    """Inside, attention is computed by `implementation`, a name of transformers'; None changes nothing."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation or before)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def answer_count(labels: Tensor) -> Tensor:
    """The number of answer tokens in `labels` (batch, position)."""
    return answer_mask(labels).sum()


def mean_by_row(values: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
    """Mean over the answer positions of each row of `labels`. Shape (batch,).

    `values` (answer,) are those of `positions` (batch, position), in order; at the row's other answer positions they are 0.
    """
    sums = torch.zeros(len(labels), dtype=values.dtype, device=values.device).index_add_(0, positions.nonzero()[:, 0], values)
    return sums / answer_mask(labels).sum(1)
