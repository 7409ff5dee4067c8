"""Minitron (Muralidharan et al., arXiv 2407.14679): activations alone, their mean over a sample's positions and the Euclidean norm over samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.inputs import Reduce, over_layers
from recbole_prunerec.importance.prunerec import layer_scores as search_scores
from recbole_prunerec.importance.scores import Scores
from recbole_prunerec.settings import Depth


def width_scores(model: PreTrainedModel, batches: Sequence[Batch], *_: Any) -> Scores:
    """A head's activation is the norm of its output; a hidden dimension's is |output| of a layer's two norms, summed over all of them."""
    family, sizes = family_of(model.config), Sizes.of(model)
    normed = (family.q, family.gate)  # what the norms give enters here

    def judge(layer: int, sums: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return sums[family.o].sqrt().cpu(), sum(sums[part].sqrt().cpu() for part in normed)  # type: ignore[return-value]  # there are two

    parts: dict[str, Reduce] = {family.o: lambda entering, mask: _row_squares(entering.unflatten(2, (sizes.heads, -1)).norm(dim=3), mask)}
    heads, hidden = zip(*over_layers(model, batches, parts | dict.fromkeys(normed, _row_squares), judge), strict=True)
    return Scores(heads=torch.stack(heads), hidden=torch.stack(hidden).sum(0))


def mlp_scores(model: PreTrainedModel, batches: Sequence[Batch], *_: Any) -> Scores:
    """An MLP dimension's activation is what enters down_proj."""
    down = family_of(model.config).down
    return Scores(mlp=torch.stack(over_layers(model, batches, {down: _row_squares}, lambda layer, sums: sums[down].sqrt().cpu())))


def layer_scores(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Depth, seed: Sequence[int], progress: Progress | None
) -> Scores:
    """Layers by the perplexity without each, measured once."""
    return search_scores(model, batches, softmax, step.model_copy(update={"search": "oneshot"}), seed, progress)


def _row_squares(values: Tensor, mask: Tensor) -> Tensor:
    """The squares over rows of each row's mean of |values| (row, position, width) over its positions. Shape (width,)."""
    means = (values.abs() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return means.square().sum(0)
