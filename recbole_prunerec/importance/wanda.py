"""WANDA (Sun et al., arXiv 2306.11695), structured as in FLAP's "Wanda-sp": weights times the norms of what they are multiplied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.importance.inputs import over_layers, squares, weight_of
from recbole_prunerec.importance.scores import Scores


def width_scores(model: PreTrainedModel, batches: Sequence[Batch], *_: Any) -> Scores:
    """A head's score is the sum over its columns of o_proj, a hidden dimension's that over its columns of q, k, v, gate and up of all layers."""
    family, sizes = family_of(model.config), Sizes.of(model)
    readers = {family.q: (family.q, family.k, family.v), family.gate: (family.gate, family.up)}  # of what enters the first of them

    def judge(layer: int, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        heads = column_scores(weight_of(model, family.o, layer), sums[family.o]).view(sizes.heads, -1).sum(1)
        hidden = [column_scores(weight_of(model, part, layer), sums[first]) for first, parts in readers.items() for part in parts]
        return heads.cpu(), torch.stack(hidden).sum(0).cpu()

    heads, hidden = zip(*over_layers(model, batches, dict.fromkeys((family.o, *readers), squares), judge), strict=True)
    return Scores(heads=torch.stack(heads), hidden=torch.stack(hidden).sum(0))


def mlp_scores(model: PreTrainedModel, batches: Sequence[Batch], *_: Any) -> Scores:
    """An MLP dimension's score is that of its column of down_proj."""
    down = family_of(model.config).down
    layers = over_layers(model, batches, {down: squares}, lambda layer, sums: column_scores(weight_of(model, down, layer), sums[down]).cpu())
    return Scores(mlp=torch.stack(layers))


def column_scores(weight: Tensor, squared: Tensor) -> Tensor:
    """Mean over the rows i of |W_ij| * ||X_j||, X_j being input feature j at all tokens, whose squares are summed in `squared`. Shape (input,)."""
    return weight.abs().mean(0) * squared.sqrt()
