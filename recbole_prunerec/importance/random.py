"""Random scores: the criterion that every other has to beat (the paper's Table 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.scores import Scores
from recbole_prunerec.settings import PruningStep


def random_scores(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    softmax: Softmax,
    step: PruningStep,
    seed: Sequence[int],
    progress: Progress | None = None,
    removed: Callable[[Tensor], Sequence[int]] | None = None,
) -> Scores:
    """A score from 0 to 1 for every part of the model, drawn evenly by `seed`. Nothing is measured."""
    sizes, generator = Sizes.of(model), np.random.default_rng(seed)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(generator.random(shape))

    return Scores(
        heads=draw(sizes.layers, sizes.heads),
        hidden=draw(sizes.hidden),
        mlp=draw(sizes.layers, sizes.intermediate),
        layers=draw(sizes.layers),
    )
