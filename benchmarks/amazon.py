"""Amazon's raw reviews by the paper's rules: how fast and in how much memory, against plain Python. `python benchmarks/amazon.py --help`

docs/benchmarks.md says what is measured and how, and has the table, which `--write` makes anew together with results/amazon.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from measuring import held
from plain_amazon import Plain, filtered
from reporting import MEBIBYTE, Figure, command_line, count, publish
from tqdm import tqdm

from recbole_prunerec.amazon.store import raw_dataset
from recbole_prunerec.exits import guarded
from recbole_prunerec.report.cost import Stopwatch
from recbole_prunerec.settings import Rules

KEYS = ("reviewerID", "asin", "unixReviewTime")
BATCH = 100_000
DAY = 86400
FIRST_DAY, LAST_DAY = 10_000, 17_800  # 1997 and 2018, in days since 1970
RULES = Rules(min_items=300)  # with fewer reviews than a real category has
WORDS = ("the", "a", "game", "of", "great", "fun", "but", "my", "son", "plays", "it", "all", "day", "love", "hate", "works", "well", "until", "broke")


class Run(NamedTuple):
    """What filtering so many reviews took."""

    reviews: int
    seconds: float
    bytes: int  # of memory, above what was held before


def main(argv: Sequence[str]) -> None:
    """Measure what `argv` asks for and show it."""
    options = _options(argv)
    sizes = [options.reviews // 10, options.reviews * 3 // 10, options.reviews]
    with TemporaryDirectory() as folder, Stopwatch() as watch:
        with Stopwatch() as writing:
            files = [write_files(Path(folder) / str(size), size, options.seed) for size in tqdm(sizes, desc="generating", unit="size")]
        plain, same = _plain(files[0], sizes[0], Path(folder))
        ours = [_ours(paths, size, Path(folder) / "out") for paths, size in zip(files, sizes, strict=True)]
        megabytes = sum(path.stat().st_size for path in files[-1]) / 10**6
    last, (first_speed, speed, plain_speed) = ours[-1], (run.reviews / run.seconds for run in (ours[0], ours[-1], plain))
    figures = [
        Figure("speed", f"reviews a second, of {last.reviews:,}", speed, "{:,.0f}"),
        Figure("plain_speed", f"plain Python's, of {plain.reviews:,}", plain_speed, "{:,.0f}"),
        Figure("speedup", "times plain Python", speed / plain_speed, "{:.2f}", least=3),
        Figure("growth", "seconds a review, times those of a tenth of the reviews", first_speed / speed, "{:.2f}", 1.2),
        Figure("memory", "peak memory above what was held, MiB", last.bytes / MEBIBYTE, "{:,.0f}", 4096),
        Figure("plain_memory", f"plain Python's, of {plain.reviews:,}", plain.bytes / MEBIBYTE, "{:,.0f}"),
        Figure("different", "whether the two results differ", float(not same), "{:.0f}", 0),
        Figure("size", "size of the two files, MB", megabytes, "{:,.0f}"),
        Figure("writing", "seconds to generate all files, not counted above", writing.seconds, "{:.0f}"),
    ]
    rows = [
        {"reviews": f"{run.reviews:,}", "seconds": run.seconds, "reviews a second": run.reviews / run.seconds, "MiB": run.bytes / MEBIBYTE}
        for run in ours
    ]
    publish("amazon", figures, options, argv, watch.seconds, rows)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_line("amazon", "How fast raw reviews are filtered.")
    parser.add_argument(
        "--reviews", type=count, default=5_000_000, help="generated, and a tenth and three tenths of that; the tenth in plain Python, too"
    )
    return parser.parse_args(argv)


def write_files(folder: Path, reviews: int, seed: int) -> tuple[Path, Path]:
    """Reviews and metadata as the release of 2018 has them: few users write most, few items have most, and there are more every year."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    users, items = reviews // 4 + 1, reviews // 80 + 100
    paths = folder / "Games.json.gz", folder / "meta_Games.json.gz"
    with gzip.open(paths[0], "wt", compresslevel=1) as file:
        for start in range(0, reviews, BATCH):
            file.writelines(_reviews(draw, min(BATCH, reviews - start), users, items))
    with gzip.open(paths[1], "wt", compresslevel=1) as file:
        for item in range(items):
            title = f"Game &amp; Watch {item}" if item % 10 else "<span id='title'>"
            file.write(json.dumps({"category": ["Games"], "description": [" ".join(WORDS)], "title": title, "asin": f"B{item:09}"}) + "\n")
    return paths


def _reviews(draw: np.random.Generator, number: int, users: int, items: int) -> Iterator[str]:
    who = (users * draw.random(number) ** 3).astype(int)
    what = (items * draw.random(number) ** 3).astype(int)
    days = FIRST_DAY + ((LAST_DAY - FIRST_DAY) * draw.random(number) ** 0.2).astype(int)
    texts = [" ".join(draw.choice(WORDS, size)) for size in draw.integers(5, 150, 100)]
    for user, item, day, text in zip(who.tolist(), what.tolist(), days.tolist(), draw.integers(0, len(texts), number).tolist(), strict=True):
        yield (
            f'{{"overall": 5.0, "verified": true, "reviewTime": "10 17, 2015", "reviewerID": "A{user:013}", "asin": "B{item:09}", '
            f'"reviewerName": "G M", "reviewText": "{texts[text]}", "summary": "but in spite of that it was great", "unixReviewTime": {day * DAY}}}\n'
        )


def _plain(paths: tuple[Path, Path], reviews: int, folder: Path) -> tuple[Run, bool]:
    """Plain Python's run, and whether ours gives the same."""
    with held() as peak, Stopwatch() as watch:
        expected = filtered(*paths, KEYS, RULES.model_dump())
    return Run(reviews, watch.seconds, peak.bytes), _same(expected, raw_dataset(*paths, RULES, folder / "same", "games", show_progress=False))


def _same(expected: Plain, dataset: Path) -> bool:
    rows, titles = ((dataset / f"games.{kind}").read_text(encoding="utf-8").splitlines()[1:] for kind in ("inter", "item"))
    return rows == [f"{user}\t{item}\t{time:.0f}" for user, item, time in expected.rows] and titles == [
        f"{item}\t{title}" for item, title in expected.titles.items()
    ]


def _ours(paths: tuple[Path, Path], reviews: int, out: Path) -> Run:
    with held() as peak, Stopwatch() as watch:
        raw_dataset(*paths, RULES, out, f"games-{reviews}", show_progress=False)
    return Run(reviews, watch.seconds, peak.bytes)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), "the same command starts again"))
