"""The command line as a shell sees it: exit codes, what goes where, and no heavy import for help or a mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hf_folder import CONFIG

from recbole_prunerec.arguments import USAGE

SCRIPT = Path(__file__).parent.parent / "run_recbole.py"


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


def test_a_backbones_files_are_judged_without_heavy_imports(blocked):
    folder, file = blocked / "model", blocked / "model.gguf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    file.write_bytes(b"GGUF")
    done = run(blocked, f"--backbone={folder}", "--epochs=x", "--device=gpu", "--steps=[{do: finetune}, {do: depth, layers: 9}]")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "5 problems:",
        f"  - backbone={folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt); save the model's tokenizer in the same folder",
        f"  - backbone={folder} has no weights (model.safetensors)",
        "  - steps.2.layers=9 is more than the model's 3",
        "  - device=gpu: expected one of auto, cpu, cuda, cuda:<number>",
        "  - epochs='x': expected a whole number",
    ]
    done = run(blocked, f"--backbone={file}")
    assert done.returncode == 2
    assert done.stderr == f"1 problem:\n  - backbone={file}: its model.gguf is cut within its header, after 4 bytes; fetch it again\n"


def test_what_takes_torch_or_the_data_to_see_is_a_users_mistake_too(tmp_path):
    """One process for both, since torch and RecBole take seconds to import."""
    code = (
        "from run_recbole import main\n"
        "import sys, pathlib\n"
        "codes = [main(['--device=cuda:99'])]\n"
        "codes += [pathlib.Path('saved').exists(), main(['--topk=2000', '--ranking.beams=2001', '--preset=quick'])]\n"
        "print(*codes)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    environment.pop("LOCAL_RANK", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout == "2 False 2\n"
    problems = [line for line in done.stderr.splitlines() if line.startswith("  - ") or line.endswith(("problem:", "problems:"))]
    assert problems[0] == "1 problem:" and problems[1].startswith("  - device=cuda:99: there ")
    assert problems[2:] == [
        "2 problems:",
        "  - topk=2000 is more than the 1,349 items that dataset=ml-100k has after filtering; choose at most 1349",
        "  - ranking.beams=2001 is more than the 1,349 items that dataset=ml-100k has after filtering; choose at most 1349",
    ]


def test_what_is_right_goes_on_to_the_heavy_part(blocked):
    done = run(blocked)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: imported ")
