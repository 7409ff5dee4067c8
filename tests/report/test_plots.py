import numpy as np
import torch
from matplotlib import colors
from matplotlib import pyplot as plt
from torch.utils.tensorboard import SummaryWriter

from recbole_prunerec.report.plots import CUT, heat_map, layer_bars, mlp_map, sorted_curve

VALUES = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.3]])


def drawn(figure):
    """The figure's pixels as shown, (height, width, RGB), and its first axes."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255, figure.axes[0]


def pixel(figure, x, y):
    pixels, axes = drawn(figure)
    column, row = axes.transData.transform((x, y))
    return pixels[round(pixels.shape[0] - row), round(column)]


def test_heat_map_colours_each_cell_by_its_value():
    figure = heat_map(VALUES, "Heads")
    image = figure.axes[0].images[0]
    for layer in range(2):
        for head in range(3):
            np.testing.assert_allclose(pixel(figure, head, layer), image.cmap(image.norm(VALUES[layer, head].item()))[:3], atol=0.01)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel(), figure.axes[0].get_title()) == ("head", "layer", "Heads")


def test_kept_cells_are_outlined():
    figure = heat_map(VALUES, "Heads", kept=(VALUES > 0.6) | (VALUES == 0.5))
    centres = {(patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2) for patch in figure.axes[0].patches}
    assert {(round(x), round(y)) for x, y in centres} == {(1, 0), (2, 0), (0, 1)}


def test_sorted_curve_falls_and_marks_the_cut():
    axes = sorted_curve(VALUES[0], 2, "Hidden").axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 0.9], [2, 0.5], [3, 0.1]], rtol=1e-6)
    assert list(axes.lines[1].get_xdata()) == [2.5, 2.5]
    assert axes.get_legend().get_texts()[0].get_text() == "2 of 3 kept"


def test_mlp_map_sorts_each_layer_and_marks_the_cut():
    figure = mlp_map(VALUES, 1, "MLP")
    image = figure.axes[0].images[0]
    np.testing.assert_allclose(image.get_array(), [[0.9, 0.5, 0.1], [0.7, 0.3, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(pixel(figure, 3, 0), image.cmap(image.norm(0.1))[:3], atol=0.01)
    np.testing.assert_allclose(pixel(figure, 1, 1), image.cmap(image.norm(0.7))[:3], atol=0.01)
    np.testing.assert_allclose(pixel(figure, 1.5, 0.98), colors.to_rgb(CUT), atol=0.35)


def test_layer_bars_hatch_the_removed_layers():
    axes = layer_bars(np.array([0.5, 90.2, 1.0, 0.3]), {1, 3}, "Layers", base=0.2).axes[0]
    bars = {round(bar.get_x() + bar.get_width() / 2): (round(bar.get_height(), 6), bar.get_hatch()) for bar in axes.patches}
    assert bars == {0: (0.5, None), 1: (90.2, "///"), 2: (1.0, None), 3: (0.3, "///")}
    assert axes.get_yscale() == "log" and [line.get_ydata()[0] for line in axes.lines] == [0.2]


def test_figures_go_into_tensorboard_and_no_global_state(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for index, figure in enumerate(
            [heat_map(VALUES, "a"), sorted_curve(VALUES[0], 1, "b"), mlp_map(VALUES, 1, "c"), layer_bars(VALUES[0], [], "d")]
        ):
            writer.add_figure(f"figure/{index}", figure)
    assert plt.get_fignums() == []
    assert b"figure/3" in next(tmp_path.iterdir()).read_bytes()
