"""The rules over the tables that were read: which interactions stay. Every step is SQL that duckdb can spill to the disk; no table comes into Python.

From `read_interactions` and `read_titles` come, each row with its line in the file,

    users(user_id, user_name)
    items(item_id, item_name, line, title, fate)       fate: why the item is dropped, null where it stays
    interactions(line, user_id, item_id, time, stage)  stage: the place in STAGES of the rule that drops it by its item or as repeated, else null
    core(line, user_id, item_id)                       what stays
"""

from __future__ import annotations

import logging
from calendar import timegm
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recbole_prunerec.amazon.engine import single
from recbole_prunerec.amazon.statistics import ABSENT, AFTER, BEFORE, CORE, REPEATED, STAGES, Size, Window
from recbole_prunerec.amazon.titles import cleaned
from recbole_prunerec.settings import Rules

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

BATCH = 100_000  # titles cleaned at a time
CHOSEN = {  # of an item's lines: the first that has a title; as the paper's reference does, the first that is dropped, else the last
    "ours": "coalesce(fate, '') = 'untitled', line",
    "d3": "fate IS NULL, CASE WHEN fate IS NULL THEN -line ELSE line END",
}

EPOCH = 1970 * 12  # in months

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How much the rules dropped."""

    sizes: list[Size]  # at first, and after each of STAGES
    repeated: int  # interactions that repeat an earlier one, whether they were dropped or not
    windows: list[Window]  # those tried, of which the last one was taken


def apply(connection: Connection, rules: Rules) -> Outcome:
    """Make the tables of the module's docstring."""
    _number(connection)
    _judge_titles(connection, rules)
    repeated = _stage(connection, rules)
    windows = _find_window(connection, rules)
    return Outcome([*_sizes(connection, windows[-1]), _size(connection)], repeated, windows)


def _number(connection: Connection) -> None:
    """Users and items become whole numbers, which takes a tenth of the memory to count."""
    for side in ("user", "item"):
        names = f"SELECT DISTINCT {side}_name FROM read_interactions"
        connection.execute(f"CREATE TABLE {side}s AS SELECT (row_number() OVER ())::INTEGER AS {side}_id, {side}_name FROM ({names})")


def _judge_titles(connection: Connection, rules: Rules) -> None:
    """Give `items` their titles and fates. Titles are cleaned in Python, a batch at a time."""
    connection.execute("CREATE TEMP TABLE judged (item_id INTEGER, line BIGINT, title VARCHAR, fate VARCHAR)")
    rows = connection.cursor().execute("SELECT item_id, line, title FROM read_titles JOIN items USING (item_name)")
    while batch := rows.fetchmany(BATCH):
        ids, lines, titles = zip(*batch, strict=True)
        texts, fates = np.empty(len(batch), dtype=object), np.empty(len(batch), dtype=object)
        for place, title in enumerate(titles):
            texts[place], fates[place] = cleaned(title, rules)
        frame = {"item_id": np.array(ids), "line": np.array(lines), "title": texts, "fate": fates}  # noqa: F841  # duckdb looks it up by this name
        connection.execute("INSERT INTO judged SELECT * FROM frame")
    chosen = f"SELECT * FROM judged QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY {CHOSEN[rules.title_rules]}) = 1"
    fate = f"CASE WHEN line IS NULL THEN '{ABSENT}' ELSE fate END AS fate"
    connection.execute(f"CREATE TABLE titled AS SELECT item_id, item_name, line, title, {fate} FROM items LEFT JOIN ({chosen}) USING (item_id)")
    connection.execute("DROP TABLE items; DROP TABLE judged; DROP TABLE read_titles; ALTER TABLE titled RENAME TO items")


def _stage(connection: Connection, rules: Rules) -> int:
    """Make `interactions`, and count those of kept items that repeat an earlier one."""
    by_fate = " ".join(f"WHEN fate = '{fate}' THEN {place}" for place, fate in enumerate(STAGES))
    connection.execute(
        f"CREATE TABLE interactions AS SELECT read_interactions.line, user_id, item_id, time, (CASE {by_fate} END)::TINYINT AS stage "
        "FROM read_interactions JOIN users USING (user_name) JOIN items USING (item_name)"
    )
    connection.execute("DROP TABLE read_interactions")
    ordered = "SELECT line, row_number() OVER (PARTITION BY item_id, user_id, time ORDER BY line) AS place FROM interactions WHERE stage IS NULL"
    connection.execute(f"CREATE TEMP TABLE repeats AS SELECT line FROM ({ordered}) WHERE place > 1")
    if rules.repeated == "drop":
        connection.execute(f"UPDATE interactions SET stage = {STAGES.index(REPEATED)} WHERE line IN (SELECT line FROM repeats)")
    (repeated,) = single(connection, "SELECT count(*) FROM repeats")
    return repeated


