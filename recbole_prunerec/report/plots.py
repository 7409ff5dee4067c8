"""Figures for TensorBoard and files: importance, and quality against size. Each function gives a matplotlib `Figure` that belongs to no global state.

Values may be arrays or CPU tensors.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from recbole_prunerec.report.results import Results, Row
from recbole_prunerec.report.tables import heading, warning

CUT = "tab:red"
LABEL_GAP = 0.05  # of the height: names of systems stand at least so far apart
NUMBER = "{x:.3g}"  # of an axis of scores, so that no power of ten stands apart, over the title
TICK_GAP = 0.09  # of the width: steps that are closer share a tick


def empty(title: str, x: str, y: str, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes, of which no global state knows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot(title=title, xlabel=x, ylabel=y)


def whole_ticks(*axes: Axis) -> None:
    """Ticks at whole numbers."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _image(figure: Figure, axes: Axes, values: np.ndarray, name: str, **options: Any) -> None:
    whole_ticks(axes.xaxis, axes.yaxis)
    figure.colorbar(axes.imshow(values, aspect="auto", interpolation="nearest", **options), ax=axes, label=name, format=NUMBER)


def legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize="small")


def heat_map(values: ArrayLike, title: str, kept: ArrayLike | None = None, name: str = "score") -> Figure:
    """Values `(layer, head)` as coloured cells; cells that are True in `kept`, of the same shape, are outlined.

    `name` says what the colours are, with the unit.
    """
    values = np.asarray(values)
    rows, columns = values.shape
    caption = title if kept is None else f"{title} (outlined: kept)"
    figure, axes = empty(caption, "head", "layer", max(5.0, 0.35 * columns + 2), max(3.0, 0.25 * rows + 1.5))
    _image(figure, axes, values, name)
    if kept is not None:
        for row, column in np.argwhere(np.asarray(kept)):
            axes.add_patch(Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, edgecolor=CUT, linewidth=1.5))
    return figure


def sorted_curve(values: ArrayLike, keep: int, title: str) -> Figure:
    """Scores `(dimension,)` in falling order, with a line where the `keep` highest end."""
    ordered = np.sort(np.asarray(values))[::-1]
    ranks = np.arange(1, len(ordered) + 1)
    figure, axes = empty(title, "dimension, by rank", "score", 6, 3.5)
    axes.plot(ranks, ordered)
    axes.yaxis.set_major_formatter(NUMBER)
    axes.fill_between(ranks[:keep], ordered[:keep], alpha=0.3)
    axes.axvline(keep + 0.5, color=CUT, linestyle="--", label=f"{keep:,} of {len(ordered):,} kept")
    whole_ticks(axes.xaxis)
    legend(figure, axes)
    return figure


def mlp_map(values: ArrayLike, keep: int, title: str) -> Figure:
    """Scores `(layer, intermediate)`, each layer in falling order, with a line where the `keep` highest end."""
    ordered = np.sort(np.asarray(values), axis=1)[:, ::-1]
    layers, width = ordered.shape
    figure, axes = empty(title, "intermediate dimension, by rank in its layer", "layer", 7, max(3.0, 0.2 * layers + 1.5))
    _image(figure, axes, ordered, "score", extent=(0.5, width + 0.5, layers - 0.5, -0.5))
    axes.axvline(keep + 0.5, color=CUT, linestyle="--", label=f"{keep:,} of {width:,} kept")
    legend(figure, axes)
    return figure


def layer_bars(perplexity: ArrayLike, removed: Collection[int], title: str, base: float) -> Figure:
    """The perplexity with each layer bypassed `(layer,)`, as bars from `base`, the one with nothing bypassed: their lengths are eq. 12's differences.

    The axis is logarithmic, since a layer may matter a thousand times more than another. The layers whose index is in `removed` are hatched; NaN
    stands for a layer that is gone already, and is a cross.
    """
    values = np.asarray(perplexity)
    figure, axes = empty(title, "layer", "perplexity", max(6.0, 0.3 * len(values) + 1.5), 3.5)
    gone, goes = np.isnan(values), np.isin(np.arange(len(values)), list(removed))
    kept, cut = np.flatnonzero(~goes & ~gone), np.flatnonzero(goes & ~gone)
    axes.bar(kept, values[kept] - base, bottom=base, color="tab:blue", label="kept")
    axes.bar(cut, values[cut] - base, bottom=base, color="white", edgecolor=CUT, hatch="///", label="removed")
    if gone.any():
        axes.plot(np.flatnonzero(gone), np.full(gone.sum(), base), "x", color=CUT, label="gone before", clip_on=False)
    axes.axhline(base, color="black", linewidth=0.8, label="nothing bypassed")
    axes.use_sticky_edges = False  # `base` keeps off the frame
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())
    axes.set_xlim(-0.6, len(values) - 0.4)
    whole_ticks(axes.xaxis)
    legend(figure, axes)
    return figure


