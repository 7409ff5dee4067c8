"""Popularity, ranked on the same sequential samples as every other system."""

from __future__ import annotations

import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_prunerec.data.dataset import part_of
from recbole_prunerec.data.samples import training_popularity


class Popularity(SequentialRecommender):
    """Recommends the items with the most training interactions, ties by item id, to everyone. There is nothing to train."""

    input_type = InputType.POINTWISE

    def __init__(self, config: Config, dataset: SequentialDataset) -> None:
        super().__init__(config, dataset)
        counts = torch.from_numpy(training_popularity(part_of(dataset), self.n_items))
        order = torch.argsort(counts[1:], descending=True, stable=True) + 1
        scores = torch.full((self.n_items,), -float(self.n_items))
        scores[order] = -torch.arange(1.0, self.n_items)
        self.register_buffer("scores", scores)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Minus each item's rank, the same for every row: finite and distinct. Shape (batch, item)."""
        return self.scores.repeat(len(interaction), 1)
