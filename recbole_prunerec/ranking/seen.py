"""Items of a history leave its ranking (`exclude_seen`): they come last, after every other item, by id. METHOD 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def seen_last(order: np.ndarray, histories: Sequence[Sequence[int]]) -> np.ndarray:
    """`order` (user, item) of item ids with the items of each user's history moved to its end, by id; the others stay as they were."""
    users, items = order.shape
    seen = np.zeros((users, items + 1), dtype=bool)
    for row, history in zip(seen, histories, strict=True):
        row[np.asarray(history, dtype=np.int64)] = True
    place = np.where(np.take_along_axis(seen, order, 1), items + order, np.arange(items))
    return np.take_along_axis(order, place.argsort(1), 1)


def without_seen(scores: Tensor, histories: Tensor) -> Tensor:
    """`scores` (user, item), item 0 being padding, with the lowest finite number for the items of `histories` (user, place), padded with 0."""
    found = scores.scatter(1, histories.to(scores.device), torch.finfo(scores.dtype).min)
    found[:, 0] = scores[:, 0]
    return found