def size_quality(results: Results, metric: str) -> Figure:
    """`metric` of every step against its share of the backbone's non-embedding parameters, on a logarithmic axis; other systems are levels.

    What a step gives before and after restoration stands above one another. Hollow points were ranked on fewer test rows than the others. Raises
    `ValueError` where no row is a step's.
    """
    rows = [row for row in results.rows if metric in row.metrics]
    steps = [row for row in rows if row.parameters.share_non_embedding is not None]
    if not steps:
        raise ValueError(f"no step has {metric}")
    title = "\n".join(filter(None, (f"{results.dataset['name']}: quality by size", warning(results))))
    figure, axes = empty(title, "non-embedding parameters, share of the backbone's", heading(metric), 9, 4.5)
    full = max(row.test_rows for row in rows)
    finished = [row for row in steps if row.restored is not False]
    axes.plot([_share(row) for row in finished], [row.metrics[metric] for row in finished], color="tab:blue", linewidth=1)
    for shown, colour, marker, label in (
        (finished, "tab:blue", "o", "after restoration"),
        ([row for row in steps if row.restored is False], "tab:orange", "v", "before restoration"),
    ):
        if not shown:
            continue
        faces = [colour if row.test_rows == full else "white" for row in shown]
        axes.scatter(
            [_share(row) for row in shown],
            [row.metrics[metric] for row in shown],
            c=faces,
            edgecolors=colour,
            marker=marker,
            label=label,
            zorder=3,
            clip_on=False,  # a metric may be 0
        )
    axes.set(xscale="log", ylim=(0, 1.08 * max(row.metrics[metric] for row in rows) or 1))
    fewer = sorted({row.test_rows for row in steps if row.test_rows < full})
    if fewer:
        counts = " or ".join(f"{count:,}" for count in fewer)
        axes.scatter([], [], c="white", edgecolors="grey", label=f"hollow: {counts} of {full:,} test rows")
    _levels(axes, [steps[0], *(row for row in rows if row.parameters.share_non_embedding is None)], metric)
    _step_ticks(axes, steps)
    legend(figure, axes)
    return figure


def _share(row: Row) -> float:
    return row.parameters.share_non_embedding or 0.0


def _levels(axes: Axes, rows: list[Row], metric: str) -> None:
    """A line across for each row, named on the right; the first is the teacher's."""
    ordered = sorted(rows, key=lambda row: row.metrics[metric])
    values = [row.metrics[metric] for row in ordered]
    for row, value, place in zip(ordered, values, _apart(np.array(values) / axes.get_ylim()[1]), strict=True):
        axes.axhline(value, color="black" if row is rows[0] else "grey", linestyle="--" if row is rows[0] else ":", linewidth=1)
        axes.annotate(
            row.system if row.note is None else f"{row.system} ({row.note})",
            (1, value),
            (1.03, place),
            xycoords=("axes fraction", "data"),
            textcoords="axes fraction",
            va="center",
            fontsize="small",
            arrowprops={"arrowstyle": "-", "color": "grey", "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 0},
            annotation_clip=False,
        )


def _apart(heights: np.ndarray) -> np.ndarray:
    """Rising `heights` (name,) as shares of the whole, moved so that names there do not touch: up, and down again from the top."""
    room = LABEL_GAP * np.arange(len(heights))
    up = np.maximum.accumulate(heights - room) + room
    return np.minimum(up, 1 - room[::-1])


def _step_ticks(axes: Axes, steps: list[Row]) -> None:
    """A tick at each step's share: its percentage below, its name above; what would touch shares the tick of the smallest."""
    shares = [_share(row) for row in steps]
    left, right = min(shares) / 1.25, max(shares) * 1.25
    ticks: dict[float, list[str]] = {}
    for row in sorted(steps, key=_share):
        last, name = max(ticks, default=0.0), f"{row.step} {row.step_name}"
        near = last and np.log(_share(row) / last) < TICK_GAP * np.log(right / left)
        names = ticks.setdefault(last if near else _share(row), [])
        if name not in names:
            names.append(name)
    above = axes.secondary_xaxis("top")
    for axis, labels in ((axes, [f"{100 * share:.3g} %" for share in ticks]), (above, ["\n".join(names) for names in ticks.values()])):
        axis.set_xticks(list(ticks), labels, fontsize="small")
        axis.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left, right)


def image(figure: Figure, kind: str) -> bytes:
    """The content of a figure's file of a kind, such as "png" or "svg"."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=150)
    return file.getvalue()
