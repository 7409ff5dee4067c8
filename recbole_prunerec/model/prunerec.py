"""PruneRec as RecBole sees it: a sequential recommender whose scores come from a language model that ranks titles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.load import load_for
from recbole_prunerec.config import RunConfig
from recbole_prunerec.data.dataset import NextItemDataset, part_of
from recbole_prunerec.data.samples import Part, training_popularity
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.budget import Shape, shape_problems
from recbole_prunerec.ranking.recommender import ranker
from recbole_prunerec.restore.tutor import ItemProbabilities
from recbole_prunerec.text.prompts import Prompts

Assistant = Callable[[Interaction], np.ndarray]  # probabilities of all items for a batch of samples, (row, item)


class PruneRec(SequentialRecommender):
    """Holds the backbone and the catalogue's prompts, and ranks with the model of the step that `PruneRecTrainer` has come to."""

    input_type = InputType.POINTWISE
    valid: Part  # samples on which grounding chooses its popularity weight
    assistant: Assistant | None = None  # D3's
    tutor: ItemProbabilities | None = None  # of the fine-tuning

    def __init__(self, config: RunConfig, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        if not isinstance(dataset, NextItemDataset):
            raise TypeError(f"PruneRec reads titles from a NextItemDataset, got a {type(dataset).__name__}")
        settings = config.settings
        catalogue = dataset.catalogue(training_popularity(part_of(dataset), self.n_items))
        self.backbone = load_for(settings, catalogue, *settings.start)
        self.backbone.model.to(config["device"])
        problems = shape_problems(settings.steps, Shape.of_config(self.backbone.model.config.to_dict()))
        if problems:  # of a backbone whose config could not be read before it was loaded
            raise UserError("\n".join(problems))
        self.prompts = Prompts(
            self.backbone.tokenizer, catalogue, settings.template, settings.max_prompt_tokens, config.cache, settings.max_title_tokens
        )
        self._settings = settings
        self.language_model = self.backbone.model

    def rank_with(self, model: PreTrainedModel, prompts: Prompts) -> None:
        """From now on `model`, the backbone at some step, ranks, asked by `prompts`. A submodule, since RecBole's trainers expect parameters."""
        self.language_model = model
        self._ranker = ranker(model, prompts, self._settings, self.valid)

    @property
    def note(self) -> str | None:
        """What is to be said of the ranks since `rank_with`."""
        return self._ranker.note

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """RecBole's trainer would call this batch by batch; the steps train on tokens instead."""
        raise NotImplementedError("PruneRec is trained by PruneRecTrainer, step by step")

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Minus each item's rank: finite and distinct, so that RecBole's top-k is exactly the ranking. Shape (batch, item)."""
        histories = [
            items[:length] for items, length in zip(interaction[self.ITEM_SEQ].tolist(), interaction[self.ITEM_SEQ_LEN].tolist(), strict=True)
        ]
        helped = {} if self.assistant is None else {"assistant": self.assistant(interaction)}
        order = torch.from_numpy(self._ranker.order(histories, **helped, exclude_seen=self._settings.exclude_seen)).long()
        scores = torch.full((len(histories), self.n_items), -float(self.n_items))
        scores.scatter_(1, order, -torch.arange(1.0, self.n_items).expand_as(order))
        return scores.to(self.device)
