"""The paper's tables and figures: their names, what runs they are made of, and their pictures."""

import pytest

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.errors import UserError
from recbole_prunerec.report.plots import image
from recbole_prunerec.study.drawn import bars, lines, stages
from recbole_prunerec.study.figures import COMPARED, NAMES, TABLE2, named
from recbole_prunerec.study.paper import FIGURES
from recbole_prunerec.study.systems import SYSTEMS
from recbole_prunerec.study.variants import ablations

TINY = Sizes(layers=4, hidden=128, heads=4, kv_heads=2, head_dim=32, intermediate=512, vocab=320, tied=True)


def test_every_name_is_drawn():
    assert set(NAMES) == {*FIGURES, COMPARED}
    assert set(TABLE2) <= set(SYSTEMS)
    assert named(["fig5", "table1", "fig5a"]) == ["table1", "fig5a", "fig5b", "fig5c"]
    assert named(["all"]) == list(NAMES)
    with pytest.raises(UserError, match="tabel1 is unknown; did you mean 'table1'"):
        named(["tabel1"])
    with pytest.raises(UserError, match="no table or figure is named"):
        named([])


def test_table3_has_all_four_combinations_and_random_heads_restored_and_unrestored():
    systems = ablations(TINY)["table3"].systems()
    ways = {
        (step.get("scope", "layer"), step.get("recursion", 0.7), step.get("criterion", "prunerec"))
        for step in (s.change["width"] for s in systems.values())
    }
    assert ways == {(scope, recursion, "prunerec") for scope in ("layer", "global") for recursion in (0.7, 0.0)} | {("layer", 0.7, "random")}
    assert len(systems) == 10 and sum(system.own == ("--restore.epochs=0",) for system in systems.values()) == 5
    assert {system.only for system in systems.values()} == {"width"}


def test_widths_and_depths_follow_the_backbone():
    found = ablations(TINY)
    assert [change["intermediate"] for change in found["fig5b"].changes.values()] == [64, 128, 256, 384]
    assert {name: change["layers"] for name, change in found["fig5c"].changes.items()} == {"1": 3, "2": 2, "3": 1}
    assert {change.get("hidden_score", "product") for change in found["fig5a"].changes.values()} == {"product", "gradient", "embedding"}
    assert all(ablation.reference in ablation.changes for ablation in found.values())


def test_axes_have_names_and_bars_the_values():
    records = [
        {"way": way, "restoration": restoration, "HR@10": height, "deviation": None}
        for way, restoration, height in (("a", "restored", 0.3), ("b", "restored", 0.2), ("a", "unrestored", 0.1), ("b", "unrestored", 0.05))
    ]
    figure = bars("title", "way", "hit@10", records, ("teacher", 0.4))
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("way", "HR@10")
    assert [patch.get_height() for patch in axes.patches] == [0.3, 0.2, 0.1, 0.05]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]
    assert image(figure, "png").startswith(b"\x89PNG")


def test_lines_are_told_apart_without_colour():
    records = [{"x": x, "y": x * place, "by": name} for place, name in enumerate(("one", "two", "three")) for x in (1, 2)]
    (axes,) = lines("title", "x", "y", records, "by", {"top 50 %": 1.5}).axes
    drawn = axes.get_lines()[:3]
    assert len({(line.get_linestyle(), line.get_marker()) for line in drawn}) == 3
    assert [list(line.get_ydata()) for line in drawn] == [[0, 0], [1, 2], [2, 4]]
    assert all(line.get_color().replace(".", "").isdigit() for line in drawn)  # a shade of grey


def test_stages_have_the_parameters_on_an_axis_of_their_own():
    rows = (("finetune", 0.2, 100), ("mlp", 0.1, 50))
    records = [{"step": step, "HR@10": height, "non-embedding parameters": count} for step, height, count in rows]
    left, right = stages("title", records, ["HR@10"]).axes
    assert list(left.get_lines()[0].get_ydata()) == [0.2, 0.1] and left.get_ylabel() == "metric"
    assert [patch.get_height() for patch in right.patches] == [100, 50] and "parameters" in right.get_ylabel()
