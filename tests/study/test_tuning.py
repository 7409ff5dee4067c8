"""Grids of settings: every combination once, over several attempts, and the best as YAML."""

from itertools import product
from pathlib import Path

import pytest

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.shipped import read_yaml_file
from recbole_prunerec.study import tuning
from recbole_prunerec.study.runs import Common, job_of
from recbole_prunerec.study.systems import SYSTEMS
from recbole_prunerec.study.tuning import GRIDS, judged, varied

pytest.importorskip("optuna")


def test_the_grids_are_the_papers():
    for name, size in (("SASRec-BCE", "hidden_size"), ("GRU4Rec", "embedding_size"), ("Caser-BCE", "embedding_size")):
        values = {"learning_rate": [1e-2, 1e-3, 1e-4], "weight_decay": [1e-2, 1e-3, 1e-4, 1e-5, 1e-6], size: [64, 128, 256]}
        assert GRIDS[name].values == values and GRIDS[name].system == name
    assert GRIDS["kd_weight"].values == {"kd_weight": pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])}
    assert GRIDS["recursion"].values == {"recursion": pytest.approx([step / 10 for step in range(11)])}
    assert all(grid.system in SYSTEMS for grid in GRIDS.values())


def test_every_setting_of_every_grid_is_accepted():
    question = judged([f"--grids={','.join(GRIDS)}"])
    for name, grid in GRIDS.items():
        if grid.system != "PruneRec":
            for choice in zip(*grid.values.values(), strict=False):
                values = dict(zip(grid.values, choice, strict=True))
                settings = question.settings(name, values)
                assert {key: {**settings.recbole, **settings.model_dump()}[key] for key in values} == values


@pytest.mark.parametrize(
    ("argv", "problems"),
    [
        ([], ["grids is empty; name at least one of SASRec-BCE"]),
        (["--grids=SASrec,recurson"], ["grids=SASrec is unknown; did you mean 'SASRec'?", "grids=recurson is unknown; did you mean 'recursion'?"]),
        (["--grids=SASRec", "--weight_decay=0", "--seed=x"], ["--weight_decay=0: the grid has its values", "seed=x: expected a whole number"]),
        (["--grids=SASRec", "--trials=0"], ["trials=0: expected a whole number, at least 1; leave it out"]),
        (["--grids=SASRec", "--epohcs=1"], ["epohcs is not a known key; did you mean 'epochs'?"]),
        (["--grids=SASRec", "--values={hidden_size: 64}"], ["values={hidden_size: 64}: expected lists of values by RecBole's keys"]),
        (["--grids=SASRec", "--values={hidden_size: [64, 64]}"], ["values={hidden_size: [64, 64]}: expected lists"]),
        (["--grids=SASRec", "--values={["], ["values={[: expected lists"]),
        (["--grids=SASRec,kd_weight", "--values={hidden_size: [64]}"], ["values is for one grid of a model over ids (SASRec-BCE, SASRec, "]),
        (["--grids=kd_weight", "--values={kd_weight: [1]}"], ["values is for one grid of a model over ids"]),
        (["--grids=SASRec", "--values={hidden_sise: [64, 128]}"], ["hidden_sise is not a known key; did you mean 'hidden_size'?"]),
        (["--grids=SASRec", "--values={n_layers: [1]}", "--n_layers=1"], ["--n_layers=1: the grid has its values"]),
        (["--grids=recursion", "--steps=[{do: finetune}]"], ["grids=recursion is for a width step, and preset=tiny has none"]),
    ],
)
def test_mistakes(argv, problems):
    with pytest.raises(UserError) as error:
        judged(argv)
    lines = str(error.value).splitlines()
    assert len(lines) == len(problems) and all(line.startswith(problem) for line, problem in zip(lines, problems, strict=True))


def tune(monkeypatch, name, score, *argv):
    monkeypatch.setattr(tuning, "_id_score", lambda *_: score)
    return tuning._tuned(name, judged([f"--grids={name}", "--out=tuned", *argv]), None)


