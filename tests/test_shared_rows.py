"""What one run has trained, another with the same settings and data takes; whatever a row depends on keeps it apart."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_data import write_small
from small_runs import ran, ranks, rows

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.checked import read_checked
from recbole_prunerec.settings import CHANGES_NO_FIGURE, Restore, Settings, Tutor
from recbole_prunerec.shared_rows import PRUNEREC_ALONE, THROUGH_RECBOLE, shared_file
from recbole_prunerec.trainer import RankedEvaluation

SMALL = ["--dataset=small", "--test_rows=20", "--step_test_rows=10", "--topk=2,5", "--show_progress=false", "--training_rows=64"]
PRUNEREC = ["--steps=[{do: finetune}]", "--epochs=0", "--valid_rows=8", "--ranking.beams=12"]
SAME = ["--baselines={epochs: 2, loss_type: CE}"]  # as --epochs=2 is for SASRec alone
E4SREC = ["--baselines.E4SRec.epochs=1", "--baselines.SLMRec.epochs=1"]


@pytest.fixture
def fits(monkeypatch) -> list[str]:
    """The models that are trained from here on."""
    trained: list[str] = []
    fit = RankedEvaluation.fit
    monkeypatch.setattr(RankedEvaluation, "fit", lambda self, *args, **kwargs: (trained.append(self.config["model"]), fit(self, *args, **kwargs))[1])
    return trained


@pytest.fixture
def place(tmp_path) -> Path:
    write_small(tmp_path / "dataset")
    return tmp_path


def settings(*argv: str) -> Settings:
    return load_arguments(list(argv)).settings


def file(*argv: str, name: str = "SASRec", **changed) -> Path | None:
    return shared_file(Path(), settings(*argv).model_copy(update=changed), name)


def test_a_model_is_trained_once_for_all_runs(place, fits, capsys):
    alone = ran(place, "saved", *SMALL, "--model=SASRec", "--epochs=2")
    helping = ran(place, "saved", *SMALL, *PRUNEREC, *SAME, "--compare=", "--ranking.assistant=SASRec")
    assert fits == ["SASRec"] and f"SASRec: as {place / 'saved' / alone.name} trained it" in capsys.readouterr().err
    assert rows(helping)["SASRec"] == rows(alone)["SASRec"] and ranks(helping, "SASRec").equals(ranks(alone, "SASRec"))
    logs = [sorted((run / "tensorboard" / "SASRec").rglob("events*")) for run in (helping, alone)]
    events, theirs = ([(path.name, path.read_bytes()) for path in paths] for paths in logs)
    assert events and events == theirs

    separate = ran(place, "separate", *SMALL, *PRUNEREC, *SAME, "--compare=", "--ranking.assistant=SASRec")
    assert fits == ["SASRec"] * 2
    assert ranks(separate, "1-finetune").equals(ranks(helping, "1-finetune"))
    ours, expected = (load_file(run / "rows" / "SASRec.safetensors") for run in (helping, separate))
    assert ours.keys() == expected.keys() and all(torch.equal(ours[key], expected[key]) for key in ours)


def test_fresh_trains_again(place, fits):
    for argv in ([], ["--fresh"], ["--seed=2021"]):
        ran(place, "saved", *SMALL, "--model=GRU4Rec", "--epochs=1", *argv)
    assert fits == ["GRU4Rec"] * 3


def test_a_teacher_serves_students_that_learn_otherwise(place, fits):
    first = ran(place, "saved", *SMALL, *E4SREC, "--model=SLMRec", "--loss=slmrec", "--epochs=1")
    second = ran(place, "saved", *SMALL, *E4SREC, "--model=SLMRec", "--loss=prunerec", "--epochs=1")
    assert fits == ["SASRec", "E4SRec", "SLMRec", "SLMRec"]
    assert rows(first)["E4SRec"] == rows(second)["E4SRec"] and not ranks(first, "SLMRec").equals(ranks(second, "SLMRec"))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"", lambda data: b"\x80pickle"]
)
def test_a_damaged_file_is_made_again(place, fits, capsys, damage):
    ran(place, "saved", *SMALL, "--model=SASRec", "--epochs=1")
    (kept,) = (place / "saved" / "cache" / "rows").iterdir()
    kept.write_bytes(damage(kept.read_bytes()))
    ran(place, "saved", *SMALL, "--model=SASRec,Popularity", "--epochs=1")
    assert fits.count("SASRec") == 2 and f"{kept} is damaged; it is made again" in capsys.readouterr().err
    assert read_checked(kept) is not None


def test_nothing_is_shared_that_the_runs_own_model_teaches_or_that_is_not_trained():
    assert [file(name=name) for name in ("PruneRec", "Popularity", "DLLM2Rec")] == [None] * 3


@pytest.mark.parametrize("key", Settings.model_fields)
@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_every_setting_is_either_in_the_hash_or_known_to_change_no_figure(key):
    if key in THROUGH_RECBOLE:
        return
    other = {"split": "leave_one_out", "restore": Restore(epochs=9), "tutor": Tutor(model="SASRec")}.get(key, "otherwise")
    same = file("--model=SASRec", **{key: other}) == file("--model=SASRec")
    assert same == (key in (*PRUNEREC_ALONE, *CHANGES_NO_FIGURE))


@pytest.mark.parametrize(
    "argv",
    [
        ["--epochs=7"],
        ["--learning_rate=0.5"],
        ["--train_batch_size=3"],
        ["--loss_type=BPR"],
        ["--hidden_size=32"],
        ["--user_inter_num_interval=[9,inf)"],
        ["--valid_metric=Hit@10"],
        ["--baselines.SASRec.n_layers=1"],
        ["--topk=3"],
        ["--test_rows=10"],
        ["--ranked=valid"],
        ["--exclude_seen=true"],
        ["--split=leave_one_out"],
    ],
)
def test_what_a_model_is_trained_and_measured_by_is_in_the_hash(argv):
    assert file("--model=SASRec", *argv) != file("--model=SASRec")


def test_settings_of_other_models_are_not_in_the_hash():
    assert file("--model=SASRec,GRU4Rec", "--baselines.GRU4Rec.epochs=3") == file("--model=SASRec")
    assert file("--model=SLMRec", "--loss=prunerec") == file("--model=SLMRec")


@pytest.mark.parametrize("name", ["E4SRec", "SLMRec"])
def test_readers_depend_on_the_language_model_and_on_those_that_help_them(tmp_path, name):
    def at(*argv: str, **changed) -> Path | None:
        return file("--model=SLMRec", *argv, name=name, **changed)

    assert at("--baselines.SASRec.hidden_size=32") != at() != at("--restore.epochs=7")
    (tmp_path / "config.json").write_text("{}")
    before = at(backbone=str(tmp_path))
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert at() != before != at(backbone=str(tmp_path)) == at(teacher=str(tmp_path))


def test_the_data_are_in_the_hash(place):
    argv = [f"--data_path={place / 'dataset'}", "--dataset=small", "--model=SASRec", "--topk=2,5"]
    before = file(*argv)
    with open(place / "dataset" / "small" / "small.inter", "a") as interactions:
        interactions.write("1\t1\t5.0\n")
    assert file(*argv) != before
