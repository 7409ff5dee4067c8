"""Magnitude: a part matters as much as its weights are large. Nothing is measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of, state_of
from recbole_prunerec.importance.inputs import weight_of
from recbole_prunerec.importance.scores import Scores


def magnitude_scores(model: PreTrainedModel, *_: Any) -> Scores:
    """Sums of |weight|: over a head's rows of q_proj and columns of o_proj, a hidden dimension's column of the embedding, an MLP dimension's rows of
    gate_proj and up_proj and column of down_proj, and all matrices of a layer."""
    family, sizes = family_of(model.config), Sizes.of(model)

    def absolute(part: str, axis: int) -> Tensor:
        """(layer, row or column): a matrix of every layer, summed over `axis`."""
        return torch.stack([weight_of(model, part, layer).abs().sum(axis) for layer in range(sizes.layers)])

    heads = absolute(family.q, 1) + absolute(family.o, 0)
    matrices = (family.q, family.k, family.v, family.o, family.gate, family.up, family.down)
    return Scores(
        heads=heads.unflatten(1, (sizes.heads, -1)).sum(2).cpu(),
        hidden=state_of(model)[family.embedding + ".weight"].double().abs().sum(0).cpu(),
        mlp=(absolute(family.gate, 1) + absolute(family.up, 1) + absolute(family.down, 0)).cpu(),
        layers=torch.stack([absolute(part, 0).sum(1) for part in matrices]).sum(0).cpu(),
    )
