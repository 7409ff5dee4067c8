import io
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import colors
from matplotlib import image as matplotlib_image
from matplotlib import pyplot as plt
from matplotlib.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from recbole_prunerec.report.plots import CUT, heat_map, image, layer_bars, mlp_map, size_quality, sorted_curve
from recbole_prunerec.report.results import Results
from recbole_prunerec.run_folder import RunFolder

VALUES = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.2, 0.3]])


def drawn(figure):
    """The figure's pixels as shown, (height, width, RGB), and its first axes."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255, figure.axes[0]


def pixel(figure, x, y):
    pixels, axes = drawn(figure)
    column, row = axes.transData.transform((x, y))
    return pixels[round(pixels.shape[0] - row), round(column)]


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def boxes(figure, artists):
    """What each artist covers, in pixels."""
    figure.canvas.draw()
    return [Text.get_window_extent(artist) if isinstance(artist, Text) else artist.get_window_extent() for artist in artists]  # without an arrow


def apart(figure, artists):
    """Whether no two artists overlap, and all lie inside the figure."""
    found = boxes(figure, artists)
    inside = all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in found)
    return inside and not any(first.overlaps(second) for place, first in enumerate(found) for second in found[:place])


def test_heat_map_colours_each_cell_by_its_value():
    figure = heat_map(VALUES, "Heads")
    image = figure.axes[0].images[0]
    for layer in range(2):
        for head in range(3):
            np.testing.assert_allclose(pixel(figure, head, layer), image.cmap(image.norm(VALUES[layer, head].item()))[:3], atol=0.01)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel(), figure.axes[0].get_title()) == ("head", "layer", "Heads")
    assert figure.axes[1].get_ylabel() == "score" and heat_map(VALUES, "Heads", name="KL, nats").axes[1].get_ylabel() == "KL, nats"


def test_kept_cells_are_outlined():
    figure = heat_map(VALUES, "Heads", kept=(VALUES > 0.6) | (VALUES == 0.5))
    centres = {(patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2) for patch in figure.axes[0].patches}
    assert {(round(x), round(y)) for x, y in centres} == {(1, 0), (2, 0), (0, 1)}


def test_sorted_curve_falls_and_marks_the_cut():
    figure = sorted_curve(VALUES[0], 2, "Hidden")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 0.9], [2, 0.5], [3, 0.1]], rtol=1e-6)
    assert list(axes.lines[1].get_xdata()) == [2.5, 2.5]
    assert texts(figure.legends[0]) == ["2 of 3 kept"]


def test_mlp_map_sorts_each_layer_and_marks_the_cut():
    figure = mlp_map(VALUES, 1, "MLP")
    image = figure.axes[0].images[0]
    np.testing.assert_allclose(image.get_array(), [[0.9, 0.5, 0.1], [0.7, 0.3, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(pixel(figure, 3, 0), image.cmap(image.norm(0.1))[:3], atol=0.01)
    np.testing.assert_allclose(pixel(figure, 1, 1), image.cmap(image.norm(0.7))[:3], atol=0.01)
    np.testing.assert_allclose(pixel(figure, 1.5, 0.98), colors.to_rgb(CUT), atol=0.35)


def test_layer_bars_start_at_the_base_and_hatch_the_removed_layers():
    figure = layer_bars(np.array([0.5, 90.2, 1.0, 0.3, np.nan, 0.1]), {1, 3, 4}, "Layers", base=0.2)
    axes = figure.axes[0]
    bars = {
        round(bar.get_x() + bar.get_width() / 2): (bar.get_y(), round(bar.get_y() + bar.get_height(), 6), bar.get_hatch()) for bar in axes.patches
    }
    assert bars == {0: (0.2, 0.5, None), 1: (0.2, 90.2, "///"), 2: (0.2, 1.0, None), 3: (0.2, 0.3, "///"), 5: (0.2, 0.1, None)}
    cross, line = axes.lines
    assert cross.get_xydata().tolist() == [[4, 0.2]] and line.get_ydata()[0] == 0.2
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] < 0.1
    assert sorted(texts(figure.legends[0])) == ["gone before", "kept", "nothing bypassed", "removed"]


@pytest.mark.parametrize(("layers", "heads", "hidden", "intermediate"), [(4, 4, 128, 384), (24, 14, 896, 4864)])
def test_nothing_overlaps_at_small_and_large_shapes(layers, heads, hidden, intermediate):
    generator = np.random.default_rng(0)
    scores = 1e-7 * generator.random((layers, heads))
    figures = [
        heat_map(scores, "KL when a head is suppressed", kept=scores > 5e-8, name="KL, nats"),
        sorted_curve(1e-7 * generator.random(hidden), hidden // 2, "hidden dimensions, prunerec"),
        mlp_map(generator.random((layers, intermediate)), intermediate // 3, "MLP scores, prunerec"),
        layer_bars(np.r_[np.nan, 1 + generator.random(layers - 1)], range(layers // 2), "answers with a layer bypassed", base=1.0),
    ]
    for figure in figures:
        axes = figure.axes[0]
        figure.canvas.draw()
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_text()]
            assert len(labels) >= 3 or axis.get_scale() == "log"
            assert apart(figure, labels)
        assert not any(axes.yaxis.get_offset_text().get_text() for axes in figure.axes)
        assert apart(figure, [axes.title, axes, *figure.legends, *figure.axes[1:], axes.xaxis.label])


def row(system, value, share=None, **changes):
    return {
        "system": system,
        "test_rows": 3000,
        "metrics": {"ndcg@10": value},
        "parameters": {"non_embedding": 1, "total": 2, "share_non_embedding": share},
        "seconds_per_user": 1.0,
        "peak_memory_bytes": 1,
        **changes,
    }


STEPS = [
    row("BIGRec (teacher)", 0.04, 1.0, step=1, step_name="finetune"),
    row("PruneRec", 0.0, 0.4, step=2, step_name="width", restored=False, test_rows=500),
    row("PruneRec", 0.05, 0.4, step=2, step_name="width", restored=True, test_rows=500),
    row("PruneRec", 0.01, 0.1, step=3, step_name="mlp", restored=False, test_rows=500),
    row("PruneRec", 0.03, 0.1, step=3, step_name="mlp", restored=True),
]
OTHERS = [row("Pop", 0.02), row("SASRec", 0.0201, note="not converged: 2 epochs")]


def results(rows, **changes):
    facts = {"dataset": {"name": "ml-100k"}, "protocol": {}, "versions": {}, "device": "CPU", "command": "run", "seed": 1, "preset": "quick"}
    return Results.model_validate({"rows": rows, **facts, **changes})


def test_size_quality_puts_every_step_in_its_place():
    figure = size_quality(results([*OTHERS, *STEPS]), "ndcg@10")
    axes = figure.axes[0]
    after, before, _ = axes.collections
    np.testing.assert_allclose(after.get_offsets(), [[1.0, 0.04], [0.4, 0.05], [0.1, 0.03]])
    np.testing.assert_allclose(before.get_offsets(), [[0.4, 0.0], [0.1, 0.01]])
    assert [tuple(face) == (1, 1, 1, 1) for face in after.get_facecolors()] == [False, True, False]  # 500 rows: hollow
    assert [tuple(face) == (1, 1, 1, 1) for face in before.get_facecolors()] == [True, True]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), after.get_offsets())
    assert texts(figure.legends[0]) == ["after restoration", "before restoration", "hollow: 500 of 3,000 test rows"]
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "NDCG@10" and axes.get_title() == "ml-100k: quality by size"
    (above,) = axes.child_axes
    assert list(axes.get_xticks()) == list(above.get_xticks()) == [0.1, 0.4, 1.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10 %", "40 %", "100 %"]
    assert [label.get_text() for label in above.get_xticklabels()] == ["3 mlp", "2 width", "1 finetune"]


def test_size_quality_shows_the_teacher_and_the_others_as_named_levels():
    axes = size_quality(results([*OTHERS, *STEPS]), "ndcg@10").axes[0]
    levels = {line.get_ydata()[0]: line.get_linestyle() for line in axes.lines[1:]}
    assert levels == {0.04: "--", 0.02: ":", 0.0201: ":"}
    assert {text.get_text(): text.xy for text in axes.texts} == {
        "BIGRec (teacher)": (1, 0.04),
        "Pop": (1, 0.02),
        "SASRec (not converged: 2 epochs)": (1, 0.0201),
    }


@pytest.mark.parametrize("value", [0.0, 0.02])
def test_size_quality_stays_legible_with_many_systems_and_steps(value):
    crowd = [row(f"Model{number}", value, note="not converged: 2 epochs") for number in range(8)]
    many = [row("PruneRec", 0.0, 0.7**number, step=number, step_name="finetune", restored=number > 1 or None) for number in range(1, 11)]
    near = [row("PruneRec", 0.0, 0.7**number * 1.01, step=number + 10, step_name="vocabulary", restored=False) for number in range(1, 11)]
    figure = size_quality(results([*crowd, *many, *near], worthless=True), "ndcg@10")
    axes = figure.axes[0]
    (above,) = axes.child_axes
    figure.canvas.draw()
    assert len(axes.get_xticks()) == 10 and axes.get_ylim() == (0, 1.08 * value or 1)
    assert above.get_xticklabels()[0].get_text() == "10 finetune\n20 vocabulary"
    assert axes.get_title().endswith("These are the figures of a smoke run (preset quick): they are worth nothing.")
    assert apart(figure, axes.texts)
    assert apart(figure, [axes.title, axes, *figure.legends, *above.get_xticklabels()[::2], *axes.get_xticklabels()[::2]])


def test_without_a_step_there_is_no_curve():
    with pytest.raises(ValueError, match="no step has ndcg@10"):
        size_quality(results(OTHERS), "ndcg@10")


def test_an_image_is_a_file_of_its_kind():
    figure = size_quality(results(STEPS), "ndcg@10")
    pixels = matplotlib_image.imread(io.BytesIO(image(figure, "png")))
    assert pixels.shape[:2] == (675, 1350)
    assert ElementTree.fromstring(image(figure, "svg")).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_run_draws_every_metric_and_keeps_the_validated_one_as_files(tmp_path):
    from recbole_prunerec.run_table import RunTable

    rows = [{**each, "metrics": {"hit@10": 0.5, **each["metrics"]}} for each in [*OTHERS, *STEPS]]
    run = RunTable.__new__(RunTable)
    run.folder, run.settings = RunFolder(tmp_path), SimpleNamespace(recbole={"valid_metric": "NDCG@10"})
    run._curves(results(OTHERS))
    assert list(tmp_path.iterdir()) == []  # no steps, no curve
    run._curves(results(rows))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "table")).Reload()
    assert {tag.replace("_", "@") for tag in events.Tags()["images"]} == {"size-quality/hit@10", "size-quality/ndcg@10"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"size-quality.png", "size-quality.svg"}
    assert (tmp_path / "plots" / "size-quality.png").read_bytes() == image(size_quality(results(rows), "ndcg@10"), "png")


def test_figures_go_into_tensorboard_and_no_global_state(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for index, figure in enumerate(
            [heat_map(VALUES, "a"), sorted_curve(VALUES[0], 1, "b"), mlp_map(VALUES, 1, "c"), layer_bars(VALUES[0], [], "d", 0.2)]
        ):
            writer.add_figure(f"figure/{index}", figure)
    assert plt.get_fignums() == []
    assert b"figure/3" in next(tmp_path.iterdir()).read_bytes()
