"""Settings of data, backbone and text reach a run's parts; those of the method are in test_switches.py."""

from pathlib import Path

import numpy as np
import pytest
from hf_folder import write_folder

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.loading import load_prompts
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.run_table import RunTable
from recbole_prunerec.text.prompts import TEMPLATES, Prompts


def prepared(tmp_path: Path, *arguments: str) -> RunTable:
    """A run on MovieLens 100k whose data are loaded."""
    return RunTable(load_arguments(["--show_progress=false", *arguments]).settings, RunFolder(tmp_path / "run"), tmp_path / "cache")


def test_training_rows_are_the_first_ones(tmp_path):
    every, few = (prepared(tmp_path, f"--training_rows={count}").data.samples for count in ("null", "700"))
    assert len(few.train) == 700 < len(every.train) and len(few.valid) == len(every.valid)
    for name in ("users", "histories", "targets"):
        assert np.array_equal(getattr(few.train, name), getattr(every.train, name)[:700])


def test_revision_and_attention_reach_the_backbone(tmp_path, monkeypatch):
    asked = []

    def refuse(name, *argv):
        asked.append((name, *argv))
        raise UserError("enough")

    run = prepared(tmp_path, "--training_rows=64")
    given = {"backbone": "some/model", "revision": "v2", "attn_implementation": "eager"}
    run.settings = run.settings.model_copy(update=given)
    monkeypatch.setattr("recbole_prunerec.backbone.load.load_backbone", refuse)
    with pytest.raises(UserError, match="enough"):
        run._build("PruneRec")
    ((name, *_, key, revision, attention, as_tokens),) = asked
    assert (name, key, revision, attention, as_tokens) == ("some/model", "backbone", "v2", "eager", [])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"backbone_commit": "a" * 40}),
        ({"backbone": "tiny"}, {}),
        ({"teacher": "a/folder"}, {}),
        ({"model": ("SASRec",)}, {}),
    ],
)
def test_the_commit_of_a_backbone_on_the_hub_stands_in_the_protocol(tmp_path, monkeypatch, changes, expected):
    places = {("some/model", "v2"): tmp_path / "snapshots" / ("a" * 40)}
    monkeypatch.setattr("recbole_prunerec.run_table.source_of", lambda name, revision: write_folder(places[name, revision]))
    run = object.__new__(RunTable)
    run.settings = load_arguments([]).settings.model_copy(update={"backbone": "some/model", "revision": "v2", **changes})
    assert {key: value for key, value in run._protocol().items() if key == "backbone_commit"} == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_template_and_longest_prompt_reach_the_prompts(tmp_path, template):
    longest = {"list": 60, "lines": 40, "bigrec": 250}[template]
    run = prepared(tmp_path, f"--template={template}", "--packing=false", f"--max_prompt_tokens={longest}", "--training_rows=64")
    _, model, _ = run._build("PruneRec")
    history = run.data.samples.test.history(0).tolist()
    whole = Prompts(model.backbone.tokenizer, model.prompts.catalogue, template, 10_000)
    fitting = [start for start in range(11) if len(whole.prompt(history[start:])) <= longest]
    assert len(history) == 10 and 0 < fitting[0] < 10
    assert model.prompts.prompt(history).tolist() == whole.prompt(history[fitting[0] :]).tolist()


def test_title_tokens_reach_backbone_and_prompts(tmp_path):
    """Also where the model is not loaded, as in a dry run."""
    run = prepared(tmp_path, "--template=lines", "--title_tokens=true", "--training_rows=64")
    _, model, _ = run._build("PruneRec")
    config, prompts = load_prompts(run.settings, run.data, None)
    distinct = run.data.catalogue.distinct
    history = run.data.samples.test.history(0).tolist()
    for each in (model.prompts, prompts):
        assert {len(answer) for answer in each.answers} == {1} and len(each.prompt(history)) == 1 + len(history)
    assert model.backbone.model.config.vocab_size == config.vocab_size == len(model.backbone.tokenizer) == 1500 + len(distinct)
