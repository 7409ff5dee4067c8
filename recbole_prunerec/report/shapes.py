"""A table of models by their sizes, with their shares of a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.report.tables import si

WIDTHS = {
    "layers": "Layers",
    "hidden": "Hidden",
    "heads": "Heads",
    "kv_heads": "K/V\nheads",
    "head_dim": "Head\nwidth",
    "intermediate": "MLP",
    "vocab": "Vocabulary",
}


def shape_table(
    heading: str,
    names: Sequence[str],
    sizes: Sequence[Sizes],
    backbone: Sizes,
    columns: Mapping[str, Sequence[str]],
    widths: Sequence[str] = tuple(WIDTHS),
    digits: int = 1,
) -> str:
    """A line for each of `names`, below `heading`: its `widths`, its shares of `backbone` in percent with so many `digits`, and further `columns`."""
    lines = [[name, *_cells(each, backbone, widths, digits), *more] for name, each, *more in zip(names, sizes, *columns.values(), strict=True)]
    headings = [heading, *map(WIDTHS.__getitem__, widths), "Non-embedding\nparameters", "All\nparameters", *columns]
    return tabulate(lines, headings, disable_numparse=True, colalign=("left", *["right"] * (len(headings) - 1)))


def _cells(sizes: Sizes, backbone: Sizes, widths: Sequence[str], digits: int) -> list[str]:
    counts = (
        (sizes.non_embedding_parameters, backbone.non_embedding_parameters),
        (sizes.total_parameters, backbone.total_parameters),
    )
    return [*(f"{getattr(sizes, name):,}" for name in widths), *(f"{si(count)} ({100 * count / whole:.{digits}f} %)" for count, whole in counts)]


def mebibytes(count: int) -> str:
    """Bytes as `35 MiB`."""
    return f"{count / 2**20:,.0f} MiB"
