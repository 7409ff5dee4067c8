"""What the rules did to a dataset: counts by rule, and the page that states them beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import BaseModel
from tabulate import tabulate

from recbole_prunerec.amazon.reading import Source
from recbole_prunerec.amazon.titles import LONG, MARKUP, SINGLE, UNTITLED
from recbole_prunerec.settings import Rules

ABSENT, REPEATED, BEFORE, AFTER, CORE = "absent", "repeated", "before", "after", "core"
STAGES = (ABSENT, UNTITLED, MARKUP, SINGLE, LONG, REPEATED, BEFORE, AFTER, CORE)  # in their order

PAPER = {  # Table 1: the paper's name of a dataset of RecBole's, items, and samples of training, validation and test
    "amazon-video-games-18": ("Games", 11037, 201613, 25202, 25203),
    "amazon-cds-vinyl-18": ("CDs", 14239, 148685, 18586, 18587),
    "amazon-sports-outdoors-18": ("Sports", 16003, 181477, 22685, 22686),
}


class Size(NamedTuple):
    """How large a dataset is."""

    interactions: int
    users: int
    items: int

    def __str__(self) -> str:
        return f"{self.interactions:,} interactions of {self.users:,} users with {self.items:,} items"


class Window(BaseModel):
    """A window of time that was tried, and what the k-core left of it."""

    start: str | None  # its first month
    end: str | None  # the month after its last
    begin_time: int | None  # in seconds since 1970
    end_time: int | None
    rounds: int  # passes of the k-core that dropped something
    left: Size

    def __str__(self) -> str:
        span = f"from {self.start or 'the first interaction'} to {self.end or 'the last one'}"
        return f"window {span}: {self.left} after {self.rounds} round{'' if self.rounds == 1 else 's'} of the k-core"


class Removal(BaseModel):
    """What a rule dropped, and what it left."""

    rule: str
    why: str
    interactions: int
    users: int
    items: int
    left: Size


class Statistics(BaseModel):
    """What statistics.json holds."""

    dataset: str
    made_of: str  # the hash of files, rules and this code's version: the same again is not made again
    rules: Rules
    sources: list[Source]
    read: Size
    removed: list[Removal]
    repeated: int
    windows: list[Window]
    left: Size
    first_time: float
    last_time: float

    @property
    def samples(self) -> tuple[int, int, int]:
        """Those of training, validation and test by split=global_time: one for each interaction after a user's first (METHOD 1)."""
        count = self.left.interactions - self.left.users
        cuts = (0, count * 8 // 10, count * 9 // 10, count)
        return cuts[1], cuts[2] - cuts[1], cuts[3] - cuts[2]


def removals(sizes: Sequence[Size], rules: Rules, window: Window) -> list[Removal]:
    """A row for each rule; `sizes` are those at first and after each of STAGES. Rules that cannot act under `rules` have none."""
    shown = {
        ABSENT: ("no title file", "the item is not in the file of titles"),
        UNTITLED: ("no title", "the item's title is missing or blank"),
        MARKUP: ("title_rules", "the title has markup" if rules.title_rules == "ours" else "the title has `<span id`"),
        SINGLE: ("title_rules", "the title has one character"),
        LONG: ("title_words", f"the title has over {rules.title_words} words"),
        REPEATED: ("repeated", "user, item and time are those of an earlier interaction"),
        BEFORE: ("window_start", f"before {window.start}"),
        AFTER: ("window_end", f"in {window.end} or later"),
        CORE: ("core", f"the user or the item has fewer than {rules.core} interactions, again and again"),
    }
    idle = {
        SINGLE: rules.title_rules != "d3",
        REPEATED: rules.repeated != "drop",
        BEFORE: window.start is None,
        AFTER: window.end is None,
        CORE: rules.core < 2,
    }
    rows = []
    for place, stage in enumerate(STAGES):
        if not idle.get(stage):
            lost = Size(*(before - after for before, after in zip(sizes[place], sizes[place + 1], strict=True)))
            rule, why = shown[stage]
            rows.append(Removal(rule=rule, why=why, **lost._asdict(), left=sizes[place + 1]))
    return rows


def page(statistics: Statistics) -> str:
    """statistics.md."""
    parts = [
        f"# {statistics.dataset}",
        f"{statistics.left}, from {_day(statistics.first_time)} to {_day(statistics.last_time)} (UTC). Made of the files below by the rules below, "
        "in their order; docs/amazon.md tells what each does.",
        "## Rules",
        _table(["Key", "Value"], [[f"`rules.{key}`", _shown(value)] for key, value in statistics.rules.model_dump().items()]),
        "## Files",
        *(_file(source) for source in statistics.sources),
        "## What was dropped",
        _removed(statistics),
        f"{statistics.repeated:,} interactions with an item whose title stays repeat an earlier one's user, item and time; "
        f"rules.repeated={statistics.rules.repeated}.",
        "## Windows tried",
        _table(
            ["From", "To before", *_headings("left after the k-core"), "Rounds"],
            [[_shown(window.start), _shown(window.end), *map(_count, window.left), _count(window.rounds)] for window in statistics.windows],
        ),
        "## Samples",
        _samples(statistics),
    ]
    return "\n\n".join(parts) + "\n"


def _removed(statistics: Statistics) -> str:
    first = ["", "as read", *[""] * 3, *map(_count, statistics.read)]
    rows = [[row.rule, row.why, *map(_count, (row.interactions, row.users, row.items)), *map(_count, row.left)] for row in statistics.removed]
    return _table(["Rule", "Why", *_headings("dropped"), *_headings("left")], [first, *rows])


def _samples(statistics: Statistics) -> str:
    figures = (statistics.left.items, *statistics.samples)
    headings, rows = ["", "Items", "Training", "Validation", "Test"], [["here", *map(_count, figures)]]
    if statistics.dataset in PAPER:
        name, *paper = PAPER[statistics.dataset]
        rows += [
            [f"paper's Table 1, {name}", *map(_count, paper)],
            ["difference", *(f"{ours - theirs:+,}" for ours, theirs in zip(figures, paper, strict=True))],
        ]
    text = "One sample for each interaction after a user's first, in the order of time, cut at 8/10 and 9/10 of all (`split: global_time`)."
    note = "The paper's parts are those of cuts at 8/10 and 9/10 of all samples but one, so that equal totals still differ by one a part."
    return "\n\n".join([text, _table(headings, rows), *([note] if statistics.dataset in PAPER else [])])


def _file(source: Source) -> str:
    faults = [[fault.kind, _count(fault.lines), ", ".join(map(str, fault.first)), "read" if fault.used else "left out"] for fault in source.faults]
    text = f"`{source.file}`: {source.lines:,} lines, {source.left_out:,} of no use; SHA-256 {source.sha256}"
    return text + ("\n\n" + _table(["Fault", "Lines", "First lines", "They are"], faults) if faults else "")


def _table(headings: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headings, tablefmt="github", disable_numparse=True)


def _headings(what: str) -> list[str]:
    return [f"{name} {what}" for name in ("Interactions", "Users", "Items")]


def _count(number: int) -> str:
    return f"{number:,}"


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
