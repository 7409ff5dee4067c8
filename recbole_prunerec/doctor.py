"""What this installation is made of and what the machine can do, a line an item; also where libraries are missing or cannot be imported."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from recbole_prunerec import __version__
from recbole_prunerec.validation.on_disk import disk_problems

PACKAGE = "recbole-prunerec"
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"  # beside the source; a wheel does not have it
PATIENCE = 300  # seconds for an import
OK = "ok"
# What each library is asked in a process of its own, where it may fail as it likes. The last line that it prints is the answer.
PROBES = {
    "torch": """
import json, torch
from recbole_prunerec.report.results import device_name
gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
print(json.dumps({
    "cpu": device_name("cpu"),
    "bfloat16": torch.cpu._is_avx512_bf16_supported(),
    "cuda": torch.version.cuda,
    "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus],
    "gpu_bfloat16": bool(gpus) and torch.cuda.is_bf16_supported(including_emulation=False),
}))
""",
    "transformers": "from transformers import AutoModelForCausalLM, Trainer",
    "recbole": "from recbole_prunerec import quick_start",
}


def doctor() -> str:
    """The whole report. Takes as long as the imports of torch, transformers and RecBole, all at once."""
    probes = {name: _start(code) for name, code in PROBES.items()}
    lines = [("python", _python()), (PACKAGE, f"{__version__}, in {Path(__file__).parent}"), *_packages()]
    answers = {name: _answer(probe) for name, probe in probes.items()}
    lines += [(f"import {name}", OK if error is None else f"FAILS: {error}") for name, (_, error) in answers.items()]
    lines += [*_machine(*answers["torch"]), ("disk", _disk("saved"))]
    width = max(len(name) for name, _ in lines)
    return "".join(f"{name:{width}}  {text}\n" for name, text in lines)


def _python() -> str:
    return f"{platform.python_version()} in {sys.executable}"


def _packages() -> Iterator[tuple[str, str]]:
    """Every package that setup.cfg requires, and a line for each of its extras."""
    try:
        required = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        yield "packages", f"{PACKAGE} is not installed, so that what it requires is not known; run: pip install -c constraints.txt -e ."
        return
    tested, extras = _tested(), dict[str, list[Requirement]]()
    for requirement in required:
        only = re.search(r"extra == \W(\w+)", str(requirement.marker))
        if only:
            extras.setdefault(only[1], []).append(requirement)
        else:
            yield requirement.name, _version(requirement, tested) or _installed(requirement.name) + ", as tested" * bool(tested)
    for extra, requirements in extras.items():
        missing = [f"{requirement.name} {problem}" for requirement in requirements if (problem := _version(requirement, tested))]
        yield f"[{extra}]", ("; ".join(missing) + f"; to have it: pip install -c constraints.txt -e '.[{extra}]'") if missing else OK


def _tested() -> dict[str, str]:
    """Versions that the tests run on, by name; empty where constraints.txt is not there."""
    if not CONSTRAINTS.exists():
        return {}
    lines = (line.partition("==") for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {_plain(name): version.strip() for name, _, version in lines}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _installed(name: str) -> str:
    return metadata.version(name)


def _version(requirement: Requirement, tested: Mapping[str, str]) -> str:
    """What is not as it should be with the installed version of a package; empty where nothing is. Builds, as in 2.13.0+cpu, do not count."""
    wanted = tested.get(_plain(requirement.name))
    try:
        version = _installed(requirement.name)
    except metadata.PackageNotFoundError:
        return "is MISSING" + (f" (tested: {wanted})" if wanted else "")
    if Version(version) not in requirement.specifier:
        return f"{version}, NOT SUPPORTED: expected {requirement.specifier}" + (f" (tested: {wanted})" if wanted else "")
    return f"{version}, not the tested {wanted}" if wanted and Version(version).public != Version(wanted).public else ""


def _start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _answer(probe: subprocess.Popen[str]) -> tuple[str, str | None]:
    """What a probe printed, and why it failed, in a line; None where it did not."""
    try:
        out, err = probe.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        probe.kill()
        return "", f"not done in {PATIENCE} s"
    if probe.returncode:
        return "", (err.strip().splitlines() or [f"the process ended with {probe.returncode}"])[-1]
    return (out.strip().splitlines() or [""])[-1], None


def _machine(answer: str, error: str | None) -> Iterator[tuple[str, str]]:
    """Processor, GPUs, and which of them can do bfloat16, as torch sees them."""
    if error:
        yield "cpu", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        yield "gpu", "not known, since torch cannot be imported"
        return
    facts = json.loads(answer)
    yield "cpu", f"{facts['cpu']} of {os.cpu_count()} cores"
    for number, (name, memory) in enumerate(facts["gpus"]):
        yield f"gpu {number}", f"{name}, {memory / 2**30:.0f} GiB, CUDA {facts['cuda']}"
    if not facts["gpus"]:
        yield "gpu", "none is visible (nvidia-smi, CUDA_VISIBLE_DEVICES)" if facts["cuda"] else "none: torch is built without CUDA"
    yield "bfloat16", f"cpu {'yes (avx512_bf16)' if facts['bfloat16'] else 'slow (no avx512_bf16)'}" + _gpu_bfloat16(facts)


def _gpu_bfloat16(facts: Mapping[str, bool]) -> str:
    return "" if not facts["gpus"] else f", gpu {'yes' if facts['gpu_bfloat16'] else 'no'}"


def _disk(folder: str) -> str:
    """What is free where runs are kept, or why nothing can be written there."""
    problems = disk_problems(folder, 0, "folder")
    if problems:
        return "; ".join(problems)
    path = Path(folder).absolute()
    there = next(above for above in (path, *path.parents) if above.exists())
    return f"{shutil.disk_usage(there).free / 2**30:.1f} GiB free at {path}"
