"""The pictures of a comparison: quality against size and speed, and the differences to PruneRec. Readable in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from recbole_prunerec.report.plots import empty, legend
from recbole_prunerec.report.tables import heading, si, smoke
from recbole_prunerec.study.gathered import Study
from recbole_prunerec.study.systems import REFERENCE
from recbole_prunerec.study.written import LEVEL

NAMED = 12  # systems that all have their names in a picture
KINDS = {  # of systems by their group: label, marker, colour
    "recommenders": ("recommenders", "o", "tab:blue"),
    "criteria": ("cut otherwise, or not at all, restored", "^", "tab:orange"),
    "unrestored": ("pruned, unrestored", "v", "tab:grey"),
}


def pictures(study: Study) -> dict[str, Figure]:
    """The pictures that can be drawn, by name."""
    metric = metric_of(study)
    if metric is None:
        return {}
    sizes = {line.system: float(line.parameters.total) for line in study.lines if line.parameters and line.parameters.total}
    seconds = {line.system: 1000 * line.seconds_per_user.mean for line in study.lines if line.seconds_per_user}
    drawn = {"size": against(study, metric, sizes, "all parameters"), "speed": against(study, metric, seconds, "ranking a user, ms")}
    drawn |= {"steps": curve(study)} if any(row.restored is not None for row in study.steps) else {}
    return drawn | ({"differences": forest(study, metric)} if study.differences else {})


def metric_of(study: Study) -> str | None:
    """The metric that is drawn: the one that is validated, or the first; None where no run has ended."""
    known = [name for line in study.lines for name in line.metrics]
    wanted = str(study.protocol.get("valid_metric")).lower()
    return wanted if wanted in known else next(iter(known), None)


def _title(study: Study, text: str) -> str:
    return f"{text}\n{smoke(study.preset)}" if study.worthless else text


def against(study: Study, metric: str, places: Mapping[str, float], label: str) -> Figure:
    """The metric's means against `places` by system, on a logarithmic axis; bars are standard deviations over seeds."""
    figure, axes = empty(_title(study, f"{study.dataset['name']}, {study.preset}"), label, heading(metric), 9, 5)
    shown = [line for line in study.lines if metric in line.metrics and line.system in places]
    for kind in dict.fromkeys(line.group for line in shown):
        lines = [line for line in shown if line.group == kind]
        name, marker, colour = KINDS[kind]
        deviations = [line.metrics[metric].deviation or 0.0 for line in lines]
        x, y = [places[line.system] for line in lines], [line.metrics[metric].mean for line in lines]
        axes.errorbar(x, y, deviations, fmt=marker, color=colour, label=name, capsize=2, linewidth=1)
    ours = [(places[line.system], line.metrics[metric].mean) for line in shown if line.system == REFERENCE]
    if ours:
        axes.plot(*zip(*ours, strict=True), "*", color="black", markersize=14, label=REFERENCE, zorder=4)
    axes.set(xscale="log")
    axes.margins(0.15)
    axes.set_ylim(0, 1.15 * max((line.metrics[metric].mean for line in shown), default=1))
    _ticks(axes)
    legend(figure, axes)
    points = {line.system: (places[line.system], line.metrics[metric].mean) for line in shown}
    few = len(shown) <= NAMED  # more would stand too close to one another
    _name(figure, axes, points, [line.system for line in shown if few or line.group == "recommenders"])
    return figure


def curve(study: Study) -> Figure:
    """Retention of the teacher's quality against parameters, step by step: as cut, and restored."""
    title = _title(study, f"{study.dataset['name']}, {study.preset}: PruneRec step by step")
    figure, axes = empty(title, "all parameters", "retention, %", 9, 5)
    highest = 100.0
    for name, form, colour, wanted in (("restored", "o-", "tab:blue", (True, None)), ("as cut", "v", "tab:grey", (False,))):
        rows = [row for row in study.steps if row.restored in wanted and row.retention is not None]
        places = [(float(row.parameters.total), 100 * float(row.retention or 0)) for row in rows]
        if places:
            axes.plot(*zip(*places, strict=True), form, color=colour, label=name)
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            axes.annotate(str(row.step_name), place, (0, 9 + 11 * (number % 2)), textcoords="offset points", fontsize="x-small", ha="center")
            highest = max(highest, place[1])
    axes.axhline(100, color="grey", linestyle="--", linewidth=1)
    axes.set(xscale="log")
    axes.margins(0.15)
    axes.set_ylim(0, 1.15 * highest)
    _ticks(axes)
    legend(figure, axes)
    return figure


def _ticks(axes: Axes) -> None:
    """On a logarithmic axis: the fewer a decade, the more decades there are."""
    low, high = axes.get_xlim()
    decades = np.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if decades < 2 else (1, 3) if decades < 4 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1000 else si(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def _name(figure: Figure, axes: Axes, points: Mapping[str, tuple[float, float]], names: Sequence[str]) -> None:
    """Write each of `names` beside its point, as near as it meets no other name and covers no point; a thin line leads to those that stand apart."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)  # the layout moves the axes
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in map(axes.transData.transform, points.values())]
    for name in sorted(names, key=lambda name: -points[name][1]):
        written = None
        for away, up, (side, align) in product((7, 20, 36, 56), (0, 1, -1, 2, -2, 3, -3, 4, -4), ((1, "left"), (-1, "right"))):
            if written is not None:
                written.remove()
            lead = {"arrowstyle": "-", "linewidth": 0.5, "color": "grey"} if away > 7 or up else None
            how: dict[str, Any] = {"textcoords": "offset points", "fontsize": "x-small", "ha": align, "va": "center", "arrowprops": lead}
            written = axes.annotate(name, points[name], (side * away, 9 * up), **how)
            written.update_positions(renderer)
            box = Text.get_window_extent(written, renderer)  # without the line
            if axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1) and not box.count_overlaps(taken):
                break
        taken.append(box)


def forest(study: Study, metric: str) -> Figure:
    """PruneRec minus every other system with its interval, the largest on top; hollow where Holm's test finds no difference."""
    chosen = sorted((each for each in study.differences if each.metric == metric), key=lambda each: each.difference)
    chosen = chosen or list(study.differences)
    height = max(3.0, 0.22 * len(chosen) + 1.5)
    figure, axes = empty(_title(study, f"{study.dataset['name']}: PruneRec minus"), f"difference in {heading(chosen[0].metric)}", "", 8, height)
    for place, each in enumerate(chosen):
        axes.plot([each.low, each.high], [place, place], color="black", linewidth=1)
    for found, face, name in ((True, "tab:blue", "p (Holm) below 0.05"), (False, "white", "0.05 or more")):
        points = [(each.difference, place) for place, each in enumerate(chosen) if (each.adjusted < LEVEL) == found]
        if points:
            axes.scatter(*np.array(points).T, color=face, edgecolor="tab:blue", label=name, zorder=3)
    axes.axvline(0, color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(chosen)), [each.against for each in chosen], fontsize="small")
    legend(figure, axes)
    return figure
