"""`plan --probe`: shapes are really cut, restored and ranked on validation rows, from one teacher; and it goes on where it was cut."""

import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from planned import ask, refused, steps, table
from safetensors.torch import load_file
from small_data import write_small
from transformers import AutoModelForCausalLM

from recbole_prunerec import __main__ as commands
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.storage import read_json

DATA = ["--dataset=small", "--topk=3,5", "--ranking.beams=12", "--preset=tiny"]
SHORT = ["--epochs=2", "--learning_rate=1e-2", "--training_rows=96", "--valid_rows=8", "--calibration_samples=4", "--step_test_rows=30"]
PROBE = [*DATA, *SHORT, "--budget=0.2", "--shapes=2", "--show_progress=false", "--checkpoint_minutes=0.001", "--probe"]


def in_place(folder: Path) -> Path:
    """A folder with the small dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    write_small(folder / "dataset")
    return folder


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """Where a probe was made that was not cut, its report, and the ranks that each shape gave in the end."""
    place = in_place(tmp_path_factory.mktemp("probed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        said = []
        patch.setattr(sys, "stdout", type("Out", (), {"write": lambda self, text: said.append(text)})())
        commands.main(["plan", *PROBE])
    return place, "".join(said), {shape.name: last_ranks(shape) for shape in shapes(plan_folder(place))}


def plan_folder(place: Path) -> Path:
    (folder,) = (place / "saved").glob("plan-small-*")
    return folder


def shapes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != "teacher")


def metrics(ranks: pd.DataFrame, length: int) -> tuple[float, float]:
    """NDCG and HR of one relevant item a row, by their definitions."""
    gains = [1 / math.log2(rank + 1) if rank <= length else 0 for rank in ranks["rank"]]
    return sum(gains) / len(gains), sum(gain > 0 for gain in gains) / len(gains)


def last_ranks(shape: Path) -> pd.DataFrame:
    return pd.read_csv(shape / "ranks" / "3-depth.csv")


def test_rows_are_ordered_by_what_the_ranks_of_validation_rows_give(probed):
    place, report, ranks = probed
    rows = table(report)
    assert next(iter(rows)) == "backbone" and sorted(rows) == ["1", "2", "backbone"]
    by_size = {tuple(row[:5]): (name, row[7:9]) for name, row in rows.items() if name != "backbone"}
    found = {}
    for shape in shapes(plan_folder(place)):
        config = json.loads((shape / "3-depth" / "config.json").read_text())
        keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        name, shown = by_size[tuple(str(config[key]) for key in keys)]
        ranks = last_ranks(shape)
        assert len(ranks) == 30
        found[name] = metrics(ranks, 3)
        assert shown == [f"{value:.4f}" for value in found[name]]
    order = [name for name in rows if name != "backbone"]
    assert order == sorted(found, key=lambda name: (-found[name][0], name))
    best = rows[order[0]]
    width, mlp, depth = steps(report)[2:]
    assert [str(depth["layers"]), str(width["hidden"]), str(width["heads"]), best[3], str(mlp["intermediate"])] == best[:5]
    teacher = metrics(pd.read_csv(plan_folder(place) / "teacher" / "ranks" / "2-finetune.csv"), 3)
    assert "Order: NDCG@3 on 30 validation samples after surgery and restoration, restore.epochs=1, from one teacher: " in report
    assert f"NDCG@3 {teacher[0]:.4f}, HR@3 {teacher[1]:.4f}.\n" in report


def test_the_rows_are_those_of_validation_and_none_is_the_tests(probed):
    """By the protocol in plain Python: every sample by its target's time, of which the ninth tenth is for validation."""
    place, *_ = probed
    lines = [line.split("\t") for line in (place / "dataset" / "small" / "small.inter").read_text().splitlines()[1:]]
    places: dict[str, int] = {}
    samples: list[tuple[float, str, str]] = []
    for user, item, when in sorted(lines, key=lambda line: (line[0], float(line[2]))):
        places[user] = places.get(user, 0) + 1
        if places[user] > 1:
            samples.append((float(when), user, item))
    samples.sort()
    valid = [item for _, _, item in samples[len(samples) * 8 // 10 : len(samples) * 9 // 10]]
    folder = plan_folder(place)
    for file in [folder / "teacher" / "ranks" / "2-finetune.csv", *(path / "ranks" / "3-depth.csv" for path in shapes(folder))]:
        ranks = pd.read_csv(file)
        assert len(ranks) == 30 and ranks["target"].tolist() == [valid[row] for row in ranks["row"]]


def test_each_shape_was_cut_from_the_one_teacher_restored_and_loads_as_a_stock_model(probed):
    folder = plan_folder(probed[0])
    teacher = load_file(folder / "teacher" / "2-finetune" / "model.safetensors")
    for shape in shapes(folder):
        plan = read_json(shape / "1-width" / "plan.json", Plan)
        assert plan.sizes_before.vocab == teacher["model.embed_tokens.weight"].shape[0]
        cut, restored = teacher["model.embed_tokens.weight"][:, plan.hidden], load_file(shape / "1-width" / "model.safetensors")
        moved = (restored["model.embed_tokens.weight"] - cut).abs().max()
        assert 0 < moved < 1  # trained, from the teacher's weights
        probe = load_file(shape / "3-depth" / "probe.safetensors")
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(shape / "3-depth")(input_ids=probe["input_ids"]).logits
        assert torch.equal(logits[:, -4:], probe["logits"])
    assert len(list((probed[0] / "saved" / "cache").glob("teacher-*"))) == 1  # for all


def test_the_same_command_shows_the_same_at_once_and_another_budget_has_the_same_teacher(probed, monkeypatch, capsys):
    place, report, _ = probed
    monkeypatch.chdir(place)

    def train(*args, **kwargs):
        raise AssertionError("something was trained")

    with monkeypatch.context() as patch:
        patch.setattr("recbole_prunerec.pipeline.train", train)
        assert ask(capsys, *PROBE) == report
    folder = plan_folder(place)
    before, weights = set(shapes(folder)), folder / "teacher" / "2-finetune" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    ask(capsys, *PROBE, "--budget=0.1", "--shapes=1")
    assert plan_folder(place) == folder and weights.stat().st_mtime_ns == made
    assert set(shapes(folder)) > before
    ask(capsys, *PROBE, "--shapes=1", "--fresh")
    assert weights.stat().st_mtime_ns > made


def test_a_dry_run_tells_what_it_takes_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(in_place(tmp_path))
    report = ask(capsys, *PROBE, "--dry_run")
    assert re.search(r"\nProbe: 2 shapes from one teacher take at least about \d+ s on .+; \d+ MiB of disk in saved\.\n", report)
    assert "\nA dry run: nothing was trained or written.\n" in report
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_disk_without_room_is_told_before(tmp_path, monkeypatch):
    monkeypatch.chdir(in_place(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    (problem,) = refused(*PROBE)
    assert problem.startswith("checkpoint_dir=saved has 1 MiB free, and the run needs about ")


def test_a_teacher_that_was_given_is_measured_and_not_trained(probed, tmp_path, monkeypatch, capsys):
    """One whose tokens have gone already, so that there is nothing to do before the cuts."""
    given = plan_folder(probed[0]) / "teacher" / "2-finetune"
    monkeypatch.chdir(in_place(tmp_path))
    report = ask(capsys, *PROBE, f"--teacher={given}", "--shapes=1")
    assert [step["do"] for step in steps(report)] == ["width", "mlp", "depth"]
    first = metrics(pd.read_csv(plan_folder(probed[0]) / "teacher" / "ranks" / "2-finetune.csv"), 3)
    assert f"from one teacher: NDCG@3 {first[0]:.4f}, HR@3 {first[1]:.4f}.\n" in report


def test_killed_twice_it_ends_as_a_probe_that_was_not(probed, tmp_path, monkeypatch):
    """Each time once two steps more are complete, so at work on the first shape, then in the midst of it."""
    _, report, ranks = probed
    monkeypatch.chdir(in_place(tmp_path))
    for _ in range(2):
        assert forked(tmp_path, kill=True) == (-signal.SIGKILL, "")
    assert forked(tmp_path, kill=False) == (0, report)
    for shape in shapes(plan_folder(tmp_path)):
        pd.testing.assert_frame_equal(last_ranks(shape), ranks[shape.name])


def forked(place: Path, kill: bool) -> tuple[int, str]:
    """The exit code of the probe in a process of its own, and what it printed. With `kill` it is, once it has completed two steps more."""
    out, pattern = place / "said", "saved/plan-*/*/[0-9]-*"
    before = len(list(place.glob(pattern)))
    child = os.fork()
    if not child:
        code = 70
        try:
            torch.set_num_threads(1)
            sys.stdout = out.open("w")
            commands.main(["plan", *PROBE])
            sys.stdout.flush()
            code = 0
        finally:
            os._exit(code)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if kill and len(list(place.glob(pattern))) > before + 1:
            os.kill(child, signal.SIGKILL)
            kill = False
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(ended[1]), out.read_text()
