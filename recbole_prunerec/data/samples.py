"""Plain arrays for the core: who chose what, in which order, and which part each sample belongs to. No RecBole here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recbole_prunerec.errors import UserError
from recbole_prunerec.text.catalogue import Catalogue

TestRows = Literal["all", "few"]  # every sample that is ranked for tables, or those of them that rank the steps between


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

    @property
    def repeated(self) -> int:
        """Samples whose target is in their own history."""
        return int((self.histories == self.targets[:, None]).any(1).sum())

    def take(self, index: np.ndarray) -> Part:
        """The samples at `index`, in that order."""
        return Part(self.users[index], self.histories[index], self.lengths[index], self.targets[index])


@dataclass(frozen=True)
class Samples:
    """The three parts of a dataset under one protocol, and its catalogue where titles are read."""

    train: Part
    valid: Part
    test: Part
    catalogue: Catalogue | None = None

    def ranked(self, part: Literal["test", "valid"]) -> Part:
        """The samples that tables are of."""
        return self.test if part == "test" else self.valid

    @classmethod
    def of(cls, histories: Mapping[str, Sequence[str]], titles: Mapping[str, str], longest_history: int = 10) -> Samples:
        """Samples from each user's items, oldest first, and every item's title; all by name or number. One sample a position from the second on.

        Each user's last sample is for testing, the one before for validation (leave-one-out); users of less than four items only train. Raises
        `UserError` for an item without a title, and where a part is empty.
        """
        if not isinstance(histories, Mapping) or not isinstance(titles, Mapping):
            raise UserError("histories and titles must be dictionaries, {user: [item, ...]} and {item: title}")
        wrong = [item for item, title in titles.items() if not isinstance(title, str)]
        if wrong:
            raise UserError(f"{len(wrong)} titles are not text, for example {wrong[0]}: {titles[wrong[0]]!r}; give text, or leave the item out")
        names = ["[PAD]", *titles]
        ids = {name: number for number, name in enumerate(names)}
        unknown = list(dict.fromkeys(item for items in histories.values() for item in items if item not in titles))
        if unknown:
            shown = ", ".join(map(str, unknown[:3]))
            raise UserError(f"{len(unknown)} items of the histories have no title, for example {shown}; titles must name them all")
        parts: list[list[tuple[int, list[int], int]]] = [[], [], []]
        for user, items in enumerate(histories.values(), 1):
            numbers = [ids[item] for item in items]
            for place in range(1, len(numbers)):
                part = max(0, place - len(numbers) + 3) if len(numbers) > 3 else 0
                parts[part].append((user, numbers[max(0, place - longest_history) : place], numbers[place]))
        if not all(parts):
            raise UserError(f"the histories give {', '.join(str(len(part)) for part in parts)} samples to train, validate, test; give longer ones")
        train, valid, test = (_part(samples, longest_history) for samples in parts)
        return cls(train, valid, test, Catalogue.build(list(map(str, names)), ["", *titles.values()], training_popularity(train, len(names))))


def _part(samples: Sequence[tuple[int, list[int], int]], longest_history: int) -> Part:
    """Arrays of (user, history, target)."""
    histories = np.zeros((len(samples), longest_history), dtype=np.int64)
    for row, (_, history, _) in zip(histories, samples, strict=True):
        row[: len(history)] = history
    users, lengths, targets = (np.array(values, dtype=np.int64) for values in zip(*((u, len(h), t) for u, h, t in samples), strict=True))
    return Part(users, histories, lengths, targets)


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
