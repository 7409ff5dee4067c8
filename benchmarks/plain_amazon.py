"""What filtering is compared with: the same rules in plain Python, a dict for a record and a loop for a rule, all in memory.

It shares no code with `recbole_prunerec.amazon`, whose results the tests compare with these.
"""

from __future__ import annotations

import ast
import gzip
import html
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

Row = tuple[str, str, float]  # user, item, seconds since 1970
TAGS = (
    "a|abbr|b|body|br|center|div|em|font|h1|h2|h3|h4|h5|h6|head|hr|html|i|img|input|label|li|link|meta|ol|option|p|script|select|small|span|strong|"
    "style|sub|sup|table|tbody|td|th|tr|u|ul"
)


class Plain(NamedTuple):
    """What is left, and what happened."""

    rows: list[Row]  # in the order of the file
    titles: dict[str, str]  # of the items that are left, in the order of their file
    sizes: list[tuple[int, int, int]]  # interactions, users and items: as read, and after each rule in order
    windows: list[tuple[str | None, tuple[int, int, int]]]  # their first months, and the sizes that they left
    repeated: int
    faults: dict[str, int]  # lines that were left out, by kind, of both files


def records(path: Path, faults: Counter[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file, a line each."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, data in enumerate(file):
            try:
                line = (data[3:] if number == 0 and data.startswith(b"\xef\xbb\xbf") else data).decode()
            except UnicodeDecodeError:
                faults["not UTF-8"] += 1
                continue
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                try:
                    with warnings.catch_warnings(action="ignore"):
                        record = ast.literal_eval(line.strip())
                except (ValueError, SyntaxError):
                    faults["no JSON"] += 1
                    continue
            yield record if isinstance(record, dict) else {}


def an_id(value: Any) -> str | None:
    """A user's or an item's id, None for what is none."""
    text = str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
    return text if text and not re.search(r"[ \t\r\n\f]", text) and text[0] not in "[{" else None


def interactions(path: Path, keys: tuple[str, str, str], faults: Counter[str]) -> Iterator[Row]:
    """Users, items and times of reviews; `keys` are what they are called."""
    for record in records(path, faults):
        user, item = an_id(record.get(keys[0])), an_id(record.get(keys[1]))
        try:
            time = float(record.get(keys[2]))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            time = -1
        time = time / 1000 if time >= 1e11 else time
        if user is None or item is None:
            faults["no user" if user is None else "no item"] += 1
        elif not 0 <= time <= datetime(2100, 1, 1, tzinfo=UTC).timestamp():
            faults["no time between 1970 and 2100"] += 1
        else:
            yield user, item, time


def titles_of(path: Path, item_key: str, rules: Mapping[str, Any], faults: Counter[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Titles of the items that keep one, and why the others do not."""
    titles, why = dict[str, str](), dict[str, str]()
    for record in records(path, faults):
        item, raw = an_id(record.get(item_key)), record.get("title")
        if item is None:
            faults["no item"] += 1
            continue
        title, fate = judged(raw if isinstance(raw, str) else None, rules)
        if rules["title_rules"] == "d3":  # one bad line is enough, and a later title replaces an earlier one
            if fate:
                why.setdefault(item, fate)
            else:
                titles.pop(item, None)
                titles[item] = title
        elif item not in titles and why.get(item, "untitled") == "untitled":  # the first title counts
            why.pop(item, None)
            if fate:
                why[item] = fate
            else:
                titles[item] = title
    return {item: title for item, title in titles.items() if item not in why}, why


def judged(title: str | None, rules: Mapping[str, Any]) -> tuple[str, str]:
    """A cleaned title, and why it is dropped."""
    if rules["title_rules"] == "ours":
        text = " ".join(html.unescape(title or "").split())
        markup = re.search(f"<({TAGS}) ?/?>|</({TAGS}) ?>|<({TAGS}) [a-z:-]+ ?=|<span id|<!--|<!doctype", text.lower())
        return text, "untitled" if not text else "markup" if markup else "long" if len(text.split(" ")) > rules["title_words"] else ""
    if title is None:
        return "", "untitled"
    if title.find("<span id") > -1:
        return title, "markup"
    text = title.replace("&quot;", '"').replace("&amp;", "&").strip(" ").strip('"')
    if not text.split():
        return "", "untitled"
    if len(text) == 1:
        return text, "single"
    return " ".join(text.split()), "long" if len(text.split(" ")) > rules["title_words"] else ""


def size(rows: Iterable[Row]) -> tuple[int, int, int]:
    """Interactions, users and items."""
    rows = list(rows)
    return len(rows), len({user for user, _, _ in rows}), len({item for _, item, _ in rows})


def core_of(rows: list[Row], least: int) -> list[Row]:
    """What is left when users and items with fewer interactions than `least` are dropped for as long as there are any."""
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        kept = [row for row in rows if users[row[0]] >= least and items[row[1]] >= least]
        if len(kept) == len(rows):
            return rows
        rows = kept


def month(text: str | None, back: int = 0) -> tuple[str | None, float]:
    """A month so many before another, not before 1970, and its first second; no month begins with time itself."""
    if text is None:
        return None, float("-inf")
    year, number = map(int, text.split("-"))
    for _ in range(back):
        year, number = (year, number - 1) if number > 1 else (year - 1, 12)
        if year < 1970:
            return "1970-01", 0.0
    return f"{year}-{number:02}", datetime(year, number, 1, tzinfo=UTC).timestamp()


def filtered(reviews: Path, metadata: Path, keys: tuple[str, str, str], rules: Mapping[str, Any]) -> Plain:
    """The rules, one after the other."""
    faults: Counter[str] = Counter()
    rows = list(interactions(reviews, keys, faults))
    titles, why = titles_of(metadata, keys[1], rules, faults)
    sizes = [size(rows)]
    for fate in ("absent", "untitled", "markup", "single", "long"):
        rows = [row for row in rows if (why.get(row[1]) != fate if fate != "absent" else row[1] in titles or row[1] in why)]
        sizes.append(size(rows))
    seen, again = set[Row](), [False] * len(rows)
    for place, row in enumerate(rows):
        again[place] = row in seen
        seen.add(row)
    if rules["repeated"] == "drop":
        rows = [row for row, repeats in zip(rows, again, strict=True) if not repeats]
    sizes.append(size(rows))
    first, end = min((row[2] for row in rows), default=0.0), month(rules["window_end"])[1] if rules["window_end"] else float("inf")
    start, windows = rules["window_start"], []
    while True:
        name, begin = month(start)
        late = [row for row in rows if row[2] >= begin]
        left = core_of([row for row in late if row[2] < end], rules["core"])
        windows.append((name, size(left)))
        if name is None or begin <= first or size(left)[2] >= rules["min_items"]:
            break
        start = month(start, rules["window_step"])[0]
    sizes += [size(late), size(row for row in late if row[2] < end), size(left)]
    items = {row[1] for row in left}
    return Plain(left, {item: title for item, title in titles.items() if item in items}, sizes, windows, sum(again), dict(faults))
