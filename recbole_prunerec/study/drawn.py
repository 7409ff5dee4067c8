"""The paper's figures as pictures, from the same records that their CSV has. Readable in grey: markers, dashes and hatches tell lines apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from recbole_prunerec.report.plots import empty, legend
from recbole_prunerec.report.tables import heading, si

Record = Mapping[str, Any]
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "v"), ("-", "x"), ("--", "+"), (":", "d"), ("-.", "*"))
WIDTH = 0.38  # of a bar
NAME = 16  # characters in a line below a pair of bars


def lines(title: str, x: str, y: str, records: Sequence[Record], by: str, marks: Mapping[str, float] | None = None, marker: bool = True) -> Figure:
    """`y` against `x`, a line for each value of `by`; `marks` are places on the x axis with a name."""
    figure, axes = empty(title, x, y, 7, 4)
    shades = dict.fromkeys(record[by] for record in records)
    for place, name in enumerate(shades):
        chosen = [record for record in records if record[by] == name]
        dash, point = STYLES[place % len(STYLES)]
        colour = str(0.7 * place / max(1, len(shades) - 1))
        axes.plot([r[x] for r in chosen], [r[y] for r in chosen], dash, marker=point if marker else None, color=colour, label=str(name), markersize=4)
    for name, where in (marks or {}).items():
        axes.axvline(where, color="grey", linewidth=0.8)
        axes.annotate(name, (where, 1), (2, -10), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize="x-small")
    axes.set_ylim(bottom=0)
    legend(figure, axes)
    return figure


def bars(title: str, x: str, metric: str, records: Sequence[Record], level: tuple[str, float] | None = None) -> Figure:
    """A metric of each way, restored beside unrestored; `level` is a line across, with its name."""
    figure, axes = empty(title, x, heading(metric), 7, 4)
    names = list(dict.fromkeys(record[x] for record in records))
    for place, (restored, shade, hatch) in enumerate((("restored", "0.35", ""), ("unrestored", "0.8", "///"))):
        chosen = {record[x]: record for record in records if record["restoration"] == restored}
        at = [names.index(name) + (place - 0.5) * (WIDTH + 0.02) for name in chosen]
        heights, errors = [record[heading(metric)] for record in chosen.values()], [record["deviation"] or 0.0 for record in chosen.values()]
        axes.bar(at, heights, WIDTH, yerr=errors, color=shade, edgecolor="black", hatch=hatch, label=restored, capsize=2)
    if level is not None:
        axes.axhline(level[1], color="black", linestyle="--", linewidth=1, label=level[0])
    axes.set_xticks(range(len(names)), [fill(str(name), NAME) for name in names])
    legend(figure, axes)
    return figure


def stages(title: str, records: Sequence[Record], metrics: Sequence[str]) -> Figure:
    """Metrics after every step, and the parameters that are left on an axis of their own."""
    figure, axes = empty(title, "step", "metric", 7, 4)
    names = [record["step"] for record in records]
    for place, metric in enumerate(metrics):
        dash, point = STYLES[place % len(STYLES)]
        axes.plot(names, [record[metric] for record in records], dash, marker=point, color=str(0.15 * place), label=metric)
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.bar(names, [record["non-embedding parameters"] for record in records], 0.5, color="0.85", zorder=0)
    other.set_ylabel("non-embedding parameters (bars)")
    other.yaxis.set_major_formatter(FuncFormatter(lambda count, _: si(count)))
    axes.set_zorder(other.get_zorder() + 1)
    axes.patch.set_visible(False)
    legend(figure, axes)
    return figure
