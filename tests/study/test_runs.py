"""One run of a comparison: its command, its folder, and what becomes of it."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hf_folder import write_folder

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.identity import identity_of, run_path, settled
from recbole_prunerec.study.runs import Common, carry_out, job_of, reason
from recbole_prunerec.study.systems import SYSTEMS
from recbole_prunerec.text.wording import Wording


@pytest.fixture
def teacher(tmp_path):
    """A fine-tuned model as far as settings judge it, of the shape of tiny."""
    folder = write_folder(
        tmp_path / "run" / "1-finetune", num_attention_heads=4, num_key_value_heads=2, hidden_size=128, num_hidden_layers=4, intermediate_size=512
    )
    (folder / "catalogue.json").touch()
    Wording(template="list", max_prompt_tokens=512).save(folder)
    return folder


def job(name, teacher=None, seed=7, tuned=None, files=(), **given):
    return job_of(name, SYSTEMS[name], Common({key.replace("__", "."): text for key, text in given.items()}, files, tuned), seed, teacher)


def test_a_model_over_item_ids_is_its_recipe():
    found = job("SASRec-BCE", epochs="3")
    assert (found.settings.model, found.settings.seed, found.settings.epochs) == (("SASRec",), 7, 3)
    assert found.settings.recbole["loss_type"] == "BCE" and not found.evaluates


def test_pruning_starts_from_the_teacher_with_the_systems_criteria(teacher):
    found = job("wanda", teacher, restore__epochs="1")
    assert found.settings.teacher == str(teacher) and found.note == "depth by prunerec"
    steps = {step.do: step for step in found.settings.steps}
    assert list(steps) == ["width", "mlp", "depth"]
    assert (steps["width"].criterion, steps["mlp"].criterion, steps["depth"].criterion) == ("wanda", "wanda", "prunerec")
    assert steps["width"].hidden == 64  # the preset's
    assert found.settings.restore.epochs == 1
    assert job("wanda-unrestored", teacher, restore__epochs="1").settings.restore.epochs == 0


def test_from_scratch_the_last_step_has_the_epochs_of_all_and_weights_drawn_anew(teacher):
    ours, scratch = (job(name, teacher, restore__epochs="2").settings for name in ("PruneRec", "scratch"))
    assert [step.model_dump(exclude={"restore"}) for step in scratch.steps] == [step.model_dump(exclude={"restore"}) for step in ours.steps]
    restored = [scratch.restore_of(step) for step in scratch.steps]
    assert [(restore.epochs, restore.start) for restore in restored] == [(0, "cut"), (0, "cut"), (6, "random")]
    (only,) = job("scratch", teacher, steps="[{do: finetune}, {do: mlp, intermediate: 8, restore: {epochs: 5, kd_weight: 0.5}}]").settings.steps
    assert (only.restore.epochs, only.restore.start, only.restore.kd_weight) == (5, "random", 0.5)


def test_what_is_pruned_otherwise_lets_tokens_go_where_the_preset_does(teacher):
    asked = [[step.do for step in job("BIGRec-depth", teacher, preset=preset, backbone="tiny").settings.steps] for preset in ("tiny", "smollm2")]
    assert asked == [["depth"], ["vocabulary", "depth"]]
    whole = job("BIGRec-depth", None, preset="smollm2", backbone="tiny").settings.steps
    assert [step.do for step in whole] == ["vocabulary", "finetune", "depth"]
    own = job("PruneRec", teacher, preset="smollm2", backbone="tiny", steps="[{do: finetune}, {do: depth, layers: 1}]").settings.steps
    assert [step.do for step in own] == ["depth"]  # as it was asked for


def test_without_a_teacher_the_run_makes_its_own():
    assert [step.do for step in job("wanda").settings.steps] == ["finetune", "width", "mlp", "depth"]
    assert "PruneRec" in job("DLLM2Rec-Caser").settings.model


def test_what_is_only_ranked_is_an_evaluation_of_the_teacher(teacher):
    found = job("D3", teacher, preset="quick", backbone="tiny")
    assert found.evaluates and found.argv[0] == str(teacher)
    assert (found.settings.steps, found.settings.ranking.assistant, found.settings.preset) == ((), "SASRec", "quick")
    assert found.path.name.startswith("evaluate-ml-100k-")


def test_students_and_depth_alone(teacher):
    assert job("DLLM2Rec-GRU4Rec", teacher).settings.recbole["student"] == "GRU4Rec"
    assert [step.do for step in job("BIGRec-depth", teacher).settings.steps] == ["depth"]


def test_what_is_said_of_steps_is_for_those_that_have_the_presets(teacher):
    given = {"steps__2__hidden": "96"}
    assert job("PruneRec", teacher, **given).settings.steps[0].hidden == 96
    assert job("SASRec", **given).settings.model == ("SASRec",)
    assert [step.do for step in job("BIGRec", **given).settings.steps] == ["finetune"]


def test_what_a_system_has_no_use_for_is_passed_over():
    assert job("BIGRec-grounding", ranking__beams="30").settings.ranking.search == "grounding"
    assert job("BIGRec", ranking__beams="30").settings.ranking.beams == 30


def test_one_step_alone(teacher):
    system = SYSTEMS["PruneRec"]._replace(only="mlp", change={"mlp": {"intermediate": 99}})
    (step,) = job_of("x", system, Common({}), 1, teacher).settings.steps
    assert (step.do, step.intermediate) == ("mlp", 99)


def test_layers_of_settings_files_below_the_recipe_tuned_above_it(tmp_path):
    below, tuned = tmp_path / "below.yaml", tmp_path / "tuned"
    tuned.mkdir()
    below.write_text("learning_rate: 0.5\ntopk: [3]\nmetrics: [Hit]\n")
    (tuned / "SASRec.yaml").write_text("weight_decay: 0.25\n")
    found = job("SASRec", tuned=tuned, files=(str(below),)).settings
    assert (found.learning_rate, found.topk, found.weight_decay) == (1e-3, (3,), 0.25)  # the recipe's, the file's, the tuned


def test_mistakes_are_told_together():
    with pytest.raises(UserError) as error:
        job("SASRec", epohcs="3", learning_rate="fast")
    assert {line.split(" ")[0].split("=")[0] for line in str(error.value).splitlines()} == {"epohcs", "learning_rate"}


def test_what_is_typed_is_the_same_run(teacher):
    for name in ("Popularity", "wanda", "DLLM2Rec-SASRec"):
        found = job(name, teacher)
        python, script, *argv = shlex.split(found.typed)
        assert (python, script) == ("python", "run_recbole.py")
        settings = settled(load_arguments(argv).settings)
        assert run_path(settings, identity_of(settings)) == found.path


def test_what_is_typed_names_recipes_as_a_checkout_has_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 1")
    found = job_of("SASRec", SYSTEMS["SASRec"], Common({}, ("mine.yaml",)), 1)
    assert found.typed.startswith("python run_recbole.py '--config_files=mine.yaml baselines/SASRec.yaml' ")
    assert Path(found.argv[0].partition(" ")[2]).is_file()  # what is run is wherever it was installed


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (2, "12:00 starts\n2 problems:\n  - a=1: no\n  - b is unknown\n", "a=1: no; b is unknown"),
        (1, "Traceback\n  - not this\nValueError: loss is nan\n\n", "ValueError: loss is nan"),
        (-signal.SIGKILL, "", "killed by SIGKILL, as a machine without memory does"),
        (-signal.SIGSEGV, "x", "killed by SIGSEGV"),
        (3, "", "ended with exit code 3 and no word"),
    ],
)
def test_why_a_run_failed(code, said, expected):
    assert reason(code, said) == expected


SCRIPT = """
import os, pathlib, sys
path = pathlib.Path(os.environ["WROTE"])
path.mkdir(parents=True)
(path / "results.json").write_text("{}")
(path / "argv").write_text(repr(sys.argv[1:]))
"""


def test_a_run_is_carried_out_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, found = tmp_path / "script.py", job("Popularity")
    script.write_text(SCRIPT)
    monkeypatch.setenv("WROTE", str(found.path))
    run = carry_out(found, "Popularity", script, tmp_path / "logs" / "x.log")
    assert (run.folder, run.failure, run.seed) == (str(found.path), None, 7) and run.seconds > 0
    assert (found.path / "argv").read_text() == repr(found.argv)
    script.write_text("raise SystemExit('must not be run')")
    assert carry_out(found, "Popularity", script, tmp_path / "logs" / "x.log") == run.model_copy(update={"seconds": None})


def test_a_run_that_fails_says_why_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, found, log = tmp_path / "script.py", job("Popularity"), tmp_path / "x.log"
    script.write_text("import sys; sys.stderr.write('1 problem:\\n  - no data\\n'); sys.exit(2)")
    run = carry_out(found, "Popularity", script, log)
    assert (run.folder, run.failure) == (None, "no data") and "no data" in log.read_text()
    script.write_text(SCRIPT)
    monkeypatch.setenv("WROTE", str(found.path))
    assert carry_out(found, "Popularity", script, log).failure is None


def test_an_interrupt_of_a_run_ends_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(130)")
    with pytest.raises(KeyboardInterrupt):
        carry_out(job("Popularity"), "Popularity", script, tmp_path / "x.log")


@pytest.mark.parametrize("module", ["command", "figures", "tuning"])
def test_mistakes_are_answered_without_a_heavy_import(blocked, module):
    code = (
        f"import recbole_prunerec.study.{module}, sys; print({{'torch', 'transformers', 'recbole', 'numpy', 'pandas', 'optuna'}} & set(sys.modules))"
    )
    path = os.pathsep.join([str(blocked), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=True)
    assert done.stdout == "set()\n"
