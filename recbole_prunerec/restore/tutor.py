"""A model over item ids from which a language model learns, too: what it says of items, as what it says of tokens (METHOD 1 and 5)."""

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
    """The items' probabilities as those of titles, and what they are worth: `weight`, the rest being the titles' cross-entropy, or the teacher's."""

    def __init__(self, probabilities: ItemProbabilities, catalogue: Catalogue, trie: Trie, weight: float) -> None:
        self.weight, self._probabilities, self._catalogue, self._trie = weight, probabilities, catalogue, trie

    def mixed(self, teacher: Tensor, shares: Tensor) -> Tensor:
        """The log-probabilities, up to a constant, that D3 ranks by: (1 - weight) log p + weight log q, of the teacher's logits and own `shares`.

        Both (position, token), -inf where there is no token.
        """
        mixture = (1 - self.weight) * teacher + self.weight * shares
        return mixture.masked_fill(torch.isneginf(shares), -torch.inf)

    def sums(self, examples: Sequence[Example]) -> Tensor:
        """The prefix tree's `sums` of what may follow the history of each answer of `examples`, in their order. Shape (answer, title + 1)."""
        histories = [history for example in examples for history in example.histories]
        if not histories:
            return torch.zeros(0, self._trie.count + 1, dtype=torch.float64)
        return self._trie.sums(self._catalogue.of_titles(self._probabilities(histories)))
