"""RecBole's own sequential models by name, and the binary cross-entropy that they lack."""

from __future__ import annotations

import importlib

import torch
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recbole_prunerec.compared.list_losses import binary_cross_entropy


def recbole_class(name: str) -> type[AbstractRecommender]:
    """The class of one of RecBole's sequential models."""
    module = importlib.import_module(f"recbole.model.sequential_recommender.{name.lower()}")
    torch.autograd.set_detect_anomaly(False)  # RecBole's SINE turns it on when imported, for the whole process: training takes twice as long
    return getattr(module, name)


class BinaryCrossEntropy(nn.Module):
    """`binary_cross_entropy` of a target against one negative, mean over rows: SASRec's own loss."""

    def forward(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Scores (row,) each."""
        return binary_cross_entropy(positive, negative).mean()


def use_binary_cross_entropy(model: AbstractRecommender) -> None:
    """Put it in the place of `model`'s BPR, which scores the same pairs. Raises `ValueError` where the model has none."""
    if not isinstance(getattr(model, "loss_fct", None), BPRLoss):
        raise ValueError("loss_type=BCE takes the place of BPR, which this model does not have; choose another loss_type, or SASRec, GRU4Rec, Caser")
    model.loss_fct = BinaryCrossEntropy()
