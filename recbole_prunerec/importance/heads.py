"""Attention-head importance: how far the answer moves when a head is suppressed (METHOD 2, eq. 3-6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch, answer_mask, mean_by_row
from recbole_prunerec.importance.hooks import Progress, bypassed, evaluating, suppressed, watching

Positions = Literal["answer", "first"]


def head_importance(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    epsilon: float = 0.0,
    positions: Positions = "answer",
    greedy: Callable[[Tensor], Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """KL(p || p_suppressed) of each head, in nats, before any normalisation (eq. 4). Shape (layer, head), float64.

    The mean runs over a sample's answer positions (`first`: only the last prompt position), then over the samples, one a row. p is always the
    unsuppressed model. `greedy` is called after each layer with the (layers so far, head) divergences and names the heads of the last of them to
    keep suppressed while later layers are measured. `progress` wraps the loop over the layers.

    The layers below the one at hand see no change, so they run once and not once a head.
    """
    sizes = Sizes.of(model)
    kl = torch.zeros(sizes.layers, sizes.heads, dtype=torch.float64)
    samples = sum(len(batch["input_ids"]) for batch in batches)
    masks = [_position_mask(batch["labels"], positions) for batch in batches]
    with torch.no_grad(), evaluating(model):
        entering = [model.get_input_embeddings()(batch["input_ids"]) for batch in batches]
        final = [_final(model, stream, batch, mask) for stream, batch, mask in zip(entering, batches, masks, strict=True)]
        for layer in (progress or iter)(range(sizes.layers)):
            with bypassed(model, range(layer)):
                for stream, batch, mask, unsuppressed in zip(entering, batches, masks, final, strict=True):
                    log_p = _log_probabilities(model, unsuppressed)
                    rows = mask.nonzero()[:, 0]
                    for head in range(sizes.heads):
                        with suppressed(model, layer, [head], epsilon):
                            log_q = _log_probabilities(model, _final(model, stream, batch, mask))
                        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
                        kl[layer, head] += mean_by_row(divergence, rows, len(mask)).double().sum().cpu() / samples
            stay_suppressed = greedy(kl[: layer + 1]) if greedy else []
            entering = _leaving(model, layer, stay_suppressed, epsilon, entering, batches)
    return kl


def _position_mask(labels: Tensor, positions: Positions) -> Tensor:
    mask = answer_mask(labels)
    return mask & (mask.cumsum(1) == 1) if positions == "first" else mask


def _final(model: PreTrainedModel, stream: Tensor, batch: Batch, mask: Tensor) -> Tensor:
    """The final hidden states (position, hidden) at `mask`, with `stream` (batch, position, hidden) entering the layers that are not bypassed."""
    return model.base_model(inputs_embeds=stream, attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state[mask]


def _leaving(
    model: PreTrainedModel, layer: int, heads: Sequence[int], epsilon: float, streams: list[Tensor], batches: Sequence[Batch]
) -> list[Tensor]:
    """What leaves `layer`, its `heads` suppressed, when `streams` enter it."""
    family = family_of(model.config)
    others = [index for index in range(Sizes.of(model).layers) if index != layer]
    leaving: list[Tensor] = []
    with (
        bypassed(model, others),
        suppressed(model, layer, heads, epsilon),
        watching(model, [f"{family.layers}.{layer}"], lambda name, entering, output: leaving.append(output)),
    ):
        for stream, batch in zip(streams, batches, strict=True):
            model.base_model(inputs_embeds=stream, attention_mask=batch["attention_mask"], use_cache=False)
    return leaving


def _log_probabilities(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    logits = model.get_output_embeddings()(hidden)
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def normalise_and_recurse(kl: Tensor, recursion: float = 0.7) -> Tensor:
    """Head scores from divergences (eq. 5-6): min-max inside each layer, then each layer mixed with the one before. Shapes (layer, head).

    A layer whose heads are all equal is 1 throughout. s[0] = own, s[l+1] = recursion * s[l] + (1 - recursion) * own[l+1].
    """
    low, high = kl.amin(1, keepdim=True), kl.amax(1, keepdim=True)
    own = torch.where(high > low, (kl - low) / (high - low), 1.0)
    scores = [own[0]]
    for layer in own[1:]:
        scores.append(recursion * scores[-1] + (1 - recursion) * layer)
    return torch.stack(scores)
