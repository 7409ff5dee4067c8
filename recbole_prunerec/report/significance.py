"""Tests that go with intervals: the p-value of the same bootstrap, and Holm's correction for many of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def two_sided(resampled: np.ndarray) -> float:
    """The p-value of "no difference" from resampled differences (resample,): twice the smaller tail beyond 0, 1 at most.

    One is added to either count, since the difference that was seen is a resample, too (Davison and Hinkley 1997, 4.2): p is never 0. It is below
    1 - confidence where the percentile interval leaves 0 out, but for that one.
    """
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(resampled) + 1)))


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for all of a family by Holm (1979), in their order: the k-th smallest of m is multiplied by m - k + 1, none is below the one
    before it, and none above 1."""
    adjusted, least = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = least
    return adjusted
