"""A language model that ranks the whole catalogue for histories of items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel

from recbole_prunerec.ranking.beam import rank
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.text.prompts import Prompts


class Recommender:
    """Ranks items by the log-probability of their titles after the prompt of a history, found by beam search over the prefix tree of titles."""

    def __init__(self, model: PreTrainedModel, prompts: Prompts, beams: int, batch_size: int, show_progress: bool = False) -> None:
        self.model, self._prompts, self._beams, self._batch_size, self._show_progress = model.eval(), prompts, beams, batch_size, show_progress
        self._trie = Trie.build(prompts.answers).to(model.device)

    def order(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """All items in recommended order for each history of item ids, oldest first. Shape (user, item).

        The beams' titles come first, items that share a title by training popularity; what no beam found follows by popularity.
        """
        prompts = [self._prompts.prompt(history) for history in histories]
        with tqdm(total=len(prompts), desc="ranking", unit="user", disable=not self._show_progress, leave=False) as bar:
            ranking = rank(self.model, self._trie, prompts, self._beams, self._batch_size, pad_id=self._prompts.pad_id, progress=bar.update)
        return np.stack([self._prompts.catalogue.order(titles) for titles in ranking.titles.numpy()])
