"""Distances between a teacher's and a student's next-token distributions, and the restoration loss made of them (METHOD 5, eq. 13).

Each distance takes logits (position, vocab), float32 or better, and gives nats a position; -inf marks a token that both models exclude.
p_T and p_S are softmax(logits / temperature). The factor temperature^2 (total variation: temperature) keeps the gradients' size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

SKEW = 0.1  # the weight of the distribution that is measured, in the skewed losses' mixture


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Log-softmax, with -inf made finite: 0 * log 0 must be 0, not NaN."""
    return torch.log_softmax(logits / temperature, -1).clamp_min(torch.finfo(logits.dtype).min)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(weight * p + (1 - weight) * q)."""
    return torch.logaddexp(log_p + math.log(weight), log_q + math.log(1 - weight))


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_T || p_S). Shape (position,)."""
    return temperature**2 * _kl(_log_probabilities(teacher, temperature), _log_probabilities(student, temperature))


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_S || p_T). Shape (position,)."""
    return forward_kl(teacher, student, temperature)


def symmetric_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Half of KL(p_T || p_S) and half of KL(p_S || p_T). Shape (position,)."""
    return (forward_kl(student, teacher, temperature) + reverse_kl(student, teacher, temperature)) / 2


def skewed_forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_T || .1 p_T + .9 p_S). Shape (position,)."""
    log_t, log_s = _log_probabilities(teacher, temperature), _log_probabilities(student, temperature)
    return temperature**2 * _kl(log_t, _mixture(log_t, log_s, SKEW))


def skewed_reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_S || .1 p_S + .9 p_T). Shape (position,)."""
    return skewed_forward_kl(teacher, student, temperature)


def js(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Jensen-Shannon divergence: half of each one's KL to their mean. Shape (position,)."""
    log_t, log_s = _log_probabilities(teacher, temperature), _log_probabilities(student, temperature)
    mean = _mixture(log_t, log_s, 0.5)
    return temperature**2 * (_kl(log_t, mean) + _kl(log_s, mean)) / 2


def total_variation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Half of the L1 distance of the probabilities. Shape (position,)."""
    log_t, log_s = _log_probabilities(teacher, temperature), _log_probabilities(student, temperature)
    return temperature * (log_t.exp() - log_s.exp()).abs().sum(-1) / 2


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "symmetric_kl": symmetric_kl,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "js": js,
    "total_variation": total_variation,
}


def restoration_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, kd_weight: float, kd_loss: str, temperature: float, count: int | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """kd_weight * KD + (1 - kd_weight) * CE, and the two by themselves; each is a sum over the positions divided by `count`.

    Logits are (position, vocab) at the same answer positions, `targets` (position,) the tokens that they predict, `count` the number of answer
    positions of the global batch. The cross-entropy has temperature 1.
    """
    kd = LOSSES[kd_loss](student, teacher, temperature).sum() / count
    ce = functional.cross_entropy(student, targets, reduction="sum") / count
    return kd_weight * kd + (1 - kd_weight) * ce, kd, ce
