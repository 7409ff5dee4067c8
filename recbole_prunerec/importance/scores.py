"""What a criterion returns: a score for each part of a model, higher meaning keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recbole_prunerec.errors import UserError
from recbole_prunerec.importance.layers import LayerSearch

OVERFLOW = "importance scores ({}) are not finite: the model's outputs overflow in this precision; use float32 or bfloat16"

# From the indices that stay in each layer, in the model's own numbers, to new weights by name, of the sizes before the cut.
Update = Callable[[Sequence[Sequence[int]]], dict[str, Tensor]]


@dataclass(frozen=True)
class Scores:
    """Scores in float64; a part that a criterion does not judge is None. Raises `UserError` where a score is not finite."""

    heads: Tensor | None = None  # (layer, head)
    hidden: Tensor | None = None  # (hidden,)
    mlp: Tensor | None = None  # (layer, intermediate)
    layers: Tensor | None = None  # (layer,)
    mlp_ties: Tensor | None = None  # (layer, intermediate) decides between equal `mlp` scores
    head_kl: Tensor | None = None  # (layer, head) the divergences behind `heads`, for heat maps
    halves: Tensor | None = None  # (layer, 2) attention and MLP, 1 for those that stay: instead of `layers`
    search: LayerSearch | None = None  # what was measured to find `layers`, for bars
    update: Update | None = None  # what changes the weights of what stays

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            if isinstance(values, Tensor) and not torch.isfinite(values).all():
                raise UserError(OVERFLOW.format(field.name))
