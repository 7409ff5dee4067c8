"""`compare`: what is refused, and what becomes of runs that fail, are cut, or are there already. Runs are made by a script that trains nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import made_run

from recbole_prunerec.errors import UserError
from recbole_prunerec.storage import read_json
from recbole_prunerec.study.command import carry_out_all, judged
from recbole_prunerec.study.gathered import Study, gather
from recbole_prunerec.study.systems import SYSTEMS

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, pathlib, shutil, sys
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.identity import identity_of, run_path, settled
settings = settled(load_arguments(sys.argv[1:]).settings)
model, path = settings.model[-1], run_path(settings, identity_of(settings))
with open("started", "a") as file:
    file.write(model + " ")
if model == os.environ.get("FAILS"):
    raise SystemExit("no room for " + model)
if model == os.environ.get("INTERRUPTED"):
    raise SystemExit(130)
shutil.copytree("SASRec-1", path)
results = path / "results.json"
results.write_text(results.read_text().replace("SASRec", model))
(path / "ranks" / "SASRec.csv").rename(path / "ranks" / f"{model}.csv")
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Every run's results are those of one that is made by hand, under the model's name."""
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path, "SASRec", 1, [1, 2, 3, 1, 2, 3])
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def carried_out(script, *argv):
    question = judged(argv)
    runs = carry_out_all(question, [1.0] * len(question.jobs), script)
    started = Path("started")
    names = started.read_text().split() if started.exists() else []
    started.unlink(missing_ok=True)
    return runs, names


def test_all_systems_and_seeds_are_run_seed_by_seed(script):
    runs, started = carried_out(script, "--systems=SASRec,Popularity", "--seeds=2", "--seed=5")
    assert [(run.system, run.seed) for run in runs] == [("Popularity", 5), ("SASRec", 5), ("Popularity", 6), ("SASRec", 6)]
    assert started == ["Popularity", "SASRec"] * 2
    study = gather(runs, SYSTEMS, "x")
    assert [(line.system, line.seeds) for line in study.lines] == [("Popularity", (5, 6)), ("SASRec", (5, 6))]


def test_what_is_there_is_not_run_again_and_what_was_cut_is(script, monkeypatch):
    monkeypatch.setenv("INTERRUPTED", "GRU4Rec")
    argv = ("--systems=Popularity,GRU4Rec,SASRec", "--seeds=1")
    with pytest.raises(KeyboardInterrupt):
        carried_out(script, *argv)
    Path("started").unlink()
    monkeypatch.delenv("INTERRUPTED")
    runs, started = carried_out(script, *argv)
    assert started == ["GRU4Rec"]  # the others stand before it in the table, and were done
    assert all(run.folder for run in runs)
    assert carried_out(script, *argv)[1] == []
    assert carried_out(script, *argv, "--topk=5")[1] == ["Popularity", "SASRec", "GRU4Rec"]  # other figures, other runs


def test_a_run_that_fails_is_a_row_and_the_others_go_on(script, monkeypatch):
    monkeypatch.setenv("FAILS", "SASRec")
    runs, started = carried_out(script, "--systems=SASRec,Popularity", "--seeds=1")
    assert started == ["Popularity", "SASRec"]
    lines = {line.system: line for line in gather(runs, SYSTEMS, "x").lines}
    assert (lines["SASRec"].metrics, lines["SASRec"].note) == ({}, "failed: no room for SASRec")
    assert lines["Popularity"].seeds == (2020,)


def test_where_the_teacher_fails_those_that_start_from_it_say_so(script, monkeypatch):
    monkeypatch.setenv("FAILS", "PruneRec")
    runs, started = carried_out(script, "--systems=PruneRec,wanda,Popularity", "--seeds=1")
    assert started == ["PruneRec", "Popularity"]  # the teacher is PruneRec's first step
    failures = {run.system: run.failure for run in runs}
    assert failures["BIGRec"] == "no room for PruneRec"
    assert failures["PruneRec"] == failures["wanda"] == "BIGRec, from whose model it starts, failed"


