"""The criteria by name. A new one is a file in this folder, a row here, and its name in the settings of the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.prunerec import layer_scores, mlp_scores, width_scores
from recbole_prunerec.importance.random import random_scores
from recbole_prunerec.importance.scores import Scores
from recbole_prunerec.settings import Depth, Mlp, Width


class Criterion(NamedTuple):
    """What scores the parts of a model at each kind of step, from calibration batches, their softmax, the step's settings, and a seed to draw by.

    It gives `Scores` and never cuts. Batches are this process's share of the samples; scores are those of all samples, the same in every process. For
    width it may ask which heads will go, by the scores (head,) of their layer.
    """

    width: Callable[[PreTrainedModel, Sequence[Batch], Softmax, Width, Sequence[int], Progress | None, Callable[[Tensor], Sequence[int]]], Scores]
    mlp: Callable[[PreTrainedModel, Sequence[Batch], Softmax, Mlp, Sequence[int], Progress | None], Scores]
    depth: Callable[[PreTrainedModel, Sequence[Batch], Softmax, Depth, Sequence[int], Progress | None], Scores]


CRITERIA = {
    "prunerec": Criterion(width_scores, mlp_scores, layer_scores),
    "random": Criterion(random_scores, random_scores, random_scores),
}
