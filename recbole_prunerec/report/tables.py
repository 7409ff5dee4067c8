"""Tables of a run's results: Markdown, LaTeX (booktabs), CSV with raw numbers, and a compact one for the screen."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from recbole_prunerec.report.results import Results, Row
from recbole_prunerec.run_folder import RunFolder

ABSENT = "-"
TEXT_COLUMNS = 2  # system and step; all others are numbers and stand on the right
COMPARED = 3  # the same in the table of comparisons: two systems and a metric
LOWER_IS_BETTER = ("averagepopularity", "giniindex")  # RecBole's `smaller`; no value of these is marked as the best
LATEX_NAMES = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "|": "bar", "<": "less", ">": "greater"}
LATEX_SPECIALS = {char: f"\\text{name}{{}}" for char, name in LATEX_NAMES.items()} | {char: "\\" + char for char in "&%$#_{}"}


@dataclass(frozen=True)
class Form:
    """How one kind of file writes text, the best values, the second best, and footnote marks."""

    escape: Callable[[str], str]
    bold: Callable[[str], str]
    second: Callable[[str], str]
    mark: Callable[[int], str]


MARKDOWN = Form(lambda text: re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", text), "**{}**".format, "*{}*".format, "<sup>{}</sup>".format)
LATEX = Form(
    lambda text: "".join(LATEX_SPECIALS.get(char, char) for char in text),
    r"\textbf{{{}}}".format,
    r"\underline{{{}}}".format,
    r"\textsuperscript{{{}}}".format,
)
SCREEN = Form(str, str, str, " [{}]".format)


def si(value: float, unit: str = "") -> str:
    """Three significant digits with an SI prefix: 1020000 -> `1.02 M`, with a unit `35.2 MFLOP`. Below 1000 there is no prefix."""
    value, power = float(f"{value:.3g}"), 0
    while value >= 1000 and power < 5:
        value, power = value / 1000, power + 1
    number = f"{value:#.3g}".rstrip(".") if power else f"{value:.3g}"
    return f"{number} {'kMGTP'[power - 1] if power else ''}{unit}".rstrip()


def percent(share: float | None) -> str:
    """`9.4 %`."""
    return ABSENT if share is None else f"{100 * share:.1f} %"


def counted(count: int, share: float | None) -> str:
    """`74.3 k (9.4 %)`."""
    return si(count) if share is None else f"{si(count)} ({percent(share)})"


def milliseconds(seconds: float) -> str:
    """Three digits, whole numbers from 100 on."""
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def heading(metric: str) -> str:
    """A metric's name as the field writes it: `hit@10` -> `HR@10`, `ndcg@10` -> `NDCG@10`."""
    return re.sub(r"^hit(?=@)", "hr", metric).upper()


def step_label(row: Row) -> str:
    """`2 width`, `2 width, wanda, unrestored`, or nothing for a system without steps. PruneRec's own criterion goes without saying."""
    name = " ".join(str(part) for part in (row.step, row.step_name) if part is not None)
    return ", ".join(filter(None, (name, row.criterion if row.criterion != "prunerec" else None, "unrestored" if row.restored is False else None)))


def _metrics(results: Results) -> list[str]:
    """Every metric that some row has, in order of appearance."""
    return list(dict.fromkeys(metric for row in results.rows for metric in row.metrics))


def _full(results: Results) -> int:
    return max((row.test_rows for row in results.rows), default=0)


def _footnotes(results: Results) -> list[str]:
    """The footnote of each row, empty for most: fewer test rows than the fullest row, and the row's own note."""
    notes = []
    for row in results.rows:
        fewer = f"{row.test_rows:,} of {_full(results):,} rows" if row.test_rows < _full(results) else ""
        note = row.note or ""
        notes.append(note if fewer in note else "; ".join(filter(None, (fewer, note))))
    return notes


