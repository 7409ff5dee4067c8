"""The catalogue: which items there are, what they are called, and which share a title.

Items carry the ids of the interaction data, 1 to n; id 0 is padding. A language model recommends *titles*; items that share one are told apart by
their training popularity, then by id (METHOD 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from recbole_prunerec.errors import UserError
from recbole_prunerec.storage import read_json, write_json

FILE = "catalogue.json"


class _Stored(BaseModel):
    """The content of catalogue.json."""

    model_config = ConfigDict(extra="forbid")
    tokens: list[str]
    titles: list[str]
    popularity: list[int]


def tidy(title: str) -> str:
    """`title` with every run of white space collapsed to one space, and none at the ends."""
    return " ".join(title.split())


@dataclass(frozen=True)
class Catalogue:
    """Items by id: original name `tokens[i]`, title `titles[i]` and training interactions `popularity[i]` of item i. Index 0 is padding."""

    tokens: tuple[str, ...]
    titles: tuple[str, ...]
    popularity: tuple[int, ...]

    @classmethod
    def build(cls, tokens: Sequence[str], titles: Sequence[str], popularity: Sequence[int] | np.ndarray) -> Catalogue:
        """A catalogue from sequences of equal length, index 0 being padding. Raises `UserError` where an item has no title."""
        titles = tuple(tidy(title) for title in titles)
        blank = [str(token) for token, title in zip(tokens[1:], titles[1:], strict=True) if not title]
        if blank:
            raise UserError(f"{len(blank)} items have no title, for example {', '.join(blank[:3])}; every item needs one in the .item file")
        return cls(tuple(map(str, tokens)), titles, tuple(int(count) for count in popularity))

    def __len__(self) -> int:
        """Number of items, padding included."""
        return len(self.titles)

    @cached_property
    def distinct(self) -> tuple[str, ...]:
        """The distinct titles, by the first item that has each."""
        return tuple(dict.fromkeys(self.titles[1:]))

    @cached_property
    def title_of(self) -> np.ndarray:
        """Index into `distinct` of each item's title; -1 for padding. Shape (item,)."""
        position = {title: index for index, title in enumerate(self.distinct)}
        return np.array([-1] + [position[title] for title in self.titles[1:]])

    @cached_property
    def items_of(self) -> tuple[tuple[int, ...], ...]:
        """Items of each distinct title, the most popular first, then the lower id."""
        groups: list[list[int]] = [[] for _ in self.distinct]
        for item in self.by_popularity:
            groups[self.title_of[item]].append(int(item))
        return tuple(map(tuple, groups))

    @cached_property
    def by_popularity(self) -> np.ndarray:
        """All items, the most popular first, ties by id. Shape (item - 1,)."""
        return np.argsort(-np.array(self.popularity[1:]), kind="stable") + 1

    def order(self, titles: np.ndarray) -> np.ndarray:
        """All items in the order that a ranking of titles gives: the items of each ranked title, then every other item by popularity.

        `titles` (ranked,) are indices into `distinct`, the best first, padded with -1. Returns item ids, shape (item - 1,).
        """
        ranked = [item for title in titles if title >= 0 for item in self.items_of[title]]
        rest = self.by_popularity[~np.isin(self.by_popularity, ranked)]
        return np.concatenate([np.array(ranked, dtype=np.int64), rest])

    def save(self, folder: Path) -> None:
        """Write `catalogue.json` into `folder`."""
        write_json(folder / FILE, {"tokens": self.tokens, "titles": self.titles, "popularity": self.popularity})

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Read `catalogue.json` from `folder`. Raises `UserError` where it is missing or damaged."""
        stored = read_json(folder / FILE, _Stored)
        return cls.build(stored.tokens, stored.titles, stored.popularity)
