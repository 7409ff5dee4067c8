"""Training rows and their batches: one sample a row, or a chunk of consecutive titles a row (METHOD 1, packing).

Rows know their keys for every epoch, so that a batch is a pure function of seed, epoch and number, and any run repeats. A batch is what an optimiser
step sees; it goes through the model in micro-batches of rows of like length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from recbole_prunerec.backbone.softmax import IGNORE
from recbole_prunerec.data.samples import Part, training_sequences
from recbole_prunerec.distributed import share
from recbole_prunerec.text.prompts import Example, Prompts

Key = tuple[int, ...]


class Rows(Protocol):
    """What a training set offers: the keys of an epoch's rows, about how long each is, and the row of a key."""

    def keys(self, epoch: int) -> list[Key]:
        """Keys of all rows of `epoch`, in a fixed order."""

    def size(self, key: Key) -> int:
        """Tokens of a row's titles, by which rows of like length come into one batch."""

    def __getitem__(self, key: Key) -> Example:
        """The row of `key`."""


class SampleRows(Dataset):
    """One sample a row."""

    def __init__(self, prompts: Prompts, part: Part) -> None:
        self._prompts, self._part = prompts, part

    def __len__(self) -> int:
        return len(self._part)

    def keys(self, epoch: int) -> list[Key]:
        """All samples, the same in every epoch."""
        return [(sample,) for sample in range(len(self._part))]

    def size(self, key: Key) -> int:
        """Tokens of the history's titles; answers are short beside them."""
        return int(self._prompts.lengths[self._part.histories[key[0]]].sum())

    def __getitem__(self, key: Key | int) -> Example:
        sample = key if isinstance(key, int) else key[0]
        return self._prompts.example(self._part.history(sample).tolist(), int(self._part.targets[sample]))


def chunk_bounds(length: int, size: int, stride: int, offset: int) -> list[tuple[int, int, int]]:
    """Chunks of at most `size` consecutive titles over a sequence of `length`, as `(start, stop, first target)`.

    Chunks start at `offset`, `offset + stride`, ..., and one before them covers what precedes `offset`. A chunk's targets are the titles after its
    first that no earlier chunk had; a chunk without any is left out. With stride 1 every title but the first is a target once, and sees the
    `size - 1` before it.
    """
    starts = ([offset - stride] if offset else []) + list(range(offset, length, stride))
    bounds, done = [], 1
    for start in starts:
        stop = min(start + size, length)
        first = max(done, max(start, 0) + 1)
        if first < stop:
            bounds.append((max(start, 0), stop, first))
            done = stop
    return bounds


class PackedRows(Dataset):
    """Consecutive titles of a user's training interactions in chunks of at most `size`, with a seeded offset for each user and epoch.

    Of so many `chunkings` the epochs take one after the other, then the first again; None: each has its own.
    """

    def __init__(self, prompts: Prompts, train: Part, size: int, stride: int, seed: int, chunkings: int | None = None) -> None:
        self._prompts, self._sequences = prompts, training_sequences(train)
        self._tokens = [np.concatenate([[0], prompts.lengths[sequence].cumsum()]) for sequence in self._sequences]  # before each title
        self._size, self._stride, self._seed, self._chunkings = size, stride, seed, chunkings

    def __len__(self) -> int:
        """Chunks of the first epoch; later ones have a few more or less."""
        return len(self.keys(0))

    def keys(self, epoch: int) -> list[Key]:
        """`(sequence, start, stop, first target)` of every chunk of `epoch`."""
        chunking = epoch % self._chunkings if self._chunkings else epoch
        offsets = np.random.default_rng([self._seed, chunking]).integers(self._stride, size=len(self._sequences))
        return [
            (number, *bounds)
            for number, (sequence, offset) in enumerate(zip(self._sequences, offsets.tolist(), strict=True))
            for bounds in chunk_bounds(len(sequence), self._size, self._stride, offset)
        ]

    def size(self, key: Key) -> int:
        """Tokens of the chunk's titles."""
        number, start, stop, _ = key
        return int(self._tokens[number][stop] - self._tokens[number][start])

    def __getitem__(self, key: Key) -> Example:
        sequence, start, stop, first = key
        return self._prompts.chunk(self._sequences[sequence][start:stop].tolist(), [position >= first for position in range(start, stop)])


class EpochBatches(Sampler[list[Key]]):
    """Batches of keys: shuffled by seed and epoch, rows of a batch of like length, every epoch with the same number of batches.

    Offsets make epochs differ by a few chunks; the shortest of `epochs` sets the number of batches, and the rows over that are left out. Of several
    processes each gets its share of every batch's rows, perhaps none of the last, smaller one's.
    """

    SORTED_TOGETHER = 16  # batches whose rows are sorted by length together, so that a batch has little padding and batches stay random

    def __init__(self, rows: Rows, batch_size: int, epochs: int, seed: int) -> None:
        self.rows, self._batch_size, self._seed, self._epoch = rows, batch_size, seed, 0
        self._length = min(-(-len(rows.keys(epoch)) // batch_size) for epoch in range(epochs))

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[Key]]:
        generator = np.random.default_rng([self._seed, self._epoch])
        keys = self.rows.keys(self._epoch)
        shuffled = [keys[index] for index in generator.permutation(len(keys))]
        span = self._batch_size * self.SORTED_TOGETHER
        ordered = [key for start in range(0, len(shuffled), span) for key in sorted(shuffled[start : start + span], key=self.rows.size)]
        batches = [ordered[start : start + self._batch_size] for start in range(0, len(ordered), self._batch_size)]
        return iter([list(share(batches[index])) for index in generator.permutation(len(batches))][: self._length])


class EpochLoader(DataLoader):
    """Loads batches, each of which `collate` makes of its examples, and passes the number of the epoch on to them."""

    def __init__(self, batches: EpochBatches, collate: Callable[[list[Example]], Any]) -> None:
        super().__init__(batches.rows, batch_sampler=batches, collate_fn=collate)  # type: ignore[arg-type]  # of a dataset it takes __getitem__ alone
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._batches.set_epoch(epoch)


def micro_batches(examples: Sequence[Example], tokens: int) -> list[list[Example]]:
    """`examples`, the longest first, in groups that have at most `tokens` tokens when each is padded to its longest row, or one row.

    There is one group at least, since several processes must take every step together: without examples it is empty.
    """
    groups: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        group = groups[-1]
        if group and (len(group) + 1) * len(group[0].ids) > tokens:
            groups.append(group := [])
        group.append(example)
    return groups


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """A right-padded batch in the form of `backbone.forward`: `input_ids`, `attention_mask`, `labels`, each (batch, position).

    Without examples it is one token that is padding.
    """
    rows, width = max(len(examples), 1), max((len(example.ids) for example in examples), default=1)
    batch: dict[str, Any] = {
        "input_ids": torch.full((rows, width), pad_id),
        "attention_mask": torch.zeros(rows, width, dtype=torch.long),
        "labels": torch.full((rows, width), IGNORE),
    }
    for row, example in enumerate(examples):
        length = len(example.ids)
        batch["input_ids"][row, :length] = torch.from_numpy(example.ids)
        batch["attention_mask"][row, :length] = 1
        batch["labels"][row, :length] = torch.from_numpy(example.labels)
    return batch
