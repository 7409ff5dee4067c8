"""BlockPruner (Zhong et al., arXiv 2406.10594): attention and MLP of every layer are halves of their own, and the one whose absence costs the least
perplexity goes, again and again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack

import torch
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.distributed import total
from recbole_prunerec.importance.hooks import HALVES, Half, Progress, evaluating, silent
from recbole_prunerec.importance.layers import answer_nll, answer_tokens
from recbole_prunerec.importance.scores import Scores
from recbole_prunerec.importance.streams import after_layer, embedded, final_states
from recbole_prunerec.settings import Depth

Place = tuple[int, Half]  # a half and its layer


def layer_scores(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Depth, seed: Sequence[int], progress: Progress | None
) -> Scores:
    """Halves, 1 for the 2 * `step.layers` that stay and 0 for the others; a tie goes to the higher layer, there to the MLP."""
    kept = [(layer, half) for layer, stays in enumerate(Sizes.of(model).halves_by_layer) for half in HALVES if stays in ("both", half)]
    for _ in (progress or iter)(range(len(kept) - 2 * step.layers)):
        nll = silenced_nll(model, batches, softmax, kept)
        kept.remove(min(reversed(kept), key=nll.__getitem__))
    halves = torch.zeros(Sizes.of(model).layers, len(HALVES), dtype=torch.float64)
    for layer, half in kept:
        halves[layer, HALVES.index(half)] = 1.0
    return Scores(halves=halves)


def silenced_nll(model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, kept: Collection[Place]) -> dict[Place, float]:
    """Mean negative log-likelihood of an answer token, in nats, of the halves `kept` without each in turn.

    The stream goes up once; where it enters a layer, that layer and those above run on it without each of its halves.
    """
    sums, layers = dict.fromkeys(kept, 0.0), range(Sizes.of(model).layers)
    with torch.no_grad(), evaluating(model), ExitStack() as gone:
        for half in HALVES:
            gone.enter_context(silent(model, half, [layer for layer in layers if (layer, half) not in kept]))
        for batch in batches:
            stream, mask = embedded(model, batch), softmax.positions(batch["labels"])
            for layer in layers:
                for half in HALVES:
                    if (layer, half) in kept:
                        with silent(model, half, [layer]):
                            sums[layer, half] += answer_nll(model, final_states(model, layer, stream)[mask], batch, softmax)
                stream = after_layer(model, layer, stream)
    means = total(torch.tensor(list(sums.values()), dtype=torch.float64)) / answer_tokens(batches)
    return dict(zip(sums, means.tolist(), strict=True))
