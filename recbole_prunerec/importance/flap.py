"""FLAP (An et al., arXiv 2312.11983): parts whose output hardly fluctuates go, since a constant could stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of, state_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.importance.inputs import over_layers, position_count, weight_of
from recbole_prunerec.importance.scores import Scores, Update


def width_scores(model: PreTrainedModel, batches: Sequence[Batch], *_: Any) -> Scores:
    """A head's score is the mean over its columns of o_proj."""
    sizes, part = Sizes.of(model), family_of(model.config).o
    columns, means = _measured(model, batches, part)
    update = _compensation(model, part, means, sizes.head_dim) if sizes.o_bias else None
    return Scores(heads=columns.unflatten(1, (sizes.heads, -1)).mean(2), update=update)


def mlp_scores(model: PreTrainedModel, batches: Sequence[Batch], *_: Any) -> Scores:
    """An MLP dimension's score is that of its column of down_proj."""
    part = family_of(model.config).down
    columns, means = _measured(model, batches, part)
    return Scores(mlp=columns, update=_compensation(model, part, means, 1) if Sizes.of(model).mlp_bias else None)


def _measured(model: PreTrainedModel, batches: Sequence[Batch], part: str) -> tuple[Tensor, Tensor]:
    """`fluctuation` of the columns of a matrix of every layer, standardised within the layer, and the means of its inputs. Both (layer, input)."""
    tokens = position_count(batches)

    def judge(layer: int, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        mean, square = sums[part] / tokens.to(sums[part])
        return standardised(fluctuation(weight_of(model, part, layer), square - mean.square())).cpu(), mean.cpu()

    columns, means = zip(*over_layers(model, batches, {part: _moments}, judge), strict=True)
    return torch.stack(columns), torch.stack(means)


def _moments(entering: Tensor, mask: Tensor) -> Tensor:
    tokens = entering[mask]
    return torch.stack([tokens.sum(0), tokens.square().sum(0)])


def fluctuation(weight: Tensor, variance: Tensor) -> Tensor:
    """Var(X_j) * ||W_:j||^2, the variance being over all tokens. Shape (input,)."""
    return variance.clamp_min(0) * weight.square().sum(0)


def standardised(values: Tensor) -> Tensor:
    """(value - mean) / standard deviation, so that layers compare; 0 where all are equal."""
    deviation = values.std(correction=0)
    return (values - values.mean()) / torch.where(deviation > 0, deviation, 1.0)


def _compensation(model: PreTrainedModel, part: str, means: Tensor, size: int) -> Update:
    """From the blocks of `size` columns that stay in each layer to new biases: the mean output of what goes is added."""

    def update(kept: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        family, weights, new = family_of(model.config), state_of(model), {}
        for layer, blocks in enumerate(kept):
            gone = means[layer].unflatten(0, (-1, size)).clone()
            gone[list(blocks)] = 0
            name = f"{family.layer.format(layer)}{part}.bias"
            new[name] = weights[name] + (weight_of(model, part, layer) @ gone.flatten().to(model.device)).to(weights[name])
        return new

    return update
