"""PruneRec's own criterion (METHOD 2-4): what it scores at each kind of step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.importance.heads import head_importance, normalise_and_recurse
from recbole_prunerec.importance.hidden import hidden_importance
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.layers import layer_order
from recbole_prunerec.importance.mlp import mlp_importance
from recbole_prunerec.importance.scores import Scores
from recbole_prunerec.settings import Depth, Mlp, Width


def width_scores(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    softmax: Softmax,
    step: Width,
    seed: Sequence[int],
    progress: Progress | None,
    removed: Callable[[Tensor], Sequence[int]],
) -> Scores:
    """Heads (layer, head) and hidden dimensions (hidden,), both measured on the same model (Stage I).

    With `step.greedy`, `removed` names the heads that will go by the scores (head,) of their layer.
    """

    def greedy(kl: Tensor) -> Sequence[int]:
        return removed(normalise_and_recurse(kl, step.recursion)[-1])

    kl = head_importance(model, batches, softmax, step.head_epsilon, step.kl_positions, greedy if step.greedy else None, progress)
    return Scores(heads=normalise_and_recurse(kl, step.recursion), hidden=hidden_importance(model, batches, softmax, step.hidden_score), head_kl=kl)


def mlp_scores(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Mlp, seed: Sequence[int], progress: Progress | None
) -> Scores:
    """MLP dimensions (layer, intermediate), with what decides their ties (Stage II)."""
    share, magnitude = mlp_importance(model, batches, step.tau, step.quantile)
    return Scores(mlp=share, mlp_ties=magnitude)


def layer_scores(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Depth, seed: Sequence[int], progress: Progress | None
) -> Scores:
    """Layers (layer,), 1 for those that the search keeps and 0 for the others (Stage III): what a layer costs depends on which are gone already."""
    search = layer_order(model, batches, softmax, step.layers, step.search, progress)
    layers = torch.zeros(Sizes.of(model).layers, dtype=torch.float64)
    layers[search.kept] = 1.0
    return Scores(layers=layers, search=search)
