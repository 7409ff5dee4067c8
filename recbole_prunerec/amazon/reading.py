"""From a file to a table of duckdb: lines become rows, and what is wrong with a line is counted by kind, with the first that have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import BaseModel

from recbole_prunerec.amazon.lines import Block, blocks_ahead
from recbole_prunerec.errors import UserError
from recbole_prunerec.storage import file_hash
from recbole_prunerec.validation.sentences import SHOWN

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

LAST_TIME = 4102444800  # 2100, in seconds since 1970; a time beyond MILLISECONDS has another unit
MILLISECONDS = 10**11
NOT_UTF8 = "not UTF-8"


class Table(NamedTuple):
    """What is made of a file's lines, each a list `v` of text or null: SQL for columns, and for what is wrong with a line, by kind."""

    name: str
    columns: dict[str, tuple[str, str]]  # its type and its value, by name
    faults: dict[str, str]


class Form(NamedTuple):
    """How the fields of a line are told apart."""

    fields: str  # SQL that makes a list of text of the line `text`, or null where it does not have this form
    broken: str  # the kind of fault that such a line has
    header: int = 0  # lines above the first record
    rescue: Callable[[str], list[str | None] | None] | None = None  # a second look at such a line
    rescued: str = ""  # what is said of the lines for which it found something


class Fault(BaseModel):
    """Lines of a file with something wrong."""

    kind: str
    lines: int
    first: list[int]  # numbers of the first of them
    used: bool = False  # whether they were read all the same


class Source(BaseModel):
    """A file that was read."""

    file: str
    sha256: str
    lines: int  # records, those left out included
    faults: list[Fault]

    @property
    def left_out(self) -> int:
        """How many lines were of no use."""
        return sum(fault.lines for fault in self.faults if not fault.used)


def _no_id(place: int) -> str:
    """White space would break the files that are written, and a bracket begins what is no id."""
    return rf"NOT coalesce(regexp_full_match(v[{place}], '[^\s\[{{]\S*'), false)"


NUMBER = "try_cast(v[3] AS DOUBLE)"
SECONDS = f"CASE WHEN {NUMBER} >= {MILLISECONDS} THEN {NUMBER} / 1000 ELSE {NUMBER} END"
INTERACTIONS = Table(
    "read_interactions",
    {"line": ("BIGINT", "line"), "user_name": ("VARCHAR", "v[1]"), "item_name": ("VARCHAR", "v[2]"), "time": ("DOUBLE", SECONDS)},
    {"no user": _no_id(1), "no item": _no_id(2), "no time between 1970 and 2100": f"NOT coalesce({SECONDS} BETWEEN 0 AND {LAST_TIME}, false)"},
)
TITLES = Table(
    "read_titles",
    {"line": ("BIGINT", "line"), "item_name": ("VARCHAR", "v[1]"), "title": ("VARCHAR", "v[2]")},
    {"no item": _no_id(1)},
)


def read(connection: Connection, table: Table, path: Path, form: Form, most: float, progress: Callable[[int], object] = int) -> Source:
    """Make `table` of the lines of `path`. Raises `UserError` where more than the share `most` of them is beyond use, or there is none."""
    connection.execute(f"CREATE TABLE {table.name} ({', '.join(f'{name} {kind}' for name, (kind, _) in table.columns.items())})")
    faults, lines = dict[str, Fault](), 0
    for block in blocks_ahead(path, progress):
        if form.header and not lines:
            block = Block(block.numbers[form.header :], block.texts[form.header :], block.undecoded)
        lines += len(block.numbers) + len(block.undecoded)
        _count(faults, NOT_UTF8, block.undecoded)
        _parse(connection, table, block, form, faults)
        _insert(connection, table, faults)
    source = Source(file=path.name, sha256=file_hash(path), lines=lines, faults=sorted(faults.values(), key=lambda fault: -fault.lines))
    if not lines or source.left_out > most * lines:
        found = "; ".join(f"{fault.kind}: {fault.lines:,} (line {', '.join(map(str, fault.first))})" for fault in source.faults if not fault.used)
        got = f"{path}: {source.left_out:,} of {lines:,} lines are of no use, more than rules.faults={most}"
        raise UserError(f"{got}: {found}; fetch it again, or raise rules.faults" if lines else f"{path} holds no records; expected a line for each")
    return source


def _parse(connection: Connection, table: Table, block: Block, form: Form, faults: dict[str, Fault]) -> None:
    """Make the table `parsed` of a block: line, fields `v`, and what is wrong with them, if anything."""
    cases = " ".join(f"WHEN {condition} THEN '{kind}'" for kind, condition in {form.broken: "v IS NULL", **table.faults}.items())
    judged = f"SELECT *, CASE {cases} END AS fault FROM"
    frame = {"line": block.numbers, "text": block.texts}  # duckdb looks it up by this name
    connection.execute(f"CREATE OR REPLACE TEMP TABLE parsed AS {judged} (SELECT line, {form.fields} AS v FROM frame)")
    if form.rescue is None:
        return
    broken = [line for (line,) in connection.execute("SELECT line FROM parsed WHERE v IS NULL ORDER BY line").fetchall()]
    places = np.searchsorted(block.numbers, broken)
    found = [(line, fields) for line, text in zip(broken, block.texts[places], strict=True) if (fields := form.rescue(text)) is not None]
    if found:
        numbers, columns = [line for line, _ in found], zip(*(fields for _, fields in found), strict=True)
        frame = {"line": np.array(numbers), **{f"f{place}": _text(column) for place, column in enumerate(columns)}}
        connection.execute("DELETE FROM parsed WHERE line IN (SELECT line FROM frame)")
        connection.execute(f"INSERT INTO parsed {judged} (SELECT line, [{', '.join(list(frame)[1:])}] AS v FROM frame)")
        _count(faults, form.rescued, numbers, used=True)


def _text(values: Sequence[str | None]) -> np.ndarray:
    """A column of text, in which half a character, which JSON can hold and UTF-8 cannot, is a question mark."""
    column = np.empty(len(values), dtype=object)
    column[:] = [value if value is None else value.encode("utf-8", "replace").decode() for value in values]
    return column


def _insert(connection: Connection, table: Table, faults: dict[str, Fault]) -> None:
    """Add the lines of `parsed` to the table, but for those with a fault, which are counted."""
    values = ", ".join(value for _, value in table.columns.values())
    connection.execute(f"INSERT INTO {table.name} SELECT {values} FROM parsed WHERE fault IS NULL")
    wrong = connection.execute(f"SELECT fault, count(*), min(line, {SHOWN}) FROM parsed WHERE fault IS NOT NULL GROUP BY fault ORDER BY fault")
    for kind, lines, first in wrong.fetchall():
        _count(faults, kind, first, lines)


def _count(faults: dict[str, Fault], kind: str, first: Sequence[int], lines: int | None = None, used: bool = False) -> None:
    """Add lines of a block, all in `first` unless `lines` says how many there are, to those of their kind."""
    count = len(first) if lines is None else lines
    if count:
        fault = faults.setdefault(kind, Fault(kind=kind, lines=0, first=[], used=used))
        fault.lines += count
        fault.first = [*fault.first, *first][:SHOWN]