def _find_window(connection: Connection, rules: Rules) -> list[Window]:
    """Make `core` from the latest window that leaves enough items, or from the longest there is."""
    (first,) = single(connection, "SELECT min(time) FROM interactions WHERE stage IS NULL")
    start, windows = _months(rules.window_start), list[Window]()
    end = _instant(_months(rules.window_end))
    while True:
        begin = _instant(start)
        inside = _condition(begin, end)
        connection.execute(f"CREATE OR REPLACE TABLE core AS SELECT line, user_id, item_id FROM interactions WHERE stage IS NULL AND {inside}")
        rounds = _reduce(connection, rules.core)
        windows.append(Window(start=_named(start), end=rules.window_end, begin_time=begin, end_time=end, rounds=rounds, left=_size(connection)))
        logger.info("%s", windows[-1])
        if start is None or begin is None or first is None or begin <= first or windows[-1].left.items >= rules.min_items:
            return windows
        start = max(start - rules.window_step, EPOCH)


def _reduce(connection: Connection, least: int) -> int:
    """Drop users and items of `core` with fewer than `least` interactions until there is none; how often that took."""
    (count,), rounds = single(connection, "SELECT count(*) FROM core"), 0
    while least > 1:
        enough = " ".join(
            f"SEMI JOIN (SELECT {side} FROM core GROUP BY {side} HAVING count(*) >= {least}) USING ({side})" for side in ("user_id", "item_id")
        )
        connection.execute(f"CREATE OR REPLACE TABLE reduced AS SELECT line, user_id, item_id FROM core {enough}")
        (left,) = single(connection, "SELECT count(*) FROM reduced")
        if left == count:
            break
        connection.execute("DROP TABLE core; ALTER TABLE reduced RENAME TO core")
        count, rounds = left, rounds + 1
    return rounds


def _sizes(connection: Connection, window: Window) -> list[Size]:
    """How many interactions, users and items there are at first, and after each rule but the last, which acts on all at once.

    A user or an item is left as long as one of its interactions is.
    """
    before, after, kept = STAGES.index(BEFORE), STAGES.index(AFTER), STAGES.index(CORE)
    early = f"WHEN time < {window.begin_time} THEN {before}" if window.begin_time is not None else ""
    late = f"WHEN time >= {window.end_time} THEN {after}" if window.end_time is not None else ""
    staged = f"SELECT user_id, item_id, CASE WHEN stage IS NOT NULL THEN stage {early} {late} ELSE {kept} END AS stage FROM interactions"
    counts = []
    for last in (staged, *(f"SELECT max(stage) AS stage FROM ({staged}) GROUP BY {side}" for side in ("user_id", "item_id"))):
        counts.append(dict(connection.execute(f"SELECT stage, count(*) FROM ({last}) GROUP BY stage").fetchall()))
    return [Size(*(sum(n for stage, n in by_stage.items() if stage >= place) for by_stage in counts)) for place in range(len(STAGES))]


def _size(connection: Connection) -> Size:
    return Size(*single(connection, "SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id) FROM core"))


def _months(month: str | None) -> int | None:
    """`2018-11` as a number of months."""
    return int(month[:4]) * 12 + int(month[5:]) - 1 if month else None


def _named(months: int | None) -> str | None:
    return None if months is None else f"{months // 12}-{months % 12 + 1:02}"


def _instant(months: int | None) -> int | None:
    """The first second of a month, in seconds since 1970, UTC."""
    return None if months is None else timegm((months // 12, months % 12 + 1, 1, 0, 0, 0))


def _condition(begin: int | None, end: int | None) -> str:
    """SQL for a time in the window [begin, end)."""
    bounds = ([] if begin is None else [f"time >= {begin}"]) + ([] if end is None else [f"time < {end}"])
    return " AND ".join(bounds) or "true"
