"""Layer importance: how much worse the answers are predicted with a layer bypassed (METHOD 4, eq. 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch, answer_logits
from recbole_prunerec.errors import UserError
from recbole_prunerec.importance.hooks import Progress, bypassed, evaluating

Search = Literal["greedy", "oneshot"]


@dataclass(frozen=True)
class LayerSearch:
    """The layers that stay, in order, and what was measured on the way: one round for `oneshot`, one a removed layer for `greedy`."""

    kept: list[int]
    base: float  # mean negative log-likelihood of an answer token in the uncut model, nats; exp of it is the perplexity
    rounds: list[dict[int, float]]  # for each layer still there, the same with it bypassed too


def layer_order(
    model: PreTrainedModel, batches: Sequence[Batch], keep: int, search: Search = "greedy", progress: Progress | None = None
) -> LayerSearch:
    """Remove the layer whose absence costs the least perplexity, until `keep` are left; a tie goes to the higher index.

    `greedy` measures again after each removal, `oneshot` once. `progress` wraps the loop over the rounds. Raises `UserError` where the model does
    not have `keep` layers.
    """
    count = Sizes.of(model).layers
    if not 1 <= keep <= count:
        raise UserError(f"layers={keep} is not between 1 and {count}, the layers of the model")
    base, kept = mean_nll(model, batches), list(range(count))
    rounds: list[dict[int, float]] = []
    times, at_once = (count - keep, 1) if search == "greedy" else (1, count - keep)
    for _ in (progress or iter)(range(times)):
        gone = set(range(count)) - set(kept)
        nll: dict[int, float] = {}
        for layer in kept:
            with bypassed(model, gone | {layer}):
                nll[layer] = mean_nll(model, batches)
        rounds.append(nll)
        removed = sorted(kept, key=lambda layer: (nll[layer], -layer))[:at_once]
        kept = [layer for layer in kept if layer not in removed]
    return LayerSearch(kept, base, rounds)


def mean_nll(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Mean negative log-likelihood, in nats, over all answer tokens of all samples."""
    total, tokens = 0.0, 0
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            answers = answer_logits(model, batch)
            logits = answers.logits.to(torch.promote_types(answers.logits.dtype, torch.float32))
            total += float(functional.cross_entropy(logits, answers.targets, reduction="none").double().sum())
            tokens += len(answers.targets)
    return total / tokens
