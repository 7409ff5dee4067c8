"""A comparison as Markdown, LaTeX and CSV; page.py has the one for a browser."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recbole_prunerec.report.tables import (
    LATEX,
    LOWER_IS_BETTER,
    MARKDOWN,
    Form,
    blocks,
    counted,
    facts,
    heading,
    milliseconds,
    percent,
    pipe,
    si,
    smoke,
    step_label,
    tabular,
)
from recbole_prunerec.study.gathered import Line, Spread, Study
from recbole_prunerec.study.runs import recipe_file
from recbole_prunerec.study.systems import SYSTEMS

ABSENT = "n/a"
COSTS = ("Retention", "Non-embedding parameters", "All parameters", "FLOPs/user", "ms/user", "Peak memory (MiB)")
STEPS = ("Retention", "Non-embedding parameters", "All parameters", "ms/user", "Minutes", "Training memory (MiB)")
COMPARED = ("Against", "Metric", "Difference", "95 % interval", "p", "p (Holm)")
LEVEL = 0.05  # of the tests


def metrics_of(study: Study) -> list[str]:
    """Every metric that some system has, in order of appearance."""
    return list(dict.fromkeys(name for line in study.lines for name in line.metrics))


def places(study: Study, metric: str) -> dict[str, int]:
    """The systems with the highest mean of a metric (1) and the second highest (2), where higher is better."""
    if metric.startswith(LOWER_IS_BETTER):
        return {}
    values = {line.system: line.metrics[metric].mean for line in study.lines if metric in line.metrics}
    ordered = sorted(set(values.values()), reverse=True)[:2]
    return {system: ordered.index(value) + 1 for system, value in values.items() if value in ordered}


def spread(value: Spread | None, written: Callable[[float], str]) -> str:
    """`0.1234 ± 0.0056`, without a deviation where there is a single seed."""
    if value is None:
        return ABSENT
    return written(value.mean) if value.deviation is None else f"{written(value.mean)} ± {written(value.deviation)}"


def costs(line: Line) -> list[str]:
    """The cells under COSTS."""
    parameters = line.parameters
    return [
        spread(line.retention, percent) + between(line.retention_interval),
        ABSENT if parameters is None else counted(parameters.non_embedding, parameters.share_non_embedding),
        ABSENT if parameters is None else counted(parameters.total, parameters.share_total),
        ABSENT if line.flops_per_user is None else si(line.flops_per_user, "FLOP"),
        spread(line.seconds_per_user, milliseconds),
        spread(line.peak_memory_bytes, lambda value: f"{value / 2**20:,.0f}"),
    ]


def between(ends: tuple[float, float] | None) -> str:
    """` (87.2 to 93.4)`, in percent."""
    return "" if ends is None else f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"


def table(study: Study, form: Form) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings, cells and footnotes in the given form: the best mean of a metric bold, the second best marked, too."""
    metrics = metrics_of(study)
    best = {metric: places(study, metric) for metric in metrics}
    numbers = {note: number for number, note in enumerate(dict.fromkeys(line.note for line in study.lines if line.note), start=1)}
    cells = []
    for line in study.lines:
        values = []
        for metric in metrics:
            text = form.escape(spread(line.metrics.get(metric), "{:.4f}".format))
            values.append({1: form.bold, 2: form.second}.get(best[metric].get(line.system, 0), str)(text))
        name = form.escape(line.system) + (form.mark(numbers[line.note]) if line.note else "")
        cells.append([name, str(len(line.seeds)), *values, *map(form.escape, costs(line))])
    headings = [form.escape(text) for text in ("System", "Seeds", *map(heading, metrics), *COSTS)]
    return headings, cells, [f"{form.mark(number).strip()} {form.escape(note)}" for note, number in numbers.items()]


def differences(study: Study, form: Form) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the tests; a difference that they find is bold."""
    cells = []
    for each in study.differences:
        texts = [each.against, heading(each.metric), f"{each.difference:+.4f}", f"{each.low:+.4f} to {each.high:+.4f}"]
        texts += [f"{each.p:.4f}", f"{each.adjusted:.4f}"]
        cells.append([form.escape(text) for text in texts])
        if each.adjusted < LEVEL:
            cells[-1][2] = form.bold(cells[-1][2])
    return [form.escape(text) for text in COMPARED], cells


def steps(study: Study, form: Form) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the teacher and of what every step left; without what no step tells of itself."""
    metrics = list(dict.fromkeys(name for row in study.steps for name in row.metrics))
    cells = []
    for row in study.steps:
        shares = row.parameters
        texts = [
            step_label(row) or row.system,
            f"{row.test_rows:,}",
            *(f"{row.metrics[name]:.4f}" if name in row.metrics else ABSENT for name in metrics),
            ABSENT if row.retention is None else percent(row.retention),
            counted(shares.non_embedding, shares.share_non_embedding),
            counted(shares.total, shares.share_total),
            milliseconds(row.seconds_per_user),
            ABSENT if row.step_seconds is None else f"{row.step_seconds / 60:,.1f}",
            ABSENT if row.training_memory_bytes is None else f"{row.training_memory_bytes / 2**20:,.0f}",
        ]
        cells.append([form.escape(text) for text in texts])
    headings = [form.escape(text) for text in ("Step", "Rows", *map(heading, metrics), *STEPS)]
    told = [place for place in range(len(headings)) if any(row[place] != form.escape(ABSENT) for row in cells)]
    return [headings[place] for place in told], [[row[place] for place in told] for row in cells]


