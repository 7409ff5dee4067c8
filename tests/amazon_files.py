"""Generated files of Amazon's releases, with every fault that real ones have."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

KEYS = {"2014": ("reviewerID", "asin", "unixReviewTime"), "2018": ("reviewerID", "asin", "unixReviewTime")} | {
    "2023": ("user_id", "parent_asin", "timestamp")
}
DAY = 86400
TITLES = (
    "Halo {} &amp; &quot;Friends&quot;", "I <3 Game {}",
    "  spaced\t out\n{}\r\n", "Caf\u00e9 {} \u2122", "&lt;Import&gt; {}", "{} <Japanese Import>", "It's {} \\d",
    "word " * 19 + "{}", "&amp;amp; {}", '"quoted {}"',
)  # fmt: skip
BAD_TITLES = (
    None, "", "  ", "&nbsp;", ["a", "list"], 5, "<span id=\"productTitle\" class='a'>{}", "a <b>bold</b> {}",
    "cut <img src=", "&lt;br&gt;{}", "<BR/>{}",
    "word " * 20 + "{}", "X", "<!-- {}", "a  b" * 8 + " {}",
)  # fmt: skip
FAULTS = (
    b'{"reviewerID": "A1", "asin": "B0', b"not json", b"[1, 2]", b'"text"', b"\xff\xfe{}", b"", b"   ", b"{'reviewerID': broken}", b'{"a": 1}',
)  # fmt: skip


def interactions(count: int, users: int, items: int, seed: int) -> list[dict]:
    """Reviews, some users and items with far more than others; several on one day, a few twice."""
    draw = np.random.default_rng(seed)
    rows = zip(draw.zipf(1.5, count) % users, draw.zipf(1.4, count) % items, draw.integers(14600, 17830, count), strict=True)
    found = [{"user": f"A{user}", "item": f"B{item:04}", "time": int(day) * DAY} for user, item, day in rows]
    return [*found, *(found[place] for place in draw.integers(0, count, count // 20))]


def review(release: str, row: dict) -> dict:
    """A review as a release has it."""
    user, item, time = KEYS[release]
    values = {user: row["user"], item: row["item"], time: row["time"] * (1000 if release == "2023" else 1)}
    return {"overall": 5.0, **values, "reviewText": 'so "good"\n\ttabs \u00e9'}


def titled(items: Sequence[str], seed: int) -> list[dict]:
    """Items, most with a good title, some with a bad one, some twice, and the last of them absent."""
    draw = np.random.default_rng(seed)
    found = []
    for number, item in enumerate(items[:-1]):
        titles = BAD_TITLES if draw.random() < 0.3 else TITLES
        for _ in range(1 + (draw.random() < 0.15)):
            title = titles[draw.integers(len(titles))]
            found.append({"item": item, "title": title.format(number) if isinstance(title, str) else title})
            titles = BAD_TITLES if draw.random() < 0.5 else TITLES
    return found


def write_lines(path: Path, lines: Sequence[bytes], end: bytes = b"\n") -> Path:
    """A file of lines, gzip where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = end.join([*lines, b""])
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def write_raw(folder: Path, release: str, rows: list[dict], items: list[dict], seed: int = 0, faults: bool = True) -> tuple[Path, Path]:
    """Reviews and metadata of a release, with faults among their lines."""
    draw = np.random.default_rng(seed)
    reviews = [json.dumps(review(release, row), ensure_ascii=bool(draw.integers(2))).encode() for row in rows]
    key = KEYS[release][1]
    metadata = [{key: item["item"], "description": ["<p>it's</p>"], **({} if item["title"] is None else {"title": item["title"]})} for item in items]
    write = (lambda record: repr(record).encode()) if release == "2014" else (lambda record: json.dumps(record).encode())
    meta = [write(record) for record in metadata]
    if faults:
        broken = [review(release, rows[0]) for _ in range(8)]
        for record, (place, value) in zip(
            broken,
            ((0, None), (0, "two words"), (1, ""), (1, ["B1"]), (2, None), (2, -5), (2, "never"), (2, 9e12)),
            strict=True,
        ):
            record[KEYS[release][place]] = value
        loose = repr(review(release, rows[1])).encode()
        surrogate = json.dumps({**review(release, rows[2]), "reviewText": "\ud83d"}).encode()
        for line in (*FAULTS, *(json.dumps(record).encode() for record in broken), loose, surrogate):
            reviews.insert(int(draw.integers(1, len(reviews))), line)
        for line in (*FAULTS, b'{"title": "no id"}', repr({key: "B9999", "title": "it's"}).encode()):
            meta.insert(int(draw.integers(1, len(meta))), line)
    suffix = "" if release == "2014" else ".gz"
    ending = b"\r\n" if release == "2023" else b"\n"
    return write_lines(folder / f"Games.json{suffix}", reviews, ending), write_lines(folder / f"meta_Games.json{suffix}", meta, ending)
