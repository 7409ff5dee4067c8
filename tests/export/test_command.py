"""The command as a shell sees it: mistakes at once and without a heavy import; what is written is whole, and nothing is left of what is not."""

import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from exportable import write_exportable
from hf_folder import write_folder
from served_folder import TOKENIZER
from small_data import write_small
from tiny import qwen2

from recbole_prunerec import evaluate as evaluation
from recbole_prunerec.errors import UserError
from recbole_prunerec.export import command
from recbole_prunerec.export.command import PACKAGES, export
from recbole_prunerec.storage import MANIFEST
from recbole_prunerec.validation import on_disk


def typed(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    line = [sys.executable, "-m", "recbole_prunerec", "export", *argv]
    return subprocess.run(line, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": path})


def served(folder: Path, **changes) -> Path:
    """A folder that is a step's as far as its files tell, written without torch."""
    write_folder(folder, **changes)
    for name in ("catalogue.json", "prompts.json"):
        (folder / name).write_text("{}")
    return folder


def test_mistakes_are_answered_at_once_without_a_heavy_import(blocked):
    served(blocked / "model", attention_bias=True, hidden_act="relu")
    (blocked / "saved").mkdir()
    (blocked / "saved" / MANIFEST).write_text("{}")
    (blocked / "saved" / "a.bin").touch()
    done = typed(blocked, "model", "--to=gguf", "--out=saved/a.bin", "--revision=v2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "4 problems:",
        "  - --out=saved/a.bin exists; remove it, or choose another name",
        "  - --out=saved/a.bin does not end in .gguf, by which such a file is known; add that",
        f"  - --out=saved/a.bin lies in a run's folder ({(blocked / 'saved')}), which would refuse to go on with it; choose a place outside",
        "  - revision=v2 is for models on the hub, and model=model is here; leave it out",
    ]
    done = typed(blocked, "model", "--to=gguf")
    assert [line.removeprefix("  - model=model has ") for line in done.stderr.splitlines()[1:]] == [
        "attention_bias=True, which GGUF has no key for; use --to=onnx",
        "hidden_act=relu, and GGUF takes it to be silu; use --to=onnx",
    ]


@pytest.mark.parametrize(
    ("argv", "problems"),
    [
        (["model"], ["the following arguments are required: --to; see python -m recbole_prunerec export --help"]),
        (["model", "--to=ggfu"], ["--to=ggfu: expected gguf or onnx; did you mean 'gguf'?"]),
        (["model", "--to=onnx", "--dtype=int8"], ["unexpected --dtype=int8; see python -m recbole_prunerec export --help"]),
        (["no/such/model", "--to=onnx"], ["model=no/such/model is not a folder; give the path of one with a Hugging Face model"]),
        (["empty", "--to=onnx"], ["model=empty is a folder without config.json, so it holds no Hugging Face model"]),
        (["gpt", "--to=gguf"], ["model=gpt is of the family gpt2, which is not supported; choose a model of one of the families "]),
        (["plain", "--to=gguf"], ["model=plain has no catalogue.json and no prompts.json, which say what it recommends and how it is asked; "]),
        (["file", "--to=gguf"], ["model=file is a file; give the folder it lies in, "]),
        (["model", "--to=onnx", "--out=file/below"], ["the folder of --out="]),
    ],
)
def test_each_mistake_says_what_to_do(blocked, argv, problems):
    served(blocked / "model")
    served(blocked / "gpt", model_type="gpt2")
    write_folder(blocked / "plain")
    (blocked / "empty").mkdir()
    (blocked / "file").touch()
    done = typed(blocked, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    found = [line.removeprefix("  - ") for line in done.stderr.splitlines()[1:]]
    assert len(found) == len(problems) and all(line.startswith(problem) for line, problem in zip(found, problems, strict=True)), found


def test_a_missing_package_and_a_full_disk_are_told(tmp_path, monkeypatch):
    served(tmp_path / "model")
    monkeypatch.setattr(command, "find_spec", lambda name: None if name in ("gguf", "onnx", "onnxscript") else find_spec(name))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(on_disk.shutil, "disk_usage", lambda path: usage._replace(free=2**10))
    for to, missing in (("gguf", "package gguf"), ("onnx", "packages onnx, onnxscript")):
        with pytest.raises(UserError) as raised:
            export(str(tmp_path / "model"), to, str(tmp_path / "out.gguf"))
        first, second = str(raised.value).splitlines()
        assert first == f"--to={to} needs the {missing}; run: pip install -c constraints.txt -e '.[{to}]'"
        assert re.fullmatch(rf"the folder of --out={tmp_path} has 0 MiB free, and the run needs about 0 MiB; make room, or .*", second)


def test_every_format_is_an_extra_with_its_packages():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    extras = setup["options.extras_require"]
    for to, packages in PACKAGES.items():
        assert sorted(packages) == sorted(extras[to].split()) and set(packages) <= set(extras["test"].split())


def test_the_bytes_are_those_of_the_weights_alone(tmp_path):
    write_exportable(tmp_path, qwen2(0, torch.float32, vocab_size=len(TOKENIZER)))
    assert command._bytes(tmp_path) == 4 * qwen2(0, vocab_size=len(TOKENIZER)).num_parameters()


def test_what_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    write_exportable(tmp_path / "step", qwen2(0, torch.float32, vocab_size=len(TOKENIZER)))

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError, match="No space left"):
        export(str(tmp_path / "step"), "gguf", str(tmp_path / "new" / "a.gguf"))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_gguf_ranks_as_the_folder_that_it_was_made_of(tmp_path):
    """Through `evaluate`, with all its own reading of the file: the same ranks, row by row."""
    pytest.importorskip("gguf")
    write_small(tmp_path / "data")
    write_exportable(tmp_path / "step", qwen2(0, torch.float32, vocab_size=len(TOKENIZER)))
    export(str(tmp_path / "step"), "gguf", str(tmp_path / "a.gguf"))
    asked = [f"--{key}={value}" for key, value in json.loads((tmp_path / "step" / "prompts.json").read_text()).items()]
    ranks = []
    for name in ("step", "a.gguf"):
        saved = tmp_path / f"saved-{name}"
        options = ["--dataset=small", f"--data_path={tmp_path / 'data'}", f"--checkpoint_dir={saved}", "--test_rows=20", "--ranking.beams=8"]
        evaluation.evaluate(str(tmp_path / name), [*options, *asked, "--show_progress=false", "--topk=2,5"])
        (found,) = saved.glob("evaluate-*/ranks/PruneRec.csv")
        ranks.append(pd.read_csv(found))
    assert len(ranks[0]) == 20 and ranks[0]["rank"].nunique() > 3
    pd.testing.assert_frame_equal(*ranks)
