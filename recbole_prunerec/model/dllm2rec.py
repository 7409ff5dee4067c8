"""DLLM2Rec: one of RecBole's small models, taught by a fine-tuned language model's ranked lists and title embeddings."""

from __future__ import annotations

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional

from recbole_prunerec.compared.list_losses import binary_cross_entropy, list_loss, list_weights, propensities, robust_loss
from recbole_prunerec.compared.teacher import Teacher
from recbole_prunerec.config import RunConfig
from recbole_prunerec.data.dataset import NextItemDataset, part_of
from recbole_prunerec.data.samples import training_popularity
from recbole_prunerec.model.theirs import recbole_class


class TaughtEmbedding(nn.Module):
    """Collaborative embedding distillation in place of an item embedding: id embedding + `share` * linear(title embedding)."""

    titles: Tensor

    def __init__(self, own: nn.Embedding, titles: Tensor, share: float) -> None:
        super().__init__()
        self.own, self.share = own, share
        self.register_buffer("titles", titles, persistent=False)
        self.project = nn.Linear(titles.shape[1], own.embedding_dim, bias=False)  # so that padding stays 0

    def forward(self, items: Tensor) -> Tensor:
        """Vectors of `items`, of any shape, with one more dimension."""
        return self.own(items) + self.share * self.project(self.titles[items])

    @property
    def weight(self) -> Tensor:
        """Vectors of all items, (item, width), as an embedding has them."""
        return self.own.weight + self.share * self.project(self.titles)


class DLLM2Rec(SequentialRecommender):
    """A student that learns from targets and, where its teacher was asked, from the teacher's list for the same history."""

    input_type = InputType.PAIRWISE

    def __init__(self, config: RunConfig, dataset: NextItemDataset) -> None:
        super().__init__(config, dataset)
        self._robust, self._distilled = config["dro_weight"], config["distill_weight"]
        self._weights = {key: config[f"{key}_weight"] for key in ("position", "confidence", "consistency")}
        self.student = recbole_class(config["student"])(config, dataset)
        if config.teacher is None:
            raise ValueError("there is no fine-tuned model to learn from; name a teacher")
        train, settings = part_of(dataset), config.settings
        counts = training_popularity(train, self.n_items)
        teacher = Teacher(config.teacher, dataset.catalogue(counts), config["device"], config.cache, settings.show_progress)
        self._lists = teacher.lists(train, config["teacher_samples"], config["list_length"], settings.seed)
        self.student.item_embedding = TaughtEmbedding(self.student.item_embedding, teacher.embeddings(), config["embedding_weight"])
        self.register_buffer("_propensity", propensities(torch.from_numpy(counts[1:]).float()), persistent=False)
        asked = min(config["teacher_samples"], len(train))
        self.note = f"student {config['student']}, lists of {config['list_length']} items for {asked:,} of {len(train):,} training samples"

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """BCE(target) + dro_weight * DRO(target), and distill_weight * the mean list loss of the rows that have a list."""
        scores = self.full_sort_predict(interaction)[:, 1:]  # without padding, so that item i is column i - 1
        targets, negatives = (interaction[field] - 1 for field in (self.POS_ITEM_ID, self.NEG_ITEM_ID))
        pairs = binary_cross_entropy(scores.gather(1, targets[:, None]), scores.gather(1, negatives[:, None]))
        loss = (pairs + self._robust * robust_loss(scores, targets[:, None], self._propensity)).mean()
        rows = self._lists.find(interaction[self.ITEM_SEQ].cpu().numpy())
        asked = rows >= 0
        if self._distilled and asked.any():
            loss = loss + self._distilled * self._from_lists(scores[asked], negatives[asked], rows[asked]).mean()
        return loss

    def _from_lists(self, scores: Tensor, negatives: Tensor, rows: Tensor) -> Tensor:
        """The list loss of each of `rows` of the teacher's lists. Shape (row,)."""
        items, said = (part[rows].to(scores.device) for part in (self._lists.items, self._lists.log_probabilities))
        columns = (items - 1).clamp(min=0)  # what lies behind the end of a list has no weight
        first = scores.detach().topk(min(items.shape[1], scores.shape[1])).indices
        agreed = functional.one_hot(first, scores.shape[1]).sum(1).gather(1, columns)
        weights = list_weights(said, agreed, **self._weights)
        return list_loss(scores, columns, negatives, weights, self._propensity, self._robust)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The student's scores of all items. Shape (batch, item)."""
        return self.student.full_sort_predict(interaction)
