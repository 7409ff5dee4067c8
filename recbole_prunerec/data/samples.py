"""Plain arrays for the core: who chose what, in which order, and which part each sample belongs to. No RecBole here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recbole_prunerec.errors import UserError

TestRows = Literal["all", "few"]  # every test sample that is ranked, or those of them that rank the steps between


@dataclass(frozen=True)
class Part:
    """Samples of one part of the data: from `history` predict `target`. Items are ids, 0 is padding."""

    users: np.ndarray  # (sample,)
    histories: np.ndarray  # (sample, longest history), oldest first, padded with 0 on the right
    lengths: np.ndarray  # (sample,)
    targets: np.ndarray  # (sample,)

    def __len__(self) -> int:
        return len(self.targets)

    def history(self, sample: int) -> np.ndarray:
        """The items of one sample's history, oldest first."""
        return self.histories[sample, : self.lengths[sample]]

    def take(self, index: np.ndarray) -> Part:
        """The samples at `index`, in that order."""
        return Part(self.users[index], self.histories[index], self.lengths[index], self.targets[index])


@dataclass(frozen=True)
class Samples:
    """The three parts of a dataset under one protocol."""

    train: Part
    valid: Part
    test: Part


def choose_rows(total: int, count: int | None, seed: int) -> np.ndarray:
    """`count` of `total` row numbers in ascending order, drawn without replacement by `seed`; all of them where `count` is None or not smaller.

    The rows for a smaller count are among those for a larger one, so that what is measured on few rows can be compared with what was on many.
    """
    if count is None or count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def training_sequences(train: Part) -> list[np.ndarray]:
    """Each user's training interactions in order: the first sample's history, then every target. Users by first appearance.

    Raises `UserError` where the samples of a user do not follow from one another, as they may not in files that were split elsewhere.
    """
    samples_of: dict[int, list[int]] = {}
    for sample, user in enumerate(train.users.tolist()):
        samples_of.setdefault(user, []).append(sample)
    sequences = []
    for samples in samples_of.values():
        sequence = train.history(samples[0]).tolist()
        for sample in samples:
            length = train.lengths[sample]
            if sequence[len(sequence) - length :] != train.history(sample).tolist():
                raise UserError("packing needs each user's training samples to be consecutive, and these are not; choose packing=false")
            sequence.append(int(train.targets[sample]))
        sequences.append(np.array(sequence))
    return sequences


def training_popularity(train: Part, items: int) -> np.ndarray:
    """Training interactions of each of `items` items, padding included. Shape (items,)."""
    first = np.unique(train.users, return_index=True)[1]
    earlier = train.histories[first].ravel()
    return np.bincount(np.concatenate([train.targets, earlier[earlier > 0]]), minlength=items)
