"""RecBole's atomic files, unfiltered, as its Amazon datasets have them: `name:type` columns, a tab between them, quotes mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from recbole_prunerec.amazon.lines import START, blocks
from recbole_prunerec.amazon.reading import INTERACTIONS, TITLES, Form, Source, read
from recbole_prunerec.data.tables import Column, find_typed
from recbole_prunerec.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection


class Fields(NamedTuple):
    """What the columns are called, in the files that are read and in those that are written."""

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    title: str = "title"


FIELDS = Fields()


def read_atomic(
    connection: Connection, inter: Path, items: Path, fields: Fields, most: float, progress: Callable[[int], object] = int
) -> list[Source]:
    """Make the tables of interactions and titles of a dataset's two files. Raises one `UserError` for their first lines, or where too much of one is
    beyond use."""
    problems: list[str] = []
    item = Column(fields.item, "token", "ITEM_ID_FIELD")
    columns = [Column(fields.user, "token", "USER_ID_FIELD"), item, Column(fields.time, "float", "TIME_FIELD")]
    forms = [_form(inter, columns, problems), _form(items, [item, Column(fields.title, "", "title_field")], problems)]
    if problems:
        raise UserError("\n".join(problems))
    return [
        read(connection, INTERACTIONS, inter, forms[0], most, progress),
        read(connection, TITLES, items, forms[1], most, progress),
    ]


def _form(path: Path, columns: list[Column], problems: list[str]) -> Form:
    """Where the columns stand in a line. Adds to `problems` what is wrong with the first one."""
    try:
        first = next((str(text) for block in islice(blocks(path, size=START), 1) for text in block.texts[:1]), "")
    except UserError as error:
        problems.append(str(error))
        return Form("NULL", "")
    header = [cell.strip() for cell in first.split("\t")]
    example = "\t".join(f"{name}:{kind or 'token'}" for name, kind, _ in columns)
    wanted = {column.name: column for column in columns}
    places = find_typed(path, wanted, (), "\t", f"expected a first line such as {example!r}", header, problems)
    parts = "string_split(text, chr(9))"
    fields = ", ".join(f"{parts}[{place + 1}]" for place in places.values())
    return Form(f"CASE WHEN len({parts}) = {len(header)} THEN [{fields}] END", f"not {len(header)} columns", header=1)
