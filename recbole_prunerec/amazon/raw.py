"""Amazon's raw files: the releases, told apart by their keys, and the fields of their lines.

A line is a JSON object, or, in the metadata of 2014, a Python dict.
"""

from __future__ import annotations

import ast
import json
import logging
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recbole_prunerec.amazon.lines import START, blocks
from recbole_prunerec.amazon.reading import INTERACTIONS, TITLES, Form, Source, read
from recbole_prunerec.errors import UserError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

LOOKED_AT = 1000  # lines at a file's start that tell its release
REWRITTEN = "a Python dict or loose JSON"

logger = logging.getLogger(__name__)


class Release(NamedTuple):
    """What the keys of a release are called."""

    name: str
    user: str
    item: str
    time: str

    @property
    def reviews(self) -> tuple[str, ...]:
        """The keys of a review that are read."""
        return self.user, self.item, self.time

    @property
    def metadata(self) -> tuple[str, ...]:
        """The keys of an item that are read; of these the title may be absent."""
        return self.item, "title"


RELEASES = (Release("2014 or 2018", "reviewerID", "asin", "unixReviewTime"), Release("2023", "user_id", "parent_asin", "timestamp"))


def read_raw(connection: Connection, reviews: Path, metadata: Path, most: float, progress: Callable[[int], object] = int) -> list[Source]:
    """Make the tables of interactions and titles of a category's two files.

    Raises `UserError` where a file is of no known release, the two are of different ones, or too much of one is beyond use.
    """
    found = _release(reviews, lambda release: release.reviews, "reviews"), _release(metadata, lambda release: (release.item,), "metadata")
    if found[0] != found[1]:
        names = [release.name for release in found]
        raise UserError(f"{reviews} is of the release {names[0]}, {metadata} of {names[1]}; give both files of one release")
    logger.info("%s and %s: of the release %s", reviews.name, metadata.name, found[0].name)
    return [
        read(connection, INTERACTIONS, reviews, json_form(found[0].reviews), most, progress),
        read(connection, TITLES, metadata, json_form(found[0].metadata), most, progress),
    ]


def _release(path: Path, keys: Callable[[Release], tuple[str, ...]], what: str) -> Release:
    """The release of a file, by the first record that has all keys that it should."""
    shown: dict[str, None] = {}
    for text in islice((text for block in blocks(path, size=START) for text in block.texts), LOOKED_AT):
        record = parsed(text) or {}
        shown |= dict.fromkeys(map(str, record))
        for release in RELEASES:
            if set(keys(release)) <= record.keys() and not (what == "metadata" and set(release.reviews) <= record.keys()):
                return release
    wanted = " or ".join(", ".join(keys(release)) for release in RELEASES)
    got = f"their keys are {', '.join(shown)}" if shown else "none is a JSON object"
    raise UserError(f"{path} does not hold {what}: of its first lines, {got}; expected {wanted}")


def json_form(keys: tuple[str, ...]) -> Form:
    """JSON objects with `keys`; what duckdb does not take as such, Python may."""
    fields = f"json_extract_string(text, {[f'$.{key}' for key in keys]})"
    if "title" in keys:  # a list would pass for text
        fields = f"CASE WHEN json_type(text, '$.title') = 'VARCHAR' THEN {fields} ELSE [json_extract_string(text, '$.{keys[0]}'), NULL] END"
    return Form(f"TRY({fields})", "no JSON", rescue=lambda text: _values(text, keys), rescued=REWRITTEN)


def parsed(text: str) -> dict[str, Any] | None:
    """The record on a line, where it is a JSON object or a Python dict."""
    for parse in (json.loads, _literal):
        try:
            record = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return record if isinstance(record, dict) else None
    return None


def _literal(text: str) -> Any:
    with warnings.catch_warnings(action="ignore"):  # of an escape such as \d
        return ast.literal_eval(text)


def _values(text: str, keys: tuple[str, ...]) -> list[str | None] | None:
    record = parsed(text)
    return None if record is None else [_as_text(record.get(key), strict=key == "title") for key in keys]


def _as_text(value: Any, strict: bool) -> str | None:
    numbers = () if strict else (int, float)
    return str(value) if isinstance(value, (str, *numbers)) and not isinstance(value, bool) else None