def test_every_combination_is_tried_once_over_two_attempts_and_the_best_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tried, left = [], [17]

    def score(values):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        tried.append(tuple(values.values()))
        return values["hidden_size"] / 1000 - abs(values["learning_rate"] - 1e-3) - abs(values["weight_decay"] - 1e-4)

    with pytest.raises(KeyboardInterrupt):
        tune(monkeypatch, "SASRec", score)
    assert len(tried) == 16 and not Path("tuned/SASRec.yaml").exists()
    said = tune(monkeypatch, "SASRec", score)
    assert sorted(tried) == sorted(product(*GRIDS["SASRec"].values.values()))  # what was cut, too, and nothing twice
    assert read_yaml_file(Path("tuned/SASRec.yaml")) == {"learning_rate": 1e-3, "weight_decay": 1e-4, "hidden_size": 256}
    first = Path("tuned/SASRec.yaml").read_text().splitlines()[0]
    assert first.startswith("# SASRec: the best of 4") and "NDCG@10 on validation, 0.2560, ml-100k, seed 2020" in first and first[2:] in said
    tune(monkeypatch, "SASRec", score)
    assert len(tried) == 45
    settings = job_of("SASRec", SYSTEMS["SASRec"], Common({}, (), Path("tuned")), 1).settings
    assert (settings.weight_decay, settings.recbole["hidden_size"], settings.recbole["loss_type"]) == (1e-4, 256, "CE")


def test_other_settings_are_another_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = []
    for argv in ((), ("--topk=5",), ()):
        tried = []
        tune(monkeypatch, "Caser", lambda values, tried=tried: tried.append(values) or 0.5, *argv)
        counts.append(len(tried))
    assert counts == [45, 45, 0]


def test_a_grid_may_be_tried_in_part_and_further_later(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tried = []
    for trials, count in ((3, 3), (3, 3), (5, 5), (4, 5)):
        said = tune(monkeypatch, "SASRec", lambda values: tried.append(tuple(values.values())) or values["hidden_size"], f"--trials={trials}")
        assert len(tried) == len(set(tried)) == count and f"the best of {count} settings" in said
    assert read_yaml_file(Path("tuned/SASRec.yaml"))["hidden_size"] == max(size for *_, size in tried)


def test_values_of_ones_own_are_a_study_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tried = []
    for values, count in (
        ("{n_layers: [1, 3], hidden_dropout_prob: [0.2, 0.5]}", 4),
        ("{n_layers: [1, 3], hidden_dropout_prob: [0.2, 0.5]}", 4),
        ("{n_layers: [2]}", 5),
    ):
        tune(monkeypatch, "SASRec", lambda values: tried.append(values) or values["n_layers"], f"--values={values}")
        assert len(tried) == count
    assert sorted(tuple(values.values()) for values in tried[:4]) == [(1, 0.2), (1, 0.5), (3, 0.2), (3, 0.5)] and tried[4] == {"n_layers": 2}
    assert read_yaml_file(Path("tuned/SASRec.yaml"))["n_layers"] == 2
    question = judged(["--grids=SASRec", "--values={n_layers: [1, 3]}"])
    assert question.settings("SASRec", {"n_layers": 3}).recbole["n_layers"] == 3


def test_what_is_tuned_of_prunerec_is_yaml_for_a_run(tmp_path):
    settings = load_arguments(["--model=PruneRec"]).settings
    assert varied(settings, {"kd_weight": 0.4}) == {"restore": {"kd_weight": 0.4}}
    steps = varied(settings, {"recursion": 0.3})["steps"]
    assert [step.get("recursion") for step in steps] == [None, 0.3, None, None]
    assert load_arguments(["--model=PruneRec", f"--steps={steps}"]).settings.steps[1].recursion == 0.3


def test_a_step_varies_in_its_restoration_or_its_recursion():
    width, mlp = load_arguments(["--model=PruneRec"]).settings.steps[1:3]
    assert tuning._varied(width, {"recursion": 0.3}).recursion == 0.3
    assert tuning._varied(mlp, {"recursion": 0.3}) == mlp
    assert tuning._varied(mlp, {"kd_weight": 0.2}).restore.kd_weight == 0.2
    assert mlp.restore.kd_weight is None
