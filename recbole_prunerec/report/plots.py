"""Figures of importance for TensorBoard and files. Each function gives a matplotlib `Figure` that belongs to no global state.

Values may be arrays or CPU tensors.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

CUT = "tab:red"


def _new(title: str, x: str, y: str, width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _image(figure: Figure, axes: Axes, values: np.ndarray, **options: Any) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(axes.imshow(values, aspect="auto", interpolation="nearest", **options), ax=axes)


def heat_map(values: ArrayLike, title: str, x: str = "head", y: str = "layer", kept: ArrayLike | None = None) -> Figure:
    """Values `(y, x)`, such as (layer, head), as coloured cells; cells that are True in `kept`, of the same shape, are outlined."""
    values = np.asarray(values)
    rows, columns = values.shape
    caption = title if kept is None else f"{title} (outlined: kept)"
    figure, axes = _new(caption, x, y, max(5.0, 0.35 * columns + 2), max(3.0, 0.25 * rows + 1.5))
    _image(figure, axes, values)
    if kept is not None:
        for row, column in np.argwhere(np.asarray(kept)):
            axes.add_patch(Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, edgecolor=CUT, linewidth=1.5))
    return figure


def sorted_curve(values: ArrayLike, keep: int, title: str, y: str = "importance") -> Figure:
    """Importance `(dimension,)` in falling order, with a line where the `keep` highest end."""
    ordered = np.sort(np.asarray(values))[::-1]
    ranks = np.arange(1, len(ordered) + 1)
    figure, axes = _new(title, "dimension, by rank", y, 6, 3.5)
    axes.plot(ranks, ordered)
    axes.fill_between(ranks[:keep], ordered[:keep], alpha=0.3)
    axes.axvline(keep + 0.5, color=CUT, linestyle="--", label=f"{keep} of {len(ordered)} kept")
    axes.legend()
    return figure


def mlp_map(values: ArrayLike, keep: int, title: str) -> Figure:
    """Importance `(layer, intermediate)`, such as METHOD 3's shares, each layer in falling order, with a line where the `keep` highest end."""
    ordered = np.sort(np.asarray(values), axis=1)[:, ::-1]
    layers, width = ordered.shape
    figure, axes = _new(title, "intermediate dimension, by rank in its layer", "layer", 7, max(3.0, 0.2 * layers + 1.5))
    _image(figure, axes, ordered, extent=(0.5, width + 0.5, layers - 0.5, -0.5))
    axes.axvline(keep + 0.5, color=CUT, linestyle="--", label=f"{keep} of {width} kept")
    axes.legend(loc="lower right")
    return figure


def layer_bars(values: ArrayLike, removed: Collection[int], title: str, y: str = "perplexity", base: float | None = None) -> Figure:
    """Positive values `(layer,)` as bars on a logarithmic axis, since a layer may matter a thousand times more than another; NaN is no bar.

    The layers whose index is in `removed` are hatched; `base`, the value without any change, is a line.
    """
    values = np.asarray(values)
    figure, axes = _new(title, "layer", y, max(5.0, 0.3 * len(values) + 1.5), 3.5)
    gone = np.isin(np.arange(len(values)), list(removed))
    axes.bar(np.flatnonzero(~gone), values[~gone], color="tab:blue", label="kept")
    axes.bar(np.flatnonzero(gone), values[gone], color="white", edgecolor=CUT, hatch="///", label="removed")
    axes.set_yscale("log")
    if base is not None:
        axes.axhline(base, color="black", linewidth=0.8, label="nothing bypassed")
    axes.legend()
    return figure
