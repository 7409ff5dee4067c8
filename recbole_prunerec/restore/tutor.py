"""A model over item ids from which fine-tuning learns, beside the titles themselves: what it says of items, as what it says of tokens (METHOD 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Example

ItemProbabilities = Callable[[Sequence[np.ndarray]], np.ndarray]  # of the next item after each history: (history, item), padding included


class Tutor:
    """The items' probabilities as those of titles, and what they are worth in the loss: `weight`, the titles' cross-entropy having the rest."""

    def __init__(self, probabilities: ItemProbabilities, catalogue: Catalogue, trie: Trie, weight: float) -> None:
        self.weight, self._probabilities = weight, probabilities
        self._items, self._starts = catalogue.by_title
        self._order = trie.order.cpu().numpy()

    def sums(self, examples: Sequence[Example]) -> Tensor:
        """For each answer of `examples`, in their order, the probability of all titles that stand before each one in the prefix tree's order.

        Shape (answer, title + 1), float64: differences of these are the probabilities of what is below a node.
        """
        histories = [history for example in examples for history in example.histories]
        if not histories:
            return torch.zeros(0, len(self._order) + 1, dtype=torch.float64)
        by_title = np.add.reduceat(self._probabilities(histories)[:, self._items], self._starts[:-1], axis=1)
        return torch.from_numpy(np.pad(by_title[:, self._order].astype(np.float64, copy=False).cumsum(1), ((0, 0), (1, 0))))
