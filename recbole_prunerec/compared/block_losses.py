"""SLMRec's losses (arXiv 2405.17890): a student's layers in blocks, each held to the teacher's block of the same number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

BLOCKS = 4  # at most; as many as the student has layers where it has fewer


def block_ends(layers: int, blocks: int) -> list[int]:
    """The layers, counted from 1, with which each of `blocks` blocks ends: the nearest to equal parts, the lower of two. The last is `layers`."""
    return [(2 * layers * block + blocks - 1) // (2 * blocks) for block in range(1, blocks + 1)]


def cosine_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """1 - cos of the two models' hidden states at the last position, summed over blocks, mean over rows. A block's states are (row, hidden)."""
    return torch.stack([(1 - functional.cosine_similarity(own, guide, dim=1)).mean() for own, guide in zip(student, teacher, strict=True)]).sum()


def norm_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Euclidean distance of the same states, summed over blocks, mean over rows."""
    return torch.stack([(own - guide).norm(dim=1).mean() for own, guide in zip(student, teacher, strict=True)]).sum()


def supervision_loss(scores: Sequence[Tensor], targets: Tensor) -> Tensor | float:
    """Cross-entropy of the scores (row, item) that blocks before the last give, summed over these blocks, mean over rows; 0 where there are none."""
    return sum(functional.cross_entropy(block, targets) for block in scores)
