"""The catalogue: which items there are, what they are called, and which share a title.

Items carry the ids of the interaction data, 1 to n; id 0 is padding. A language model recommends *titles*; items that share one are told apart by
their training popularity, then by id (METHOD 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from recbole_prunerec.errors import UserError
from recbole_prunerec.storage import read_json, write_json
from recbole_prunerec.text.wording import CATALOGUE


class _Stored(BaseModel):
    """The content of catalogue.json."""

    model_config = ConfigDict(extra="forbid")
    tokens: list[str]
    titles: list[str]
    popularity: list[int]
    written: list[str] | None = None  # None: as the titles are

    @model_validator(mode="after")
    def _whole(self) -> _Stored:
        written = self.titles if self.written is None else self.written
        if not 1 < len(self.tokens) == len(self.titles) == len(self.popularity) == len(written):
            raise ValueError("tokens, titles and popularity must be those of the same items, at least one beside the padding")
        if not len(set(self.titles)) == len(set(written)) == len(set(zip(self.titles, written, strict=True))):
            raise ValueError("each title must be written in one way, which no other title has")
        return self


def tidy(title: str) -> str:
    """`title` with every run of white space collapsed to one space, and none at the ends."""
    return " ".join(title.split())


def shortened(titles: Iterable[str]) -> dict[str, str]:
    """Each of the distinct, tidied `titles` up to the first word that tells it from all others; whole where another goes on from it. All differ."""
    words = [title.split(" ") for title in titles]
    begun = Counter(" ".join(title[:count]) for title in words for count in range(1, len(title) + 1))
    cuts = [next((count for count in range(1, len(title)) if begun[" ".join(title[:count])] == 1), len(title)) for title in words]
    return {" ".join(title): " ".join(title[:count]) for title, count in zip(words, cuts, strict=True)}


@dataclass(frozen=True)
class Catalogue:
    """Items by id: original name `tokens[i]`, title `titles[i]` and training interactions `popularity[i]` of item i. Index 0 is padding.

    A model reads and writes `written[i]`: the title, or the beginning of it that `shortened` leaves. Titles that differ are written differently.
    """

    tokens: tuple[str, ...]
    titles: tuple[str, ...]
    popularity: tuple[int, ...]
    written: tuple[str, ...]

    @classmethod
    def build(
        cls, tokens: Sequence[str], titles: Sequence[str], popularity: Sequence[int] | np.ndarray, written: Sequence[str] | None = None
    ) -> Catalogue:
        """A catalogue from sequences of equal length, index 0 being padding; titles are written whole where `written` says nothing else.

        Raises `UserError` for none, and where an item has no title.
        """
        if len(titles) < 2:
            raise UserError("the catalogue has no item; give at least one")
        titles = tuple(tidy(title) for title in titles)
        blank = [str(token) for token, title in zip(tokens[1:], titles[1:], strict=True) if not title]
        if blank:
            raise UserError(f"{len(blank)} items have no title, for example {', '.join(blank[:3])}; every item needs one in the .item file")
        return cls(tuple(map(str, tokens)), titles, tuple(int(count) for count in popularity), titles if written is None else tuple(written))

    def shortened(self) -> Catalogue:
        """The same items, their titles written as `shortened` leaves them."""
        short = shortened(self.distinct)
        return replace(self, written=("", *(short[title] for title in self.titles[1:])))

    def __len__(self) -> int:
        """Number of items, padding included."""
        return len(self.titles)

    @cached_property
    def distinct(self) -> tuple[str, ...]:
        """The distinct titles, by the first item that has each."""
        return tuple(dict.fromkeys(self.titles[1:]))

    @cached_property
    def position(self) -> dict[str, int]:
        """Index into `distinct` by title."""
        return {title: index for index, title in enumerate(self.distinct)}

    @cached_property
    def text_of(self) -> dict[str, str]:
        """What a model reads and writes of each distinct title, in their order."""
        return dict(zip(self.titles[1:], self.written[1:], strict=True))

    @property
    def texts(self) -> tuple[str, ...]:
        """`text_of` alone: in the order of `distinct`."""
        return tuple(self.text_of.values())

    @cached_property
    def title_of(self) -> np.ndarray:
        """Index into `distinct` of each item's title; -1 for padding. Shape (item,)."""
        return np.array([-1] + [self.position[title] for title in self.titles[1:]])

    @cached_property
    def by_popularity(self) -> np.ndarray:
        """All items, the most popular first, ties by id. Shape (item - 1,)."""
        return np.argsort(-np.array(self.popularity[1:]), kind="stable") + 1

    @cached_property
    def by_title(self) -> tuple[np.ndarray, np.ndarray]:
        """All items by title, those that share one by popularity, then id; and where each title's begin. Shapes (item - 1,), (title + 1,)."""
        titles = self.title_of[self.by_popularity]
        return self.by_popularity[np.argsort(titles, kind="stable")], np.searchsorted(np.sort(titles), np.arange(len(self.distinct) + 1))

    def of_titles(self, of_items: np.ndarray) -> np.ndarray:
        """Probabilities of titles, (row, title), from those of items, (row, item)."""
        items, starts = self.by_title
        return np.add.reduceat(of_items[:, items], starts[:-1], axis=1)

    def items_of(self, title: int) -> list[int]:
        """The items of a distinct title, the most popular first, then the lower id."""
        items, starts = self.by_title
        return items[starts[title] : starts[title + 1]].tolist()

    def order(self, titles: np.ndarray, scores: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """All items of each user by score, then popularity, then id; those of found titles first, the others by the bound of theirs.

        `titles` (user, k) are indices into `distinct`, the best first, padded with -1, and `scores` (user, k) theirs. `bounds` (user, title) are at
        most 0. Returns item ids, shape (user, item - 1).
        """
        falls = np.zeros(titles.shape, dtype=np.int64)
        falls[:, 1:] = scores[:, 1:] < scores[:, :-1]
        key = np.concatenate([-bounds, np.zeros((len(bounds), 1), bounds.dtype)], 1)  # the last is for the padding
        np.put_along_axis(key, titles, falls.cumsum(1) - titles.shape[1], 1)  # places, all below 0
        return self.by_popularity[np.argsort(key[:, self.title_of[self.by_popularity]], axis=1, kind="stable")]

    def save(self, folder: Path) -> None:
        """Write `catalogue.json` into `folder`."""
        written = {} if self.written == self.titles else {"written": self.written}
        write_json(folder / CATALOGUE, {"tokens": self.tokens, "titles": self.titles, "popularity": self.popularity, **written})

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Read `catalogue.json` from `folder`. Raises `UserError` where it is missing or damaged."""
        stored = read_json(folder / CATALOGUE, _Stored)
        return cls.build(stored.tokens, stored.titles, stored.popularity, stored.written)
