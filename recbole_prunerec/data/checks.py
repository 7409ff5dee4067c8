"""What interactions and titles must be like, and what becomes of those that are not. No RecBole here.

Tables have the columns `user`, `item` and `time` or `history`, or `item` and `title`; their index is the line in the file.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_prunerec.errors import UserError
from recbole_prunerec.text.catalogue import tidy
from recbole_prunerec.validation.sentences import SHOWN, examples, listed, short

logger = logging.getLogger(__name__)


def check_blank(path: Path, table: pd.DataFrame, columns: Iterable[str], problems: list[str]) -> None:
    """Add to `problems` the lines where one of `columns` is blank."""
    for column in columns:
        blank = [str(line) for line in table.index[table[column].str.strip() == ""]] if column in table else []
        if blank:
            problems.append(f"{path}: {len(blank)} lines have no {column}, for example line {listed(blank)}; fill it in or delete these lines")


def numbers(path: Path, times: pd.Series, problems: list[str]) -> pd.Series:
    """Times as numbers; whole ones stay exact. Adds to `problems` those that are not finite numbers of at least 0."""
    values = pd.to_numeric(times, errors="coerce")
    kinds = {"not numbers": values.isna(), "infinite": np.isinf(values), "negative": (values < 0) & ~np.isinf(values)}
    for kind, wrong in kinds.items():
        if wrong.any():
            problems.append(
                f"{path}: {wrong.sum()} times are {kind}, for example {examples(times[wrong])}; "
                "expected numbers from 0 up, such as seconds since 1970; correct or delete these lines"
            )
    return values


def log_repeated(path: Path, inter: pd.DataFrame) -> None:
    """Tell how many lines repeat another's user, item and time; they stay."""
    repeated = inter.duplicated(["user", "item", "time"])
    if repeated.any():
        shown = inter[repeated].head(SHOWN + 1).astype(str).agg(", ".join, axis=1)
        logger.warning("%s: %d lines repeat another's user, item and time, and stay: for example %s", path, repeated.sum(), examples(shown))


def titles_of(path: Path, items: pd.DataFrame) -> dict[str, str]:
    """Tidied titles by item, blank ones left out. An item that has several keeps the first, which is logged."""
    tidied = items.assign(title=items["title"].map(tidy))
    tidied = tidied[tidied["title"] != ""]
    first = tidied.drop_duplicates("item")
    titles = dict(zip(first["item"], first["title"], strict=True))
    others = tidied[tidied["title"] != tidied["item"].map(titles)]
    if len(others):
        shown = examples(others["item"] + ": " + others["title"])
        logger.warning("%s: %d lines give an item a second title, and are left out: for example %s", path, len(others), shown)
    return titles


def with_titles(path: Path, inter: pd.DataFrame, items_path: Path, items: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """The interactions whose item has a title; how many others there were is logged. Raises `UserError` where none is left."""
    kept = inter["item"].isin(titles.keys())
    blank = items[~items["item"].isin(titles.keys())]
    absent = inter[~inter["item"].isin(items["item"])]
    if len(blank):
        dropped = inter["item"].isin(blank["item"]).sum()
        text = "%s: %d items have no title, and are left out with their %d interactions: for example %s"
        logger.warning(text, items_path, len(blank), dropped, examples(blank["item"]))
    if len(absent):
        items_there = absent["item"].drop_duplicates()
        text = "%s: %d interactions are left out, of %d items that are not in %s: for example %s"
        logger.warning(text, path, len(absent), len(items_there), items_path.name, examples(items_there))
    if not kept.any():
        raise UserError(
            f"{path}: none of its {inter['item'].nunique()} items has a title, for example {examples(inter['item'].drop_duplicates())}; "
            f"{items_path} has {examples(items['item'])}; expected titles, and the same ids in both files"
        )
    return inter[kept]


def merge_titles(titles: Mapping[str, str], items: Iterable[str]) -> dict[str, str]:
    """For each item the one it becomes where items that share a title become one: that with the most interactions `items`, ties to the first."""
    counts = Counter(items)
    chosen: dict[str, str] = {}
    for item, title in titles.items():
        if title not in chosen or counts[item] > counts[chosen[title]]:
            chosen[title] = item
    return {item: chosen[title] for item, title in titles.items()}


def log_shared_titles(path: Path, titles: Mapping[str, str], items: Iterable[str], merged: bool) -> None:
    """Tell how many of `items` share a title with another, and what becomes of them."""
    by_title: dict[str, list[str]] = {}
    for item in dict.fromkeys(items):
        by_title.setdefault(titles[item], []).append(item)
    shared = {title: group for title, group in by_title.items() if len(group) > 1}
    if shared:
        shown = "; ".join(f"{short(title)} ({', '.join(group[:SHOWN])})" for title, group in list(shared.items())[:SHOWN])
        logger.warning(
            "%s: %d items share %d titles, for example %s; %s",
            path,
            sum(map(len, shared.values())),
            len(shared),
            shown,
            "each title becomes one item" if merged else "popularity orders those of one title (merge_titles=true makes them one item)",
        )


def time_is_position(users: pd.Series, times: pd.Series) -> bool:
    """Whether every user's times, sorted, are 0, 1, 2, ... (or 1, 2, 3, ...): an order, not a clock."""
    frame = pd.DataFrame({"user": users.to_numpy(), "time": times.to_numpy()}).sort_values(["user", "time"], kind="stable")
    start = frame["time"].min()
    return start in (0, 1) and bool((frame["time"] == frame.groupby("user").cumcount() + start).all())
