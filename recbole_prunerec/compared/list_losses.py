"""DLLM2Rec's losses (arXiv 2405.00338): a ranked list of the teacher, each item weighed, and a term that is robust to popularity.

Scores are a student's, (row, item), and items are columns of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LEAST = 1e-8  # of the weight of agreement, so that no list is without weight


def binary_cross_entropy(positive: Tensor, negative: Tensor) -> Tensor:
    """-log sigmoid(positive) - log(1 - sigmoid(negative)), elementwise."""
    return functional.softplus(-positive) + functional.softplus(negative)


def propensities(counts: Tensor, power: float = 0.05) -> Tensor:
    """(share of the training interactions) ** `power`, each item having one more than it has. `counts` (item,)."""
    return ((counts + 1) / (counts + 1).sum()) ** power


def robust_loss(scores: Tensor, items: Tensor, propensity: Tensor) -> Tensor:
    """DROS: log(sum over j != y of exp(p_j s_j^2) + exp(p_y (s_y - 1)^2)), for each y of `items` (row, place). Shape (row, place).

    The sum is made without y and not corrected for it afterwards, as published: in floating point that can leave nothing, or less.
    """
    own = propensity[items] * (scores.gather(1, items) - 1) ** 2
    squares = (propensity * scores**2)[:, None].expand(-1, items.shape[1], -1)
    return squares.scatter(2, items[..., None], own[..., None]).logsumexp(2)


def list_weights(log_probabilities: Tensor, agreed: Tensor, position: float, confidence: float, consistency: float) -> Tensor:
    """Weight of each item of the teacher's lists, 1 in all for a row. Shape (row, place).

    Added are `position` times exp(-place), `confidence` times exp(-distance), both 1 in all, and `consistency` times `agreed` (row, place), whether
    the student has the item among its first. A distance is the fall of `log_probabilities` (row, place) from the list's best, as a share of its whole
    fall: unscaled, exp would leave nothing of most. Places without an item have -inf there, and weight 0.
    """
    there = torch.isfinite(log_probabilities)
    fall = log_probabilities.max(1, keepdim=True).values - log_probabilities
    whole = fall.masked_fill(~there, 0).max(1, keepdim=True).values
    distance = fall / whole.masked_fill(whole == 0, 1)
    place = torch.arange(1.0, fall.shape[1] + 1, dtype=fall.dtype, device=fall.device).expand_as(fall)
    parts = ((-values).masked_fill(~there, -torch.inf).softmax(1) for values in (place, distance))
    by_place, by_confidence = parts
    weights = position * by_place + confidence * by_confidence + consistency * (agreed.to(fall) + LEAST) * there
    return weights / weights.sum(1, keepdim=True)


def list_loss(scores: Tensor, items: Tensor, negatives: Tensor, weights: Tensor, propensity: Tensor, robust: float) -> Tensor:
    """Importance-aware ranking distillation: the weighed sum, over a row's `items` (row, place), of what a target's loss would be. Shape (row,).

    That is the binary cross-entropy against the row's one of `negatives` (row,), and `robust` times `robust_loss`.
    """
    losses = binary_cross_entropy(scores.gather(1, items), scores.gather(1, negatives[:, None]))
    return (weights * (losses + robust * robust_loss(scores, items, propensity))).sum(1)
