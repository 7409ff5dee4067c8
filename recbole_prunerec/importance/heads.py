"""Attention-head importance: how far the answer moves when a head is suppressed (METHOD 2, eq. 3-6).

Suppressing a head changes what its layer's attention adds to the stream, and nothing below. So that attention runs twice, as it is and with all heads
suppressed, which gives the change that each head makes; the streams with one change each then go through the rest of the model side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch, mean_by_row
from recbole_prunerec.backbone.softmax import IGNORE, Part, Softmax, part_logits
from recbole_prunerec.distributed import total
from recbole_prunerec.importance.hooks import Progress, attending, evaluating, suppressed, watching
from recbole_prunerec.importance.streams import after_layer, embedded, final_states

Positions = Literal["answer", "first"]

TOKENS_AT_ONCE = {"cpu": 2**12, "cuda": 2**16}  # tokens of changed streams that go through the model at once, where one head's are fewer


def head_importance(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    softmax: Softmax,
    epsilon: float = 0.0,
    positions: Positions = "answer",
    greedy: Callable[[Tensor], Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """KL(p || p_suppressed) of each head, in nats, before any normalisation (eq. 4). Shape (layer, head), float64.

    The mean runs over a sample's answer positions (`first`: only the last prompt position), then over the samples of all processes, one a row. p is
    always the unsuppressed model. `greedy` is called after each layer with the (layers so far, head) divergences and names the heads of the last of
    them to keep suppressed while later layers are measured. `progress` wraps the loop over the layers.
    """
    sizes = Sizes.of(model)
    kl = torch.zeros(sizes.layers, sizes.heads, dtype=torch.float64)
    samples = total(torch.tensor(sum(len(batch["labels"]) for batch in batches)))
    labels = [_first(batch["labels"]) if positions == "first" else batch["labels"] for batch in batches]
    masks = [softmax.positions(known) for known in labels]
    with torch.no_grad(), evaluating(model):
        streams = [embedded(model, batch) for batch in batches]
        final = [final_states(model, 0, stream)[mask] for stream, mask in zip(streams, masks, strict=True)]
        for layer in (progress or iter)(range(sizes.layers)):
            for stream, known, mask, unsuppressed in zip(streams, labels, masks, final, strict=True):
                changed = _suppressed_states(model, layer, epsilon, stream, mask)
                parts = softmax.parts(known, changed.shape[-1])
                divergences = _divergences(model.get_output_embeddings().weight, unsuppressed, changed, parts).double()
                kl[layer] += torch.stack([mean_by_row(values, mask, known).sum() for values in divergences]).cpu()
            kl[layer] = total(kl[layer]) / samples
            with suppressed(model, layer, greedy(kl[: layer + 1]) if greedy else [], epsilon):
                streams = [after_layer(model, layer, stream) for stream in streams]
    return kl


def _first(labels: Tensor) -> Tensor:
    """`labels` (batch, position) with the first answer token of a row alone."""
    return labels.masked_fill((labels != IGNORE).cumsum(1) != 1, IGNORE)


def _suppressed_states(model: PreTrainedModel, layer: int, epsilon: float, stream: Tensor, mask: Tensor) -> Tensor:
    """The final hidden states at `mask` (batch, position) with each head of `layer` suppressed in turn. Shape (head, answer, hidden).

    `stream` (batch, position, hidden) enters the layer. A head's output depends on no other head of its layer.
    """
    family, sizes = family_of(model.config), Sizes.of(model)
    seen: list[tuple[Tensor, Tensor]] = []
    with watching(model, [family.layer.format(layer) + family.o], lambda _, heads, output: seen.append((heads, output))):
        after_layer(model, layer, stream)
        with suppressed(model, layer, range(sizes.heads), epsilon):
            after_layer(model, layer, stream)
    (own, attended), (apart, _) = seen
    change = (apart - own).unflatten(-1, (sizes.heads, -1))
    weight = family.module(model, family.o, layer).get_parameter("weight").unflatten(-1, (sizes.heads, -1))
    at_once = max(1, TOKENS_AT_ONCE.get(stream.device.type, TOKENS_AT_ONCE["cuda"]) // mask.numel())
    states = []
    for heads in torch.arange(sizes.heads, device=stream.device).split(at_once):
        output = attended + torch.einsum("bphk,dhk->hbpd", change[:, :, heads], weight[:, heads])
        with attending(model, layer, output.flatten(0, 1)):
            hidden = final_states(model, layer, stream.expand(len(heads), *stream.shape).flatten(0, 1))
        states.append(hidden.unflatten(0, (len(heads), -1))[:, mask])
    return torch.cat(states)


def _divergences(weight: Tensor, unsuppressed: Tensor, changed: Tensor, parts: Sequence[Part]) -> Tensor:
    """KL(p || p_suppressed) from final hidden states (answer, hidden) and (head, answer, hidden). Shape (head, answer)."""
    found = changed.new_zeros(changed.shape[:2], dtype=torch.promote_types(changed.dtype, torch.float32))
    for part in parts:
        log_p = _log_probabilities(part_logits(part, unsuppressed, weight))
        p = log_p.exp()
        for head, states in enumerate(changed):
            found[head, part.places] = (p * (log_p - _log_probabilities(part_logits(part, states, weight)))).sum(-1)
    return found


def _log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax, with -inf, where there is no token, made finite: 0 * log 0 is 0."""
    return torch.log_softmax(logits, -1).clamp_min(torch.finfo(logits.dtype).min)


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
