"""What all benchmarks share: their figures and what these should be, the options, and where a result goes.

A benchmark called `name` has its table in docs/benchmarks.md, between marks that bear its name, and its figures in results/<name>.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from recbole_prunerec.report.results import device_name, versions
from recbole_prunerec.storage import write_json, write_text

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: made by benchmarks/{}.py -->", "<!-- end of table -->"
HEADINGS = ("What", "Measured", "Aim", "Met")
MEBIBYTE = 2**20

Row = Mapping[str, str | float]  # a line of a second table: what is in its columns, by heading; all rows of a table have the same headings


class Figure(NamedTuple):
    """One figure: its key in the JSON, what it is in words, its value, how it is shown, and the most or the least that it should be."""

    key: str
    what: str
    value: float
    form: str = "{:.3g}"
    most: float | None = None
    least: float | None = None


def command_line(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks: backbone, seed, json, write."""
    parser = argparse.ArgumentParser(prog=f"python benchmarks/{name}.py", description=description)
    parser.add_argument("--backbone", help="a .gguf file, a folder or a Hugging Face name; by default random weights of SmolLM2-135M's shape")
    parser.add_argument("--seed", type=int, default=2020, help="of whatever is drawn: samples, random weights, titles (2020)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--write", action="store_true", help=f"write results/{name}.json and the table in docs/benchmarks.md")
    return parser


def count(text: str) -> int:
    """The value of an option that counts something."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return int(text)


def publish(
    name: str, figures: Sequence[Figure], options: argparse.Namespace, argv: Sequence[str], seconds: float, rows: Sequence[Row] = (), **more: Any
) -> None:
    """Print the figures' table, write what `options` asks for, and print the JSON line if asked for.

    The JSON has every figure by its key, `more`, `rows` where there are any, and how all that was made. `seconds` is how long it took.
    """
    result = {
        **{figure.key: figure.value for figure in figures},
        **more,
        **({"rows": [dict(row) for row in rows]} if rows else {}),
        "seconds": seconds,
        "seed": options.seed,
        "device": device_name("cpu"),
        "versions": versions(),
        "command": shlex.join(["python", f"benchmarks/{name}.py", *argv]),
    }
    sys.stdout.write("\n\n".join(tables(figures, rows, "simple")) + "\n")
    if options.write:
        write_json(RESULTS / f"{name}.json", result)
        write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), name, figures, result, rows))
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")


def lines(figures: Sequence[Figure]) -> list[list[str]]:
    """A line of the table for each figure."""
    found = []
    for figure in figures:
        aims = [(f"at most {figure.form.format(figure.most)}", figure.value <= figure.most)] if figure.most is not None else []
        aims += [(f"at least {figure.form.format(figure.least)}", figure.value >= figure.least)] if figure.least is not None else []
        aim, met = aims[0] if aims else ("", None)
        found.append([figure.what, figure.form.format(figure.value), aim, {True: "yes", False: "no", None: ""}[met]])
    return found


def tables(figures: Sequence[Figure], rows: Sequence[Row], form: str) -> list[str]:
    """The figures' table, and that of `rows` where there are any."""
    made = [tabulate(lines(figures), HEADINGS, tablefmt=form, disable_numparse=True)]
    return made + ([tabulate([list(row.values()) for row in rows], list(rows[0]), tablefmt=form, floatfmt=".3g")] if rows else [])


def with_table(page: str, name: str, figures: Sequence[Figure], result: Mapping[str, Any], rows: Sequence[Row] = ()) -> str:
    """`page` with the tables between the marks of benchmark `name` made anew."""
    begin = BEGIN.format(name)
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(END)
    packages = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    run = f"`{result['command']}`  \non {result['device']}, seed {result['seed']}, {result['seconds'] / 60:.0f} minutes;  \n{packages}."
    return f"{before}{begin}\n\n" + "\n\n".join([*tables(figures, rows, "github"), run]) + f"\n\n{END}{after}"
