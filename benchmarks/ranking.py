"""Ranking the whole catalogue: how fast, how exact, against what. `python benchmarks/ranking.py --help`

docs/benchmarks.md says what is measured and how, and has the table, which `--write` makes anew together with results/ranking.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from material import Work
from parts import PARTS, Figure
from tabulate import tabulate
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from recbole_prunerec.errors import nearest
from recbole_prunerec.exits import guarded
from recbole_prunerec.report.cost import Stopwatch
from recbole_prunerec.report.results import device_name, versions
from recbole_prunerec.storage import write_json, write_text

ROOT = Path(__file__).parent.parent
STORED, PAGE = ROOT / "results" / "ranking.json", ROOT / "docs" / "benchmarks.md"
LATEST = ROOT / "saved" / "latest"
BEGIN, END = "<!-- table: made by benchmarks/ranking.py -->", "<!-- end of table -->"


def main(argv: Sequence[str]) -> None:
    """Measure what `argv` asks for and show it."""
    options = _options(argv)
    transformers_logging.disable_progress_bar()
    figures: list[Figure] = []
    with TemporaryDirectory() as folder, Stopwatch() as watch:
        work = Work(options.backbone, options.model or _latest(), Path(folder), options.users, options.titles, options.seed)
        for part in tqdm(options.parts, desc="benchmark", unit="part"):
            figures += PARTS[part](work)
    result = {
        **{figure.key: figure.value for figure in figures},
        "seconds": watch.seconds,
        "seed": options.seed,
        "device": device_name("cpu"),
        "versions": versions(),
        "command": shlex.join(["python", "benchmarks/ranking.py", *argv]),
    }
    sys.stdout.write(tabulate(rows(figures), HEADINGS, disable_numparse=True) + "\n")
    if options.write:
        write_json(STORED, result)
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), figures, result))
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")


HEADINGS = ("What", "Measured", "Aim", "Met")


def rows(figures: Sequence[Figure]) -> list[list[str]]:
    """A line of the table for each figure."""
    lines = []
    for figure in figures:
        aims = [(f"at most {figure.form.format(figure.most)}", figure.value <= figure.most)] if figure.most is not None else []
        aims += [(f"at least {figure.form.format(figure.least)}", figure.value >= figure.least)] if figure.least is not None else []
        aim, met = aims[0] if aims else ("", None)
        lines.append([figure.what, figure.form.format(figure.value), aim, {True: "yes", False: "no", None: ""}[met]])
    return lines


def with_table(page: str, figures: Sequence[Figure], result: dict) -> str:
    """`page` with the table between its marks made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = tabulate(rows(figures), HEADINGS, tablefmt="github", disable_numparse=True)
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    run = f"`{result['command']}` on {result['device']}, seed {result['seed']}, {result['seconds'] / 60:.0f} minutes;  \n{packages}."
    return f"{before}{BEGIN}\n\n{table}\n\n{run}\n\n{END}{after}"


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/ranking.py", description="How fast and how exact the catalogue is ranked.")
    parser.add_argument("--backbone", help="a .gguf file, a folder or a Hugging Face name; by default random weights of SmolLM2-135M's shape")
    parser.add_argument("--model", type=Path, help="a trained step's folder; by default saved/latest's last, and if there is none, one trained here")
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}; by default all")
    parser.add_argument("--users", type=_count, default=1000, help="at most so many in every part (1000)")
    parser.add_argument("--titles", type=_count, default=1_000_000, help="synthetic titles of the part million (1000000)")
    parser.add_argument("--seed", type=int, default=2020, help="of users, random weights and synthetic titles (2020)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--write", action="store_true", help="write results/ranking.json and the table in docs/benchmarks.md")
    return parser.parse_args(argv)


def _parts(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; expected some of {', '.join(PARTS)}{nearest(name, PARTS)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return int(text)


def _latest() -> Path | None:
    """The last step of the newest run; None where there is no run, or it has no steps yet."""
    steps = [path for path in LATEST.glob("[0-9]*-*") if (path / "prompts.json").is_file()]
    return max(steps, key=lambda path: int(path.name.partition("-")[0]), default=None)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), "the same command starts again"))
