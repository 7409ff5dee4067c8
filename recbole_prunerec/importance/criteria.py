"""The criteria by name. A new one is a file in this folder, a row here, and its name in the settings of the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec import settings
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.importance import blockpruner, flap, laco, llm_pruner, minitron, prunerec, shortgpt, sparsegpt, wanda
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.magnitude import magnitude_scores
from recbole_prunerec.importance.random import random_scores
from recbole_prunerec.importance.scores import Scores

Width = Callable[
    [PreTrainedModel, Sequence[Batch], Softmax, settings.Width, Sequence[int], Progress | None, Callable[[Tensor], Sequence[int]]], Scores
]
Mlp = Callable[[PreTrainedModel, Sequence[Batch], Softmax, settings.Mlp, Sequence[int], Progress | None], Scores]
Depth = Callable[[PreTrainedModel, Sequence[Batch], Softmax, settings.Depth, Sequence[int], Progress | None], Scores]


class Criterion(NamedTuple):
    """What scores the parts of a model at each kind of step, from calibration batches, their softmax, the step's settings, and a seed to draw by.

    It gives `Scores` and never cuts. Batches are this process's share of the samples; scores are those of all samples, the same in every process. For
    width it scores heads, hidden dimensions where it can, and may ask which heads will go, by the scores (head,) of their layer. None: it cannot
    score what that step cuts, and the step's settings do not name it.
    """

    width: Width | None
    mlp: Mlp | None
    depth: Depth | None


CRITERIA = {
    "prunerec": Criterion(prunerec.width_scores, prunerec.mlp_scores, prunerec.layer_scores),
    "random": Criterion(random_scores, random_scores, random_scores),
    "magnitude": Criterion(magnitude_scores, magnitude_scores, magnitude_scores),
    "wanda": Criterion(wanda.width_scores, wanda.mlp_scores, None),
    "sparsegpt": Criterion(sparsegpt.width_scores, sparsegpt.mlp_scores, None),
    "llm_pruner": Criterion(llm_pruner.width_scores, llm_pruner.mlp_scores, None),
    "flap": Criterion(flap.width_scores, flap.mlp_scores, None),
    "minitron": Criterion(minitron.width_scores, minitron.mlp_scores, minitron.layer_scores),
    "shortgpt": Criterion(None, None, shortgpt.layer_scores),
    "laco": Criterion(None, None, laco.layer_scores),
    "blockpruner": Criterion(None, None, blockpruner.layer_scores),
}