def test_a_teacher_that_cannot_be_read_is_a_row_that_says_so(script):
    """The script leaves no model."""
    runs, _ = carried_out(script, "--systems=PruneRec", "--seeds=1")
    assert [run.system for run in runs] == ["BIGRec", "PruneRec"]
    assert "1-finetune" in runs[1].failure


@pytest.mark.parametrize(
    ("argv", "problems"),
    [
        (["--systems=SASRec", "--seeds=0"], ["seeds=0: expected a whole number, at least 1"]),
        (
            ["--systems=SASRec", "--seeds=two", "--seed=-1"],
            ["seeds=two: expected a whole number, at least 1", "seed=-1: expected a whole number, at least 0"],
        ),
        (["--model=SASRec", "--systems=PrunRec"], ["--model=SASRec: each system", "systems=PrunRec is unknown; did you mean 'PruneRec'?"]),
        (["--systems=SASRec", "--tuned=nowhere"], ["tuned=nowhere is not a folder"]),
        (["--systems=SASRec", "--fresh"], ["--fresh=true: each system has its own, or it is for a single run; leave it out"]),
        (
            ["--systems=SASRec", "--dataset=amazon-video-games-18"],
            ["dataset=amazon-video-games-18 is not here yet; fetch it first: python run_recbole.py"],
        ),
        (["--systems=SASRec", "--epohcs=1"], ["epohcs is not a known key; did you mean 'epochs'?"]),
        (["--systems=SASRec,GRU4Rec", "--hidden_size=6", "--n_heads=1"], ["n_heads is not a known key (GRU4Rec)"]),
    ],
)
def test_mistakes_are_told_together_before_anything_is_run(argv, problems):
    with pytest.raises(UserError) as error:
        judged(argv)
    lines = str(error.value).splitlines()
    assert len(lines) == len(problems) and all(line.startswith(problem) for line, problem in zip(lines, problems, strict=True))


def test_the_command_line(blocked):
    path = os.pathsep.join([str(blocked), os.environ.get("PYTHONPATH", "")])

    def said(script, *argv):
        command = [sys.executable, str(ROOT / "baselines" / script), *argv]
        return subprocess.run(command, capture_output=True, text=True, cwd=blocked, env={**os.environ, "PYTHONPATH": path}, check=False)

    for script, mistake, problem in (
        ("compare.py", "--systems=BIGRek", "systems=BIGRek is unknown; did you mean 'BIGRec'?"),
        ("paper.py", "fig7", "fig7 is unknown"),
        ("tune.py", "--grids=SASrec", "grids=SASrec is unknown; did you mean 'SASRec'?"),
    ):
        assert f"python baselines/{script}" in said(script, "--help").stdout
        done = said(script, mistake)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(f"1 problem:\n  - {problem}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_whole_comparison_has_no_empty_cell_and_ends_at_once_the_second_time(tmp_path):
    """Real runs of one system of each kind on a small dataset."""
    from small_data import write_small

    write_small(tmp_path / "dataset")
    argv = ["--dataset=small", "--preset=quick", "--systems=Popularity,SASRec,D3,DLLM2Rec-SASRec,SLMRec,PruneRec,wanda-unrestored", "--seeds=1"]
    argv += ["--topk=2,5", "--ranking.beams=5", "--epochs=1", "--device=cpu"]
    command = [sys.executable, str(ROOT / "baselines" / "compare.py"), *argv]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("as it was") == 8  # the teacher, too
    out = tmp_path / "saved" / "compare-small"
    study = read_json(out / "comparison.json", Study)
    assert [line.note for line in study.lines if not line.seeds] == []
    for line in study.lines:
        ranks = next(Path(tmp_path, run.folder) for run in study.runs if run.system == line.system)
        assert set(line.metrics) == {"hit@2", "hit@5", "ndcg@2", "ndcg@5"} and (ranks / "ranks").is_dir()
    assert {each.against for each in study.differences} == {line.system for line in study.lines} - {"PruneRec"}
    assert json.loads((out / "comparison.json").read_text())["worthless"] is True
    assert "n/a" not in (out / "comparison.md").read_text().partition("| PruneRec ")[2].partition("\n")[0]
