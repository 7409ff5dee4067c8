"""duckdb, with its memory bounded and what does not fit on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_prunerec.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

NO_DUCKDB = "rules need the package duckdb, which is not installed; run: pip install -c constraints.txt -e '.[amazon]'"
MEMORY_MIB = 2048
THREADS = 8  # at most: each takes its share of the memory


@contextmanager
def engine(folder: Path) -> Iterator[Connection]:
    """A database in memory, which spills into `folder`. Raises `UserError` where duckdb is not installed, or the disk has no room."""
    if find_spec("duckdb") is None:
        raise UserError(NO_DUCKDB)
    import duckdb

    options: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{MEMORY_MIB}MiB",
        "temp_directory": str(folder),
        "threads": min(os.cpu_count() or 1, THREADS),
        "preserve_insertion_order": False,  # rows carry their line, and are sorted by it in the end
    }
    try:
        with duckdb.connect(config=options) as connection:
            connection.execute("SET enable_progress_bar = false")
            yield connection
    except (duckdb.IOException, duckdb.TransactionException, duckdb.FatalException, duckdb.OutOfMemoryException) as error:  # of a full disk, all
        raise UserError(f"{folder} has no room for what does not fit into memory ({_sentence(error)}); make room there, or elsewhere") from error


def _sentence(error: Exception) -> str:
    """The first line of what duckdb says; advice on its own settings follows."""
    return str(error).partition("\n")[0].strip()


def single(connection: Connection, query: str) -> tuple[int, ...]:
    """The one row of counts that `query` has."""
    row = connection.execute(query).fetchone()
    return tuple(row or ())
