"""Bring your own CSV: two files, as a spreadsheet or a database writes them, become a dataset of RecBole's atomic files. No RecBole here."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from recbole_prunerec.data.checks import check_blank, log_repeated, numbers, titles_of, with_titles
from recbole_prunerec.data.tables import one_column, read_table
from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.storage import write_text
from recbole_prunerec.text.catalogue import tidy
from recbole_prunerec.validation.sentences import examples

NAMES = {  # what a column may be called: small letters and digits count
    "user": ("user", "userid", "uid", "customer", "customerid", "reviewerid"),
    "item": ("item", "itemid", "iid", "movie", "movieid", "product", "productid", "book", "bookid", "article", "articleid", "asin"),
    "time": ("time", "timestamp", "date", "datetime", "createdat", "unixtime", "unixreviewtime"),
    "title": ("title", "name", "itemtitle", "itemname", "movietitle", "booktitle", "producttitle", "productname"),
}

logger = logging.getLogger(__name__)


def to_atomic(
    interactions: Path,
    items: Path,
    name: str,
    data_path: Path,
    *,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    title: str | None = None,
    field_separator: str = ",",
    encoding: str = "utf-8",
) -> Path:
    """Write `<data_path>/<name>/<name>.inter` and `.item` from a CSV of interactions (user, item, time) and one of items (item, title).

    Columns are found by common names, or by those given; `item` is looked for in both files, and has to be in the interactions. Times are numbers
    from 0 up, or ISO dates, which become seconds since 1970 (UTC where they name no offset). White space around ids goes; in titles every run of it
    becomes one space. Returns the dataset's folder. Raises one `UserError` with every problem, a line each, and where other data have that name.
    """
    folder, problems = data_path / name, list[str]()
    if not re.fullmatch(r"\w[\w.-]*", name) or name == "ml-100k":
        problems.append(f"name={name!r}: expected letters, digits, '_', '-' and '.', and not ml-100k, which comes with RecBole; such as name=mine")
    find_columns = partial(_find, interactions, {"user": user, "item": item, "time": time}, field_separator)
    find_titles = partial(_find_titles, items, item, title, field_separator)
    inter = read_table(interactions, find_columns, problems, field_separator, encoding, quoted=True)
    catalogue = read_table(items, find_titles, problems, field_separator, encoding, quoted=True)
    for path, table in ((interactions, inter), (items, catalogue)):
        for column in table.columns.drop("title", errors="ignore"):
            table[column] = table[column].str.strip()
        check_blank(path, table, ("user", "item"), problems)
        _check_ids(path, table, problems)
    if "time" in inter:
        inter["time"] = _seconds(interactions, inter["time"], problems)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    log_repeated(interactions, inter)
    with_titles(interactions, inter, items, catalogue, titles_of(items, catalogue))
    rows = inter["user"] + "\t" + inter["item"] + "\t" + inter["time"]
    named = catalogue["item"] + "\t" + catalogue["title"].map(tidy)
    texts = {  # the interactions last: where they are, the dataset is whole
        folder / f"{name}.item": "\n".join(["item_id:token\ttitle:token_seq", *named, ""]),
        folder / f"{name}.inter": "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows, ""]),
    }
    for path, text in texts.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise UserError(f"{path} exists and holds other data; choose another name than name={name}, or delete {folder}")
    for path, text in texts.items():
        write_text(path, text)
    logger.info("%s: %d interactions of %d users, %d items", folder, len(inter), inter["user"].nunique(), catalogue["item"].nunique())
    return folder


def _find(path: Path, given: Mapping[str, str | None], separator: str, header: list[str], problems: list[str]) -> dict[str, int]:
    """Places of the columns of `given`: by the name there, or by a common one."""
    if not any(header):
        problems.append(f"{path} {'has an empty first line' if path.is_file() else 'is not a file'}; expected one such as {separator.join(given)!r}")
        return {}
    if len(header) == 1:
        problems.append(f"{one_column(path, header[0], separator)}; expected a first line such as {separator.join(given)!r}")
        return {}
    places = {}
    for role, name in given.items():
        found = [place for place, cell in enumerate(header) if (cell == name if name else _plain(cell) in NAMES[role])]
        there = f"it has {', '.join(header)}"
        if len(found) == 1:
            places[role] = found[0]
        elif name:
            problems.append(f"{path} has {'several columns' if found else 'no column'} {name!r}; {there}{nearest(name, header)} (the key is {role})")
        elif found:
            problems.append(f"{path} has several columns for the {role}: {', '.join(header[place] for place in found)}; choose one, {role}=<column>")
        else:
            problems.append(f"{path} has no column for the {role}; {there}; name it, {role}=<column>, or call it {role}")
    return places if len(places) == len(given) else {}


def _find_titles(path: Path, item: str | None, title: str | None, separator: str, header: list[str], problems: list[str]) -> dict[str, int]:
    """`_find` in the file of items, whose item column may have another name than in the interactions, or be its id."""
    if item not in header:
        common = any(_plain(cell) in NAMES["item"] for cell in header)
        item = None if common else next((cell for cell in header if _plain(cell) == "id"), None)
    return _find(path, {"item": item, "title": title}, separator, header, problems)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _check_ids(path: Path, table: pd.DataFrame, problems: list[str]) -> None:
    """Add to `problems` the ids that an atomic file cannot hold."""
    for column in table.columns.intersection(["user", "item"]):
        broken = table[column][table[column].str.contains(r"[\t\r\n]")]
        if len(broken):
            problems.append(
                f"{path}: {len(broken)} ids of the {column} hold a tab or a line end, for example {examples(broken)}; expected one word or number"
            )


def _seconds(path: Path, times: pd.Series, problems: list[str]) -> pd.Series:
    """Times as text that is a number: as they stand, or where most are dates, as seconds since 1970. Adds to `problems` what is neither."""
    dated = times.str.match(r"\d{4}-\d\d-\d\d")
    if dated.sum() <= len(dated) / 2:
        numbers(path, times, problems)
        return times
    moments = pd.to_datetime(times.where(dated), format="ISO8601", utc=True, errors="coerce")
    seconds = (moments - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    wrong = times[~(seconds >= 0)]
    if len(wrong):
        problems.append(
            f"{path}: {len(wrong)} times are not ISO dates from 1970 on, for example {examples(wrong)}; expected 2024-05-31 or 2024-05-31T18:00:00Z, "
            "as the others are"
        )
    return seconds.map("{:.6f}".format).str.rstrip("0").str.rstrip(".")
