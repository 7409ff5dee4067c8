"""Text files as columns of text, each row under its line, so that a message can name the place. No RecBole here.

Readers add what is wrong to a list of problems and go on, so that all of them are seen at once.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from recbole_prunerec.errors import nearest
from recbole_prunerec.validation.sentences import LONGEST_CELL, examples, short

SEPARATORS = "\t,;| "

Find = Callable[[list[str], list[str]], dict[str, int]]  # (the first line's cells, problems) -> the place of each column, none where one is missing


class Column(NamedTuple):
    """A column of an atomic file."""

    name: str
    kind: str  # RecBole's type; empty where any will do
    key: str  # the setting that names it


def read_atomic(
    path: Path, wanted: Mapping[str, Column], problems: list[str], separator: str, encoding: str, optional: Collection[str] = ()
) -> pd.DataFrame:
    """The columns `wanted` of a RecBole file, as `read_table` gives them; those `optional` only where they are there. Quotes mean nothing in it."""
    example = separator.join(f"{name}:{kind or 'token_seq'}" for name, kind, _ in wanted.values())
    expected = f"expected a first line such as {example!r}"
    return read_table(path, partial(find_typed, path, wanted, optional, separator, expected), problems, separator, encoding, quoted=False)


def read_table(path: Path, find: Find, problems: list[str], separator: str, encoding: str, quoted: bool) -> pd.DataFrame:
    """The columns that `find` chooses, as text, `quoted` as in a CSV or not at all; the index is the line where a row ends. Blank lines are left out.

    Adds to `problems` what keeps the file from being read, which leaves the table empty, and rows of a wrong length, which are left out.
    """
    if len(separator) != 1:
        problems.append(f"field_separator={separator!r} has {len(separator)} characters; expected one, or no field_separator, which means a tab")
        return pd.DataFrame()
    line, lines, bad = 1, list[int](), dict[int, str]()
    try:
        codec = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding  # spreadsheets put a mark before UTF-8
        if not path.is_file():
            find([], problems)
            return pd.DataFrame()
        with path.open(encoding=codec, newline="") as file:
            reader = csv.reader(file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            places = find(header, problems)
            columns, last = {name: list[str]() for name in places}, max(places.values(), default=0)
            for row in reader if places else ():  # a file may have many columns besides, so only these cells are kept
                line = reader.line_num
                if last < len(row) <= len(header):
                    lines.append(line)
                    for name, place in places.items():
                        columns[name].append(row[place])
                elif any(map(str.strip, row)):
                    bad[line] = f"{len(row)}: {' '.join(row)}"
    except LookupError:
        problems.append(f"encoding={encoding} is unknown; expected one that Python has, such as utf-8, cp1252 or utf-16")
    except UnicodeError:
        problems.append(_not_text(path, encoding))
    except csv.Error as error:  # a quote that is never closed, or a cell beyond the csv module's limit
        problems.append(f"{path}: {error}, in what begins after line {line}; close the quote there, or shorten the text")
    else:
        if bad:
            problems.append(
                f"{path}: {len(bad)} lines do not have the {len(header)} columns that the first line names, for example {examples(bad)}; "
                "correct or delete them"
            )
        elif places and not lines:
            problems.append(f"{path} has nothing below its first line")
        return pd.DataFrame(columns, index=lines, dtype=str) if places else pd.DataFrame()
    return pd.DataFrame()


def find_typed(
    path: Path,
    wanted: Mapping[str, Column],
    optional: Collection[str],
    separator: str,
    expected: str,
    header: list[str],
    problems: list[str],
) -> dict[str, int]:
    """Places of the columns `wanted` in a header of `name:type` cells."""
    needed = [column for role, column in wanted.items() if role not in optional]
    if not any(header):
        problems.append(f"{path} {'has an empty first line' if path.is_file() else 'does not exist'}; {expected}")
        return {}
    if len(header) == 1 and header != [f"{name}:{kind}" for name, kind, _ in needed]:
        problems.append(one_column(path, header[0], separator) + f"; {expected}")
        return {}
    names, kinds = ([cell.partition(":")[part] for cell in header] for part in (0, 2))
    missing = [column for column in needed if column.name not in names]
    for name, _, key in missing:
        problems.append(f"{path} has no column {name!r}; it has {', '.join(names)}{nearest(name, names)} (the key is {key}); {expected}")
    places = {role: names.index(column.name) for role, column in wanted.items() if column.name in names}
    mistyped = [place for role, place in places.items() if kinds[place] != (wanted[role].kind or kinds[place])]
    if mistyped:
        got = ", ".join(f"{names[place]!r} has {f'the type {kinds[place]!r}' if kinds[place] else 'no type'}" for place in mistyped)
        problems.append(f"{path}: column {got}; {expected}")
    return {} if missing or mistyped else places


def one_column(path: Path, header: str, separator: str) -> str:
    """The problem with a first line that holds no separator, with the separator that it seems to have."""
    other = next((sign for sign in SEPARATORS if sign in header), None)
    return f"{path} has one column only, {short(header)}, by field_separator={separator!r}" + (f"; is it field_separator={other!r}?" if other else "")


def _not_text(path: Path, encoding: str) -> str:
    """The problem with bytes that are not of the encoding, and where they are."""
    bad = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line.decode(encoding)
        except UnicodeDecodeError as error:
            bad[number] = line[max(0, error.start - LONGEST_CELL // 2) : error.start + LONGEST_CELL // 4].decode(encoding, "backslashreplace")
    where = f": {len(bad)} lines, for example {examples(bad)}" if bad else ""
    return f"{path} is not text in encoding={encoding}{where}; save it as UTF-8, or name its encoding, such as encoding=cp1252"
