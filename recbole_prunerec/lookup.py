"""Which class runs a model: ours by a table, RecBole's by name."""

from __future__ import annotations

import importlib

import torch
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import Trainer
from recbole.utils import get_trainer

from recbole_prunerec.model.popularity import Popularity
from recbole_prunerec.model.prunerec import PruneRec
from recbole_prunerec.trainer import CountingTrainer, PruneRecTrainer, RankedEvaluation

MODELS: dict[str, type[AbstractRecommender]] = {"PruneRec": PruneRec, "Popularity": Popularity}
TRAINERS: dict[str, type[Trainer]] = {"PruneRec": PruneRecTrainer, "Popularity": CountingTrainer}


def model_class(name: str) -> type[AbstractRecommender]:
    """The class of a model whose name was validated before."""
    if name in MODELS:
        return MODELS[name]
    module = importlib.import_module(f"recbole.model.sequential_recommender.{name.lower()}")
    torch.autograd.set_detect_anomaly(False)  # RecBole's SINE turns it on when imported, for the whole process: training takes twice as long
    return getattr(module, name)


def trainer_class(name: str) -> type[Trainer]:
    """The trainer of a model: ours, or RecBole's with ranked evaluation."""
    if name in TRAINERS:
        return TRAINERS[name]
    theirs = get_trainer(model_class(name).type, name)
    return type(theirs.__name__, (RankedEvaluation, theirs), {})