def _table(results: Results, form: Form) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings, cells and footnotes, all in the given form.

    The highest value of each metric among the rows with all test rows is bold, where higher is better.
    """
    metrics, notes = _metrics(results), _footnotes(results)
    numbers = {note: number for number, note in enumerate(dict.fromkeys(filter(None, notes)), start=1)}
    full = [row.metrics for row in results.rows if row.test_rows == _full(results)]
    marked = [metric for metric in metrics if not metric.startswith(LOWER_IS_BETTER)]
    best = {metric: max((values[metric] for values in full if metric in values), default=None) for metric in marked}
    cells = []
    for row, note in zip(results.rows, notes, strict=True):
        system = form.escape(row.system) + (form.mark(numbers[note]) if note else "")
        values = []
        for metric in metrics:
            value = row.metrics.get(metric)
            text = ABSENT if value is None else f"{value:.4f}"
            values.append(form.bold(text) if value is not None and value == best.get(metric) and row.test_rows == _full(results) else text)
        costs = [
            percent(row.retention),
            counted(row.parameters.non_embedding, row.parameters.share_non_embedding),
            counted(row.parameters.total, row.parameters.share_total),
            ABSENT if row.flops_per_user is None else si(row.flops_per_user, "FLOP"),
            milliseconds(row.seconds_per_user),
            f"{row.peak_memory_bytes / 2**20:,.0f}",
        ]
        cells.append([system, form.escape(step_label(row)), f"{row.test_rows:,}", *values, *map(form.escape, costs)])
    costs = ["Retention", "Non-embedding parameters", "All parameters", "FLOPs/user", "ms/user", "Peak memory (MiB)"]
    headings = ["System", "Step", "Rows", *(form.escape(heading(metric)) for metric in metrics), *costs]
    return headings, cells, [f"{form.mark(number).strip()} {form.escape(note)}" for note, number in numbers.items()]


def _differences(results: Results, form: Form) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the comparisons, in the given form."""
    cells = [
        [
            each.system,
            each.against,
            heading(each.metric),
            f"{each.difference:+.4f}",
            f"{100 * each.confidence:g} %: {each.low:+.4f} to {each.high:+.4f}",
            f"{each.users:,}",
            f"{each.rows:,}",
        ]
        for each in results.comparisons
    ]
    headings = ["System", "Against", "Metric", "Difference", "Interval", "Users", "Rows"]
    return headings, [[form.escape(cell) for cell in line] for line in cells]


def warning(results: Results) -> str:
    """What every form of a smoke run's results says; empty for any other."""
    return smoke(results.preset) if results.worthless else ""


def smoke(preset: str) -> str:
    """The warning of a smoke run's results."""
    return f"These are the figures of a smoke run (preset {preset}): they are worth nothing."


def blocks(*parts: str) -> str:
    """The parts of a page that are not empty, with a line between."""
    return "\n\n".join(filter(None, parts)) + "\n"


def _align(count: int, texts: int = TEXT_COLUMNS) -> list[str]:
    return ["left"] * texts + ["right"] * (count - texts)


def pipe(headings: list[str], cells: list[list[str]], texts: int) -> str:
    """A table in Markdown. The first `texts` columns stand on the left."""
    return tabulate(cells, headings, tablefmt="pipe", disable_numparse=True, colalign=_align(len(headings), texts) if cells else None)


def facts(title: str, values: Mapping[str, Any]) -> str:
    """A section with one line a fact, escaped; values that are not strings are written as JSON."""
    texts = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str) for key, value in values.items()}
    return f"## {title}\n\n" + "\n".join(f"- {MARKDOWN.escape(f'{key}: {text}')}" for key, text in texts.items())


def to_screen(results: Results) -> str:
    """A compact table of plain text, headings over several lines."""
    headings, cells, notes = _table(results, SCREEN)
    broken = [re.sub(r" |(?<=-)|(?=/)", "\n", text) for text in headings]
    table = tabulate(cells, broken, tablefmt="simple", disable_numparse=True, colalign=_align(len(headings)) if cells else None)
    return blocks(f"** {warning(results)} **" if results.worthless else "", table, "\n".join(notes))