def aims(study: Study, form: Form) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the aims."""
    cells = [[each.name, each.measured, each.verdict] for each in study.aims]
    return [form.escape(text) for text in ("Aim", "Measured", "Verdict")], [[form.escape(text) for text in row] for row in cells]


def told(study: Study) -> list[str]:
    """What a reader must know of the tables, a sentence or two each."""
    seeds = f"{'Seed' if len(study.seeds) == 1 else 'Seeds'} {', '.join(map(str, study.seeds))}"
    first = study.differences[0] if study.differences else None
    return [
        *([smoke(study.preset)] if study.worthless else []),
        f"{seeds}; mean ± standard deviation over them. The best mean is bold, the second best marked as well. Retention: share of BIGRec's HR and "
        "NDCG, on the same rows, with the 95 % interval of all seeds' rows together. Peak memory: while rows are ranked, on a CPU of the whole "
        "process. n/a: cannot be told, or the run failed.",
        *(
            [
                f"Differences: PruneRec minus the other, over {first.rows:,} rows of {first.users:,} users; interval and two-sided p by the same "
                "cluster bootstrap over users; Holm's correction over all systems of a metric; bold where that is below 0.05."
            ]
            if first
            else ["No differences: PruneRec is not among the finished systems, or alone."]
        ),
    ]


def to_markdown(study: Study, title: str = "Comparison", beside: Sequence[str] = ()) -> str:
    """The whole comparison as a page; `beside` are paths of pictures."""
    headings, cells, notes = table(study, MARKDOWN)
    compared = differences(study, MARKDOWN)
    about, *rest = told(study)[::-1]
    recipes = dict.fromkeys(SYSTEMS[line.system].recipe for line in study.lines if line.system in SYSTEMS)
    return blocks(
        f"# {title}",
        f"```sh\n{study.command}\n```",
        facts("Dataset", study.dataset),
        facts("Protocol", study.protocol),
        facts("Made with", {"preset": study.preset, "device": study.device, **study.versions}),
        "## Table",
        *map(MARKDOWN.escape, rest[::-1]),
        pipe(headings, cells, 1).rstrip(),
        "  \n".join(notes),
        *(f"![]({path})" for path in beside),
        f"## Step by step, seed {study.seeds[0]}" if study.steps else "",
        pipe(*steps(study, MARKDOWN), 1) if study.steps else "",
        "## What was aimed at" if study.aims else "",
        pipe(*aims(study, MARKDOWN), 3) if study.aims else "",
        "## Against PruneRec",
        MARKDOWN.escape(about),
        pipe(*compared, 2) if compared[1] else "",
        f"## Commands of seed {study.seeds[0]}",
        "```sh\n" + "\n".join(run.command for run in study.runs if run.seed == study.seeds[0]) + "\n```",
        "## Settings",
        *(f"```yaml\n{recipe_file(name).read_text(encoding='utf-8')}```" for name in recipes),
    )


def to_latex(study: Study) -> str:
    """Both tables for a paper that loads booktabs."""
    headings, cells, notes = table(study, LATEX)
    head = ["% needs \\usepackage{booktabs}", f"% {study.command}"]
    below = [rf"\par{{\footnotesize {text}\par}}" for text in [*notes, *map(LATEX.escape, told(study))]]
    return "\n".join([*head, *tabular(headings, cells, 1), "", *tabular(*differences(study, LATEX), 2), *below]).replace("±", r"$\pm$") + "\n"


def to_csv(study: Study) -> str:
    """Raw numbers of the table, one line a system; empty where there is none."""
    fields = ["system", "group", "seeds", *(f"{heading(name)}{part}" for name in metrics_of(study) for part in ("", " deviation"))]
    records = []
    for line in study.lines:
        spreads = {heading(name): value for name, value in line.metrics.items()}
        others = ("retention", "seconds_per_user", "peak_memory_bytes")
        spreads |= {name: value for name in others if (value := getattr(line, name)) is not None}
        low, high = line.retention_interval or (None, None)
        parameters = line.parameters.model_dump() if line.parameters else {}
        record = {"system": line.system, "group": line.group, "seeds": len(line.seeds), "flops_per_user": line.flops_per_user, "note": line.note}
        record |= {"retention low": low, "retention high": high}
        record |= {name: value.mean for name, value in spreads.items()} | {f"{name} deviation": value.deviation for name, value in spreads.items()}
        records.append(record | parameters)
    fields += [f"retention{part}" for part in ("", " deviation", " low", " high")]
    fields += ["non_embedding", "total", "share_non_embedding", "share_total", "flops_per_user"]
    fields += [f"{name}{part}" for name in ("seconds_per_user", "peak_memory_bytes") for part in ("", " deviation")] + ["note"]
    return as_csv(fields, records, smoke(study.preset) if study.worthless else None)


def differences_to_csv(study: Study) -> str:
    """Raw numbers of the tests, one line each."""
    records = [each.model_dump() for each in study.differences]
    return as_csv(list(records[0]) if records else [], records, smoke(study.preset) if study.worthless else None)


def as_csv(fields: Sequence[str], records: Sequence[Mapping[str, Any]], warning: str | None = None) -> str:
    """The content of a CSV file; a `warning` is a comment line (`#`) before it."""
    text = io.StringIO()
    text.write(f"# {warning}\n" if warning else "")
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
