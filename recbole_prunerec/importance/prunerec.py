"""PruneRec's own criterion (METHOD 2-3): what it scores at the width and at the MLP step. Layers are searched for, in `layers.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.importance.heads import Positions, head_importance, normalise_and_recurse
from recbole_prunerec.importance.hidden import HiddenScore, hidden_importance
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.mlp import mlp_importance
from recbole_prunerec.importance.scores import Scores


def width_scores(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    recursion: float = 0.7,
    epsilon: float = 0.0,
    positions: Positions = "answer",
    hidden_score: HiddenScore = "product",
    greedy: Callable[[Tensor], Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Heads (layer, head) and hidden dimensions (hidden,), both measured on the same model (Stage I). `greedy`: see `head_importance`."""
    kl = head_importance(model, batches, epsilon, positions, greedy, progress)
    return Scores(heads=normalise_and_recurse(kl, recursion), hidden=hidden_importance(model, batches, hidden_score), head_kl=kl)


def mlp_scores(model: PreTrainedModel, batches: Sequence[Batch], tau: float | None = None, quantile: float = 0.9) -> Scores:
    """MLP dimensions (layer, intermediate), with what decides their ties (Stage II)."""
    share, magnitude = mlp_importance(model, batches, tau, quantile)
    return Scores(mlp=share, mlp_ties=magnitude)
