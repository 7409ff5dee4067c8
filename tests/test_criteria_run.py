"""Runs by other criteria: what lies in the folders, what is gone on from, and what the rows say."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import SETTINGS, TOKENIZER, backbone, samples
from transformers import AutoModelForCausalLM

from recbole_prunerec import pipeline
from recbole_prunerec.backbone.files import judge_backbone
from recbole_prunerec.backbone.load import load_step
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.prune.update import read_update
from recbole_prunerec.settings import Settings
from recbole_prunerec.storage import read_json

STEPS = [
    {"do": "finetune"},
    {"do": "width", "heads": 3, "hidden": 24, "criterion": "sparsegpt", "restore": {"epochs": 0}},
    {"do": "mlp", "intermediate": 16, "criterion": "sparsegpt"},
    {"do": "depth", "layers": 2, "criterion": "laco", "restore": {"epochs": 0}},
    {"do": "depth", "layers": 1, "criterion": "blockpruner"},
    {"do": "mlp", "intermediate": 8, "criterion": "wanda", "restore": {"epochs": 0}},
]
RUN = Settings.model_validate({**SETTINGS.model_dump(), "steps": STEPS})
NAMES = ["1-finetune", "2-width", "3-mlp", "4-depth", "5-depth", "6-mlp"]


def run(folder):
    return pipeline.run(backbone(), TOKENIZER, samples(), RUN, folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(folder)


def test_plans_replay_on_the_models_that_they_were_made_for(finished):
    folder, _ = finished
    files = [(name / "plan.safetensors").exists() for name in map(folder.joinpath, NAMES)]
    assert files == [False, True, True, True, False, False]
    for before, after in pairwise(NAMES):
        plan = read_json(folder / after / "plan.json", Plan)
        cut = apply(plan, load_step(folder / before), read_update(plan, folder / after))
        stored = load_file(folder / after / "model.safetensors")
        same = all(torch.equal(parameter, stored[name]) for name, parameter in cut.named_parameters())
        assert same == (after not in ("3-mlp", "5-depth"))  # these two are restored


def test_a_step_with_new_weights_loads_as_a_model(finished):
    folder, records = finished
    assert judge_backbone("teacher", str(folder / "2-width"))[1] == []
    assert AutoModelForCausalLM.from_pretrained(folder / "2-width").num_parameters() == records[1].sizes.total_parameters


def test_rows_say_what_was_filled_and_what_is_zero(finished):
    folder, records = finished
    assert records[1].final.note == records[1].unrestored.note == "hidden dimensions by prunerec, which sparsegpt does not score"
    assert records[2].final.note is None and records[3].final.note is None
    model = AutoModelForCausalLM.from_pretrained(folder / "5-depth")
    left = model.config.to_dict().get("layer_halves", ["both"])
    if left == ["both"]:
        assert records[4].final.note is None
        return
    zero = [half for half in ("attention", "mlp") for one in left if one not in ("both", half)]
    note = f"parameters without zeroed halves of layers: {zero.count('attention')} attention, {zero.count('mlp')} MLP"
    assert [record.final.note for record in records[4:]] == [note, note] and len(zero) == 2
    for layer, one in zip(model.model.layers, left, strict=True):
        assert bool(layer.self_attn.o_proj.weight.any()) == (one != "mlp") and bool(layer.mlp.down_proj.weight.any()) == (one != "attention")
    assert records[4].sizes.total_parameters < model.num_parameters()


@pytest.mark.parametrize("name", ["2-width", "3-mlp", "4-depth"])
def test_a_run_that_was_cut_goes_on_with_its_new_weights(finished, tmp_path, name, monkeypatch):
    """It dies while it measures the cut model, or after its new weights were written and before the plan was."""
    decided = []
    decide = pipeline.Method._decide

    def dying(method, number, *more):
        plan = decide(method, number, *more)
        decided.append(number)
        if decided.count(number) == 1 and name.startswith(str(number)):
            raise KeyboardInterrupt
        return plan

    shutil.copytree(finished[0], tmp_path / "run")
    for later in NAMES[NAMES.index(name) :]:
        shutil.rmtree(tmp_path / "run" / later)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline.Method, "_decide", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
        assert (tmp_path / "run" / ".work" / name / "plan.safetensors").exists() and not (tmp_path / "run" / ".work" / name / "plan.json").exists()
        patched.setattr(pipeline, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    number = int(name[0])
    assert decided == [number, number] and (tmp_path / "run" / ".work" / name / "plan.json").exists()
    run(tmp_path / "run")
    for step in NAMES:
        one, other = (load_file(folder / step / "model.safetensors") for folder in (finished[0], tmp_path / "run"))
        assert all(torch.equal(one[key], other[key]) for key in one), step


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_new_weights_that_are_damaged_in_the_middle_of_a_run_are_refused(finished, tmp_path, damage, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "run")
    for later in NAMES[1:]:
        shutil.rmtree(tmp_path / "run" / later)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    path = tmp_path / "run" / ".work" / "2-width" / "plan.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"plan\.safetensors"):
        run(tmp_path / "run")


def test_the_file_is_listed_and_goes_with_its_step(finished):
    folder, _ = finished
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert {name for name in listed if name.endswith("plan.safetensors")} == {f"{name}/plan.safetensors" for name in NAMES[1:4]}
