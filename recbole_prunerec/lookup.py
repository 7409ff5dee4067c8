"""Which class runs a model: ours by a table, RecBole's by name."""

from __future__ import annotations

from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import Trainer
from recbole.utils import get_trainer

from recbole_prunerec.model.dllm2rec import DLLM2Rec
from recbole_prunerec.model.popularity import Popularity
from recbole_prunerec.model.prunerec import PruneRec
from recbole_prunerec.model.slmrec import E4SRec, SLMRec
from recbole_prunerec.model.theirs import recbole_class
from recbole_prunerec.trainer import CountingTrainer, PruneRecTrainer, RankedEvaluation

MODELS: dict[str, type[AbstractRecommender]] = {
    "PruneRec": PruneRec,
    "Popularity": Popularity,
    "DLLM2Rec": DLLM2Rec,
    "E4SRec": E4SRec,
    "SLMRec": SLMRec,
}
TRAINERS: dict[str, type[Trainer]] = {"PruneRec": PruneRecTrainer, "Popularity": CountingTrainer}


def model_class(name: str) -> type[AbstractRecommender]:
    """The class of a model whose name was validated before."""
    return MODELS[name] if name in MODELS else recbole_class(name)


def trainer_class(name: str) -> type[Trainer]:
    """The trainer of a model: ours, or RecBole's with ranked evaluation."""
    if name in TRAINERS:
        return TRAINERS[name]
    theirs = get_trainer(model_class(name).type, name)
    return type(theirs.__name__, (RankedEvaluation, theirs), {})
