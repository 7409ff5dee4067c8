"""Ranking the whole catalogue: how fast, how exact, against what. `python benchmarks/ranking.py --help`

docs/benchmarks.md says what is measured and how, and has the table, which `--write` makes anew together with results/ranking.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from material import Work
from parts import PARTS
from reporting import ROOT, Figure, command_line, count, publish
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from recbole_prunerec.errors import nearest
from recbole_prunerec.exits import guarded
from recbole_prunerec.report.cost import Stopwatch
from recbole_prunerec.text.wording import Wording

LATEST = ROOT / "saved" / "latest"


def main(argv: Sequence[str]) -> None:
    """Measure what `argv` asks for and show it."""
    options = _options(argv)
    transformers_logging.disable_progress_bar()
    figures: list[Figure] = []
    with TemporaryDirectory() as folder, Stopwatch() as watch:
        work = Work(options.backbone, options.model or _latest(), Path(folder), options.users, options.titles, options.seed)
        for part in tqdm(options.parts, desc="benchmark", unit="part"):
            figures += PARTS[part](work)
    publish("ranking", figures, options, argv, watch.seconds)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_line("ranking", "How fast and how exact the catalogue is ranked.")
    parser.add_argument("--model", type=Path, help="a trained step's folder; by default saved/latest's last, and if there is none, one trained here")
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}; by default all")
    parser.add_argument("--users", type=count, default=1000, help="at most so many in every part (1000)")
    parser.add_argument("--titles", type=count, default=1_000_000, help="synthetic titles of the part million (1000000)")
    return parser.parse_args(argv)


def _parts(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; expected some of {', '.join(PARTS)}{nearest(name, PARTS)}")
    return names


def _latest() -> Path | None:
    """The last step of the newest run; None where there is no run, it has no steps yet, or it knows the catalogue's softmax alone."""
    worded = ((path, Wording.load(path)) for path in LATEST.glob("[0-9]*-*"))
    steps = [path for path, wording in worded if wording is not None and wording.softmax == "vocabulary"]
    return max(steps, key=lambda path: int(path.name.partition("-")[0]), default=None)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), "the same command starts again"))
