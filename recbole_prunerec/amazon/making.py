"""A dataset's files from others: read, judged by the rules, written, and told in statistics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from recbole_prunerec.amazon.atomic import Fields
from recbole_prunerec.amazon.engine import single
from recbole_prunerec.amazon.filtering import apply
from recbole_prunerec.amazon.reading import Source
from recbole_prunerec.amazon.statistics import Removal, Size, Statistics, page, removals
from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Rules
from recbole_prunerec.storage import write_json, write_text
from recbole_prunerec.validation.sentences import listed

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

STATISTICS = "statistics.json"
FEW = 0.5  # of the interactions; fewer with an item that has a title make one doubt that the files belong together

logger = logging.getLogger(__name__)


class Making(NamedTuple):
    """What a dataset is made from, and how."""

    read: Callable[..., list[Source]]  # (connection, most, progress)
    paths: tuple[Path, Path]
    rules: Rules
    fields: Fields
    key: str  # the setting that names the folder
    show_progress: bool


def make(connection: Connection, folder: Path, name: str, made_of: str, making: Making) -> None:
    """Write `<name>.inter`, `<name>.item` and statistics into `folder`.

    Raises `UserError` where a file cannot be used, the two do not belong together, or no interaction is left.
    """
    rules, size = making.rules, sum(path.stat().st_size for path in making.paths)
    with tqdm(total=size, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=not making.show_progress) as bar:
        sources = making.read(connection, most=rules.faults, progress=bar.update)
    _check_overlap(connection, *making.paths)
    outcome = apply(connection, rules)
    removed = removals(outcome.sizes, rules, outcome.windows[-1])
    left = outcome.sizes[-1]
    if not left.interactions:
        raise UserError(_nothing_left(name, outcome.sizes[0], removed))
    first, last = _write(connection, folder / name, making.fields)
    statistics = Statistics(
        dataset=name,
        made_of=made_of,
        rules=rules,
        sources=sources,
        read=outcome.sizes[0],
        removed=removed,
        repeated=outcome.repeated,
        windows=outcome.windows,
        left=left,
        first_time=first,
        last_time=last,
    )
    write_json(folder / STATISTICS, statistics)
    write_text(folder / "statistics.md", page(statistics))
    if left.items < rules.min_items:
        logger.warning("%s: %d items are left, fewer than rules.min_items=%d, in all the time there is", name, left.items, rules.min_items)
    logger.info("%s: %s are left of %s", name, left, outcome.sizes[0])


def _check_overlap(connection: Connection, inter: Path, items: Path) -> None:
    """Raise `UserError` where no item that was interacted with is in the file of titles, and warn where most are not."""
    shared, all_items = "SELECT count(*) FROM read_interactions SEMI JOIN read_titles USING (item_name)", "SELECT count(*) FROM read_interactions"
    (found,), (count,) = single(connection, shared), single(connection, all_items)
    if not found:
        there, titled = (
            listed([item for (item,) in connection.execute(f"SELECT item_name FROM {table} GROUP BY ALL ORDER BY min(line) LIMIT 4").fetchall()])
            for table in ("read_interactions", "read_titles")
        )
        raise UserError(f"{items} has no item of {inter}: {titled} there, {there} here; are they of two categories? give both files of one")
    if found < FEW * count:
        logger.warning("%s: only %d of %d interactions have an item that is in %s; is that of another category?", inter, found, count, items)


def _nothing_left(name: str, read: Size, removed: Sequence[Removal]) -> str:
    lost = "; ".join(f"{row.rule} dropped {row.interactions:,} ({row.why})" for row in removed if row.interactions)
    return f"{name}: no interaction is left of {read.interactions:,}: {lost}; loosen one of these rules (docs/amazon.md)"


def _write(connection: Connection, stem: Path, fields: Fields) -> tuple[float, float]:
    """Write what is left, in the order of the files that were read. Returns the first and the last time."""
    connection.execute("CREATE TABLE chosen AS SELECT interactions.* FROM interactions SEMI JOIN core USING (line)")
    time = "CASE WHEN time = floor(time) THEN time::BIGINT::VARCHAR ELSE time::VARCHAR END"
    rows = {
        ".inter": f'SELECT user_name AS "{fields.user}:token", item_name AS "{fields.item}:token", {time} AS "{fields.time}:float" '
        "FROM chosen JOIN users USING (user_id) JOIN items USING (item_id) ORDER BY chosen.line",
        ".item": f'SELECT item_name AS "{fields.item}:token", title AS "{fields.title}:token_seq" '
        "FROM items SEMI JOIN chosen USING (item_id) ORDER BY line",
    }
    for suffix, query in rows.items():
        file = str(stem.with_name(stem.name + suffix)).replace("'", "''")
        connection.execute(f"COPY ({query}) TO '{file}' (FORMAT csv, DELIMITER '\t', HEADER, QUOTE '', ESCAPE '')")
    first, last = connection.execute("SELECT min(time), max(time) FROM chosen").fetchall()[0]
    return first, last
