"""A real run, killed at random moments until it is through: it ends with the weights, ranks and table of a run that was left alone.

pytest -m slow tests/test_kills.py --kills=200
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent.parent / "run_recbole.py"
COMMAND = [sys.executable, str(SCRIPT), "--model=PruneRec", "--preset=quick", "--checkpoint_minutes=0.001", "--show_progress=false"]
MEASUREMENTS = {"seconds_per_user", "peak_memory_bytes", "step_seconds", "training_memory_bytes"}


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def rows(folder: Path) -> list[dict]:
    stored = json.loads((folder / "saved" / "latest" / "results.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key not in MEASUREMENTS} for row in stored]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_at_random_ends_as_one_that_was_not(tmp_path, request):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    started = time.monotonic()
    process = start(whole)
    assert (process.communicate()[1], process.returncode) == (None, 0)
    length, generator, kills, runs = time.monotonic() - started, random.Random(0), 0, 0
    while kills < request.config.getoption("--kills"):
        cut.mkdir(exist_ok=True)
        process = start(cut)
        try:
            output, _ = process.communicate(timeout=generator.uniform(0, 1.2 * length))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, output[-2000:]
        compare(cut, whole)
        runs += 1
        cut.rename(tmp_path / f"done-{runs}")  # the next kills meet a new run
    cut.mkdir(exist_ok=True)
    process = start(cut)
    output, _ = process.communicate()
    assert process.returncode == 0, output[-2000:]
    compare(cut, whole)


def compare(cut: Path, whole: Path) -> None:
    assert rows(cut) == rows(whole)
    one, other = ((folder / "saved" / "latest").resolve() for folder in (cut, whole))
    for path in sorted(other.glob("*/model.safetensors")):
        first, second = load_file(path), load_file(one / path.relative_to(other))
        assert all(torch.equal(first[name], second[name]) for name in first), path
    for path in sorted((other / "ranks").iterdir()):
        assert path.read_text() == (one / "ranks" / path.name).read_text(), path
