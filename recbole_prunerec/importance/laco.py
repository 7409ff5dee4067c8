"""LaCo (Yang et al., arXiv 2402.11187): runs of layers are merged into their lowest, where the final states hardly change.

From the top down, layer l and the up to `MERGED` - 1 above it become theta_l + sum_k (theta_{l+k} - theta_l). A merged layer may be merged again, so
that each is a combination of the model's own layers, held as its factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of, state_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.distributed import total
from recbole_prunerec.errors import UserError
from recbole_prunerec.importance.hooks import Progress, bypassed, evaluating
from recbole_prunerec.importance.scores import OVERFLOW, Scores
from recbole_prunerec.settings import Depth

MERGED = 4  # layers that become one at most, and
INTERVAL = 2  # layers that the walk goes down after each merge: the paper's for Llama 2 7B
HALVINGS = 10  # of the interval of thresholds, from -1 to 1


class Layer(NamedTuple):
    """A layer that stays: its place in the model, and the factors (layer,) of the model's layers that it is made of."""

    place: int
    factors: tuple[int, ...]


Stack = tuple[Layer, ...]


def layer_scores(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Depth, seed: Sequence[int], progress: Progress | None
) -> Scores:
    """1 for the layers that the others are merged into, 0 for the others; merged by the highest threshold that leads to `step.layers`."""
    count = Sizes.of(model).layers
    with torch.no_grad(), evaluating(model):
        original = [_final_states(model, batch, unmerged(count)) for batch in batches]

        @cache
        def similarity(layers: Stack) -> float:
            """Mean over samples of the cosine of the final states, all of a sample's as one vector, with those of the whole model."""
            cosines = torch.zeros((), dtype=torch.float64)
            for batch, states in zip(batches, original, strict=True):
                cosines += cosine_similarity(states, _final_states(model, batch, layers), dim=1).double().sum().cpu()
            return float(total(cosines) / total(torch.tensor(sum(map(len, original)))))

        low, high, best = -1.0, 1.0, merge_to(unmerged(count), step.layers, -1.0, similarity)
        for _ in (progress or iter)(range(HALVINGS)):
            threshold = (low + high) / 2
            found = merge_to(unmerged(count), step.layers, threshold, similarity)
            low, high, best = (threshold, high, found) if found else (low, threshold, best)
        if best is None:
            raise UserError(OVERFLOW.format("layers"))
        weights = merged_weights(model, best)
    layers = torch.zeros(count, dtype=torch.float64)
    layers[[layer.place for layer in best]] = 1.0
    return Scores(layers=layers, update=lambda kept: weights)


def unmerged(count: int) -> Stack:
    """A model's own `count` layers."""
    return tuple(Layer(place, tuple(int(place == other) for other in range(count))) for place in range(count))


def merge(layers: Stack, at: int, size: int) -> Stack:
    """Layer `at` and those above it, `size` in all, as one: theta_l + sum_k (theta_{l+k} - theta_l)."""
    base, *above = layers[at : at + size]
    factors = tuple(own + sum(other[place] - own for _, other in above) for place, own in enumerate(base.factors))
    return (*layers[:at], Layer(base.place, factors), *layers[at + size :])


def merge_to(layers: Stack, keep: int, threshold: float, similarity: Callable[[Stack], float]) -> Stack | None:
    """Walk down, again and again, and merge where the similarity stays at `threshold` or above, until `keep` are left.

    None where a walk merges nothing.
    """
    while len(layers) > keep:
        before, at = layers, max(0, len(layers) - MERGED)
        while at >= 0 and len(layers) > keep:
            merged = merge(layers, at, min(MERGED, len(layers) - at, len(layers) - keep + 1))
            if similarity(merged) >= threshold:
                layers, at = merged, min(at - INTERVAL, len(merged) - MERGED)
            else:
                at -= 1
        if layers == before:
            return None
    return layers


def merged_weights(model: PreTrainedModel, layers: Stack) -> dict[str, Tensor]:
    """The weights, norms and biases included, of those of `layers` that are merged, by the names that they have in the model."""
    family, weights, new = family_of(model.config), state_of(model), {}
    for place, factors in layers:
        if [index for index, factor in enumerate(factors) if factor] == [place]:
            continue
        prefix = family.layer.format(place)
        for name in (name for name in weights if name.startswith(prefix)):
            parts = (factor * weights[family.layer.format(index) + name.removeprefix(prefix)] for index, factor in enumerate(factors) if factor)
            new[name] = sum(parts, torch.zeros_like(weights[name]))
    return new


def _final_states(model: PreTrainedModel, batch: Batch, layers: Stack) -> Tensor:
    """The final hidden states of each sample, those of padding being zero. Shape (row, position * hidden)."""
    outer = model.base_model_prefix + "."
    weights = {name.removeprefix(outer): weight for name, weight in merged_weights(model, layers).items()}
    gone = set(range(Sizes.of(model).layers)) - {layer.place for layer in layers}
    with bypassed(model, gone):
        states = functional_call(model.base_model, weights, kwargs={"input_ids": batch["input_ids"], "use_cache": False}).last_hidden_state
    return (states * batch["attention_mask"][..., None]).flatten(1)
