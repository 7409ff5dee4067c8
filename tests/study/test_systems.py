"""The rows by name: what each is made of, and what is said of a name that is none."""

from importlib.resources import files
from typing import get_args

import pytest

from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import DepthCriterion, WidthCriterion
from recbole_prunerec.shipped import properties, recipe
from recbole_prunerec.study.runs import recipe_file
from recbole_prunerec.study.systems import GROUPS, SHORT, SYSTEMS, chosen, filled

STEPS = ["finetune", "width", "mlp", "depth"]


def test_every_recipe_is_shipped_and_every_shipped_one_is_a_system():
    shipped = {file.name.removesuffix(".yaml") for file in files("recbole_prunerec.baselines").iterdir() if file.name.endswith(".yaml")}
    assert {system.recipe for system in SYSTEMS.values()} == shipped
    assert all(recipe_file(name).is_file() for name in shipped)


def test_every_criterion_has_a_row_with_and_one_without_restoration():
    criteria = {*get_args(WidthCriterion), *get_args(DepthCriterion)} - {"prunerec"}
    assert criteria | {f"{name}-unrestored" for name in criteria} <= set(SYSTEMS)
    assert {"PruneRec-unrestored", "perplexity", "llm_pruner-second"} <= set(SYSTEMS)
    assert set(GROUPS["short"]) == set(SHORT)
    assert set(GROUPS["recommenders"]) | set(GROUPS["criteria"]) | set(GROUPS["unrestored"]) == set(GROUPS["all"]) == set(SYSTEMS)


def test_a_criterion_goes_into_the_steps_that_it_can_score():
    assert SYSTEMS["random"].change == {step: {"criterion": "random"} for step in ("width", "mlp", "depth")}
    assert SYSTEMS["shortgpt"].change == {"depth": {"criterion": "shortgpt"}}
    assert set(SYSTEMS["wanda"].change) == {"width", "mlp"}


@pytest.mark.parametrize(
    ("system", "steps", "note"),
    [
        ("wanda", STEPS, "depth by prunerec"),
        ("shortgpt", STEPS, "width and mlp by prunerec"),
        ("wanda", ["finetune", "mlp"], None),
        ("random", STEPS, None),
        ("PruneRec", STEPS, None),
        ("perplexity", STEPS, None),
    ],
)
def test_what_a_criterion_leaves_to_prunerec_is_said(system, steps, note):
    assert filled(SYSTEMS[system], steps) == note


def test_names_come_in_the_tables_order_each_once():
    assert chosen("PruneRec, Popularity,PruneRec") == ["Popularity", "PruneRec"]
    assert chosen("all") == list(SYSTEMS)
    assert chosen("criteria,SASRec") == ["SASRec", *GROUPS["criteria"]]


def test_unknown_names_are_told_together_with_the_nearest():
    with pytest.raises(UserError) as error:
        chosen("SASrec,BIGRek,SASrec")
    assert str(error.value).splitlines() == [
        "systems=SASrec is unknown; did you mean 'SASRec'?",
        "systems=BIGRek is unknown; did you mean 'BIGRec'?",
    ]
    with pytest.raises(UserError, match="systems is empty; name at least one, or all, short, recommenders"):
        chosen(" , ")


def test_the_presets_steps_are_what_the_notes_speak_of():
    assert [step["do"] for step in recipe("tiny")["steps"]] == STEPS
    assert properties("model", "DLLM2Rec")["student"] in ("SASRec", "GRU4Rec", "Caser")
