"""From a dataset's files to its interactions and titles; every problem of all files in one report. No RecBole here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from recbole_prunerec.data.checks import check_blank, log_repeated, log_shared_titles, merge_titles, numbers, time_is_position, titles_of, with_titles
from recbole_prunerec.data.tables import Column, read_atomic
from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Settings
from recbole_prunerec.validation.sentences import listed

Columns = Mapping[str, Column]

logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """What a dataset's files hold, before users and items are filtered by number of interactions."""

    inter: pd.DataFrame  # user, item, and time (a number) or, where the files are split already, history (a list of items)
    sizes: list[int]  # rows of each file
    titles: dict[str, str]  # by item; empty without an .item file that has them, which only PruneRec needs


def read_data(paths: Sequence[Path], columns: Columns, items_path: Path, item_columns: Columns, settings: Settings, separator: str) -> Data:
    """Read interactions and titles. Raises one `UserError` with every problem, a line each.

    Of a single file, interactions of items without a title are left out, and `settings.merge_titles` makes items that share a title one. Files that
    are split already are taken as they are.
    """
    problems: list[str] = []
    tables = []
    for path in paths:
        table = read_atomic(path, columns, problems, separator, settings.encoding)
        tables.append(table)
        check_blank(path, table, ("user", "item", "history"), problems)
        if "time" in table:
            table["time"] = numbers(path, table["time"], problems)
            if settings.split == "global_time" and time_is_position(table["user"], table["time"]):
                problems.append(
                    f"the time in {path.name} is only the position in each user's history, which cannot order samples of different users; "
                    "choose split=leave_one_out"
                )
    items = None
    titled = "PruneRec" in settings.model
    if titled or items_path.exists():
        optional = () if titled else ("title",)
        items = read_atomic(items_path, item_columns, problems, separator, settings.encoding, optional)
        check_blank(items_path, items, ("item",), problems)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    if items is not None and "title" not in items:
        logger.warning("%s has no column %r, so no item is left out for want of a title", items_path, item_columns["title"].name)
        items = None
    titles = {} if items is None else titles_of(items_path, items)
    inter = pd.concat(tables)
    if "history" in inter:
        inter["history"] = [text.split()[-settings.longest_history :] for text in inter["history"]]
        if titled:
            _check_split_elsewhere(paths[0].parent, inter, items_path, titles, settings.merge_titles)
        return Data(inter, list(map(len, tables)), titles)
    log_repeated(paths[0], inter)
    if items is not None:
        inter = with_titles(paths[0], inter, items_path, items, titles)
        log_shared_titles(items_path, titles, inter["item"], settings.merge_titles)
        if settings.merge_titles:
            inter = inter.assign(item=inter["item"].map(merge_titles(titles, inter["item"])))
    return Data(inter, [len(inter)], titles)


def _check_split_elsewhere(folder: Path, inter: pd.DataFrame, items_path: Path, titles: Mapping[str, str], merge: bool) -> None:
    """Refuse what would change samples that were made elsewhere."""
    problems = []
    if merge:
        problems.append("merge_titles=true changes histories, and those of benchmark_filename are taken as they are; leave one of the two out")
    untitled = [item for item in dict.fromkeys(chain(inter["item"], *inter["history"])) if item not in titles]
    if untitled:
        problems.append(
            f"{folder}: {len(untitled)} items of the split files have no title in {items_path.name}, for example {listed(untitled)}; "
            "give them titles, or leave their samples out"
        )
    if problems:
        raise UserError("\n".join(problems))
