"""The installation's report: what is there, what is not, and what cannot be imported."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from recbole_prunerec import doctor
from recbole_prunerec.report.results import device_name

ROOT = Path(__file__).parent.parent
TORCH_ALONE = {"torch": doctor.PROBES["torch"], "transformers": "pass", "recbole": "raise SystemExit('no recbole here')"}


def items(report: str) -> dict[str, str]:
    """What is said of each item."""
    return {name.strip(): text for name, text in (line.split("  ", 1) for line in report.splitlines())}


@pytest.fixture(scope="module")
def report() -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "PROBES", TORCH_ALONE)
        return {name: text.strip() for name, text in items(doctor.doctor()).items()}


def test_every_requirement_has_its_line(report):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pinned = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    names = [re.split(r"[<>=;]", line)[0] for line in metadata.requires("recbole-prunerec") or [] if "extra ==" not in line]
    assert {"recbole", "torch", "transformers", "pandas"} <= set(names)
    for name in names:
        version = metadata.version(name)
        tested = version.split("+")[0] == pinned[name.lower()] or name == "thop"  # whose version is written with a dot or a dash
        assert report[name] == (f"{version}, as tested" if tested else f"{version}, not the tested {pinned[name.lower()]}")
    assert {f"[{extra}]" for extra in setup["options.extras_require"]} <= {*report, "[test]"}


def test_imports_and_machine_are_told(report):
    assert (report["import torch"], report["import transformers"], report["import recbole"]) == ("ok", "ok", "FAILS: no recbole here")
    assert report["cpu"] == f"{device_name('cpu')} of {os.cpu_count()} cores"
    assert report["python"].startswith(sys.version.split()[0])
    assert ("yes (avx512_bf16)" in report["bfloat16"]) == torch.cpu._is_avx512_bf16_supported()
    gpus = [name for name in report if name.startswith("gpu ")]
    assert len(gpus) == torch.cuda.device_count() and ("gpu" in report) == (not gpus)


def test_the_real_probes_name_what_a_run_imports():
    for code in doctor.PROBES.values():
        compile(code, "probe", "exec")
    assert "quick_start" in doctor.PROBES["recbole"] and (ROOT / "recbole_prunerec" / "quick_start.py").exists()


def test_it_works_where_nothing_can_be_imported(tmp_path):
    for name in ("torch", "transformers", "numpy", "pandas", "recbole"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('imported {name}')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "recbole_prunerec", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (0, "")
    found = {name: text.strip() for name, text in items(done.stdout).items()}
    assert found["import torch"] == "FAILS: RuntimeError: imported torch"
    assert found["import transformers"] == "FAILS: RuntimeError: imported transformers"
    assert found["import recbole"].startswith("FAILS: RuntimeError: imported ")
    assert found["gpu"] == "not known, since torch cannot be imported" and "bfloat16" not in found
    free = float(found["disk"].split()[0])
    assert found["disk"].endswith(f"GiB free at {tmp_path / 'saved'}") and free == pytest.approx(shutil.disk_usage(tmp_path).free / 2**30, abs=2)


def test_a_crash_and_an_import_without_end_are_told(monkeypatch):
    assert doctor._answer(doctor._start("import os; os._exit(7)")) == ("", "the process ended with 7")
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    endless = doctor._start("import time; time.sleep(60)")
    assert doctor._answer(endless) == ("", "not done in 0.2 s")
    assert endless.wait(10) != 0


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ("2.13.0", ""),
        ("2.13.0+cu130", ""),
        ("2.12.1", "2.12.1, not the tested 2.13.0"),
        ("2.5.0", "2.5.0, NOT SUPPORTED: expected >=2.6 (tested: 2.13.0)"),
        (None, "is MISSING (tested: 2.13.0)"),
    ],
)
def test_versions_are_compared(monkeypatch, installed, expected):
    def version(name):
        assert name == "torch"
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(doctor, "_installed", version)
    assert doctor._version(Requirement("torch>=2.6"), {"torch": "2.13.0"}) == expected


def test_what_is_missing_is_told_with_its_extra(monkeypatch):
    there = {"Torch": "2.13.0", "ruff": "0.1"}
    required = ["Torch>=2.6", "numpy", 'gguf; extra == "gguf"', 'ruff; extra == "test"', 'build; extra == "test"']

    def version(name):
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(doctor.metadata, "requires", lambda name: required)
    monkeypatch.setattr(doctor, "_installed", version)
    monkeypatch.setattr(doctor, "_tested", dict)
    assert dict(doctor._packages()) == {
        "Torch": "2.13.0",
        "numpy": "is MISSING",
        "[gguf]": "gguf is MISSING; to have it: pip install -c constraints.txt -e '.[gguf]'",
        "[test]": "build is MISSING; to have it: pip install -c constraints.txt -e '.[test]'",
    }


def test_without_the_source_tree_nothing_is_called_tested(monkeypatch, tmp_path):
    assert doctor._tested()["torch"] == "2.13.0"
    monkeypatch.setattr(doctor, "CONSTRAINTS", tmp_path / "constraints.txt")
    assert doctor._tested() == {}


def test_gpus_are_listed_with_their_memory():
    facts = {"cpu": "A, 4 threads", "bfloat16": False, "cuda": "13.0", "gpus": [["H100", 80 * 2**30], ["A10", 24 * 2**30]], "gpu_bfloat16": True}
    lines = dict(doctor._machine(json.dumps(facts), None))
    assert (lines["gpu 0"], lines["gpu 1"]) == ("H100, 80 GiB, CUDA 13.0", "A10, 24 GiB, CUDA 13.0")
    assert lines["bfloat16"] == "cpu slow (no avx512_bf16), gpu yes"
    assert dict(doctor._machine(json.dumps({**facts, "gpus": []}), None))["gpu"] == "none is visible (nvidia-smi, CUDA_VISIBLE_DEVICES)"
    assert dict(doctor._machine(json.dumps({**facts, "gpus": [], "cuda": None}), None))["gpu"] == "none: torch is built without CUDA"


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").touch()
    assert doctor._disk("saved") == "folder=saved is a file; choose another folder"
