"""The command line as a shell sees it: exit codes, what goes where, and no heavy import for help or a mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_prunerec.arguments import USAGE

SCRIPT = Path(__file__).parent.parent / "run_recbole.py"
HEAVY = ("torch", "transformers", "numpy", "pandas")  # RecBole imports them first of all


@pytest.fixture
def blocked(tmp_path):
    """A folder in which every heavy library fails to be imported."""
    for name in HEAVY:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('imported {name}')\n")
    return tmp_path


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run([sys.executable, str(SCRIPT), *argv], capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--model=Nothing", "--help"]])
def test_help_is_the_usage(blocked, argv):
    done = run(blocked, *argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, USAGE, "")


def test_a_mistake_is_one_line_on_stderr(blocked):
    done = run(blocked, "--model=PruneRc")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "1 problem:\n  - model=PruneRc is unknown; did you mean 'PruneRec'?\n"


def test_all_mistakes_come_at_once(blocked):
    done = run(blocked, "word", "--steps.2.heads=7", "--epohcs=3", "--config_files=no.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "4 problems:",
        "  - unexpected argument 'word'; arguments look like --key=value",
        "  - --config_files: no.yaml is not a file",
        "  - epohcs is not a known key; did you mean 'epochs'?",
        "  - steps.2.heads=7 is more than the model's 4",
    ]


def test_what_is_right_goes_on_to_the_heavy_part(blocked):
    done = run(blocked)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: imported ")