def markdown_table(results: Results) -> str:
    """The table alone, with its footnotes."""
    headings, cells, notes = _table(results, MARKDOWN)
    notice = MARKDOWN.bold(MARKDOWN.escape(warning(results))) if results.worthless else ""
    return blocks(notice, pipe(headings, cells, TEXT_COLUMNS), "  \n".join(notes))


def to_markdown(results: Results) -> str:
    """The whole report: dataset, protocol, how it was run, the table with its footnotes, and the comparisons with their intervals."""
    run = {"seed": results.seed, "preset": results.preset, "device": results.device, **results.versions}
    headings, differences = _differences(results, MARKDOWN)
    return blocks(
        "# Results",
        facts("Dataset", results.dataset),
        facts("Protocol", results.protocol),
        facts("Run", run),
        f"```sh\n{results.command}\n```",
        "## Table",
        markdown_table(results).rstrip(),
        "## Comparisons\n\nDifferences of row means; intervals by cluster bootstrap over users." if differences else "",
        pipe(headings, differences, COMPARED) if differences else "",
    )


def tabular(headings: list[str], cells: list[list[str]], texts: int) -> list[str]:
    """The lines of a table in LaTeX, for booktabs; cells as for `pipe`."""
    body = [" & ".join(row) + r" \\" for row in [headings, *cells]]
    columns = "l" * texts + "r" * (len(headings) - texts)
    return [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]


def _latex(results: Results, lines: list[str]) -> str:
    head = ["% needs \\usepackage{booktabs}", f"% {' '.join(results.command.split())} (seed {results.seed})"]
    notice = [LATEX.bold(LATEX.escape(warning(results))) + r"\par"] if results.worthless else []
    return "\n".join([*head, *notice, *lines]) + "\n"


def to_latex(results: Results) -> str:
    """A `tabular` for a paper that loads booktabs, footnotes below; the command stands in a comment."""
    headings, cells, notes = _table(results, LATEX)
    return _latex(results, tabular(headings, cells, TEXT_COLUMNS) + [rf"\par{{\footnotesize {note}\par}}" for note in notes])


def comparisons_to_latex(results: Results) -> str:
    """The comparisons as a `tabular`."""
    return _latex(results, tabular(*_differences(results, LATEX), COMPARED))


def _csv(results: Results, records: list[dict[str, Any]]) -> str:
    text = io.StringIO(f"# {warning(results)}\n" if results.worthless else "")
    text.seek(0, io.SEEK_END)
    writer = csv.DictWriter(text, records[0] if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


COSTS = ("flops_per_user", "seconds_per_user", "peak_memory_bytes", "step_seconds", "training_memory_bytes", "note")


def to_csv(results: Results) -> str:
    """Raw numbers, one line a row; empty where a value is absent. A smoke run's file starts with a comment line (`#`) that says so."""
    metrics = _metrics(results)
    records = [
        {name: getattr(row, name) for name in ("system", "step", "step_name", "criterion", "restored", "test_rows")}
        | {heading(name): row.metrics.get(name) for name in metrics}
        | {"retention": row.retention, **row.parameters.model_dump()}
        | {name: getattr(row, name) for name in COSTS}
        for row in results.rows
    ]
    return _csv(results, records)


def comparisons_to_csv(results: Results) -> str:
    """The comparisons' raw numbers, one line each, as `to_csv`."""
    return _csv(results, [each.model_dump() for each in results.comparisons])


def write_all(results: Results, folder: RunFolder) -> None:
    """Write the table and the comparisons in every form into `folder`, each file atomically; results.json, which holds both, last."""
    folder.write_text("results.md", to_markdown(results))
    for suffix, table, comparisons in (("csv", to_csv, comparisons_to_csv), ("tex", to_latex, comparisons_to_latex)):
        folder.write_text(f"results.{suffix}", table(results))
        if results.comparisons:
            folder.write_text(f"comparisons.{suffix}", comparisons(results))
    folder.write_json("results.json", results)
