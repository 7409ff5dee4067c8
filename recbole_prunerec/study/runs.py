"""The runs of a comparison, each in a process of its own: which command, which folder, and whether it is finished. Nothing heavy is imported."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.evaluate import evaluation
from recbole_prunerec.exits import INTERRUPTED, MISTAKE
from recbole_prunerec.identity import identity_of, run_path, settled
from recbole_prunerec.settings import Finetune, Pruning, Settings, Step
from recbole_prunerec.shipped import recipe
from recbole_prunerec.study.systems import CRITERIA, System, filled
from recbole_prunerec.validation.on_disk import has_data

RESULTS = "results.json"
FINETUNED = "1-finetune"  # in the folder of the teacher's run
QUIET = "--show_progress=false"
REASON = 300  # characters of why a run failed, for a table


class Common(NamedTuple):
    """What all runs of a comparison are given."""

    given: Mapping[str, str]  # arguments by key, as text
    files: tuple[str, ...] = ()  # YAML under the systems' own
    tuned: Path | None = None  # a folder with YAML over them, by the systems' names


class Job(NamedTuple):
    """One run."""

    argv: list[str]  # of run_recbole.py, or of `evaluate` where nothing is trained
    evaluates: bool
    settings: Settings
    note: str | None  # what a reader must know of how it was made

    @property
    def path(self) -> Path:
        """Its folder."""
        settings = settled(self.settings)
        return run_path(settings, identity_of(settings))

    def command(self, script: Path) -> list[str]:
        """What runs it in a process of its own."""
        return [sys.executable, *(["-m", "recbole_prunerec", "evaluate"] if self.evaluates else [str(script)]), *self.argv]

    @property
    def typed(self) -> str:
        """The same as one types it."""
        shipped = f"{files('recbole_prunerec.baselines')}{os.sep}"  # where this was installed; whoever types it stands in a checkout
        argv = [argument.replace(shipped, "baselines/") for argument in self.argv]
        return shlex.join(["python", *(["-m", "recbole_prunerec", "evaluate"] if self.evaluates else ["run_recbole.py"]), *argv])


def missing_data(all_settings: Iterable[Settings]) -> list[str]:
    """What is wrong where a dataset has yet to be fetched, which is for a single run."""
    wanted = dict.fromkeys((settings.dataset, settings.data_path) for settings in all_settings)
    advice = "is not here yet; fetch it first: python run_recbole.py --model=Popularity --dry_run --dataset="
    return [f"dataset={name} {advice}{name}" for name, path in wanted if not has_data(name, path)]


def recipe_file(name: str) -> Path:
    """The YAML of a system, from where one is."""
    path = Path(str(files("recbole_prunerec.baselines") / f"{name}.yaml"))
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path


def arguments_of(name: str, system: System, common: Common, seed: int) -> list[str]:
    """The arguments of a system, but for those that depend on the teacher. What is said of steps is for systems that have the preset's."""
    tuned = common.tuned / f"{name}.yaml" if common.tuned else None
    layers = [*common.files, str(recipe_file(system.recipe)), *([str(tuned)] if tuned and tuned.is_file() else [])]
    passed_over = {*system.ignores, *(argument[2:].partition("=")[0] for argument in system.own)}
    given = [f"--{key}={text}" for key, text in common.given.items() if key not in passed_over and (system.preset_steps or not _of_steps(key))]
    return [f"--config_files={' '.join(layers)}", *system.own, *given, f"--seed={seed}", QUIET]


def _of_steps(key: str) -> bool:
    return key.partition(".")[0] == "steps"


def job_of(name: str, system: System, common: Common, seed: int, teacher: Path | None = None) -> Job:
    """The run of a system and a seed. Raises `UserError` with all mistakes.

    `teacher` is the folder of the seed's fine-tuned model. As long as there is none, the run has a step that makes it: good for judging settings and
    for reckoning what it takes. Where the preset lets tokens go, all that is pruned does, so that sizes can be compared.
    """
    argv = arguments_of(name, system, common, seed)
    if system.taught:
        argv += [f"--teacher={teacher}"] if teacher else [f"--model={system.recipe},PruneRec", "--steps=[{do: finetune}]"]
    settings = load_arguments(argv).settings
    if not system.starts:
        return Job(argv, False, settings, None)
    steps = [_changed(step, system.change) for step in settings.steps if not (teacher and isinstance(step, Finetune)) and _belongs(step, system.only)]
    if not steps:
        ranked = [argument for argument in argv if argument.partition("=")[0] not in ("--backbone", "--revision", "--preset")]
        ranked = [str(teacher), *ranked, f"--preset={settings.preset}"]
        return Job(ranked, True, evaluation(ranked[0], ranked[1:], Path(ranked[0])).settings, None)
    kinds = {step["do"] for step in steps}
    if not system.preset_steps and kinds & set(CRITERIA) and "vocabulary" not in kinds:
        steps = [step for step in recipe(settings.preset).get("steps", []) if step["do"] == "vocabulary"] + steps
    if system.scratch:
        steps = _from_scratch(steps, settings)
    argv = [argument for argument in argv if not _of_steps(argument.removeprefix("--").partition("=")[0])]
    argv += [f"--steps={json.dumps(steps)}", *([f"--teacher={teacher}"] if teacher else [])]
    return Job(argv, False, load_arguments(argv).settings, filled(system, [step["do"] for step in steps]))


def _belongs(step: Step, only: str | None) -> bool:
    return only in (None, step.do) or not isinstance(step, Pruning)


def _changed(step: Step, change: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A step as a command line has it, with what a system changes."""
    return {**step.model_dump(mode="json", exclude_unset=True), **change.get(step.do, {})}


def _from_scratch(steps: list[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """The same cuts, with the epochs of all of them for the last one, which begins with weights drawn anew."""
    cuts = [number for number, step in enumerate(steps) if step["do"] in CRITERIA]
    epochs = sum(settings.restore_of(step).epochs for step in settings.steps if isinstance(step, Pruning))
    for number in cuts:
        changed = {"epochs": epochs, "start": "random"} if number == cuts[-1] else {"epochs": 0}
        steps[number] = {**steps[number], "restore": {**steps[number].get("restore", {}), **changed}}
    return steps


class Run(BaseModel):
    """What became of a job: the folder of its results, or why there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    seed: int
    command: str
    folder: str | None = None
    failure: str | None = None
    seconds: float | None = None  # that it took now; None: it was there, or never began
    note: str | None = None


def carry_out(job: Job, system: str, script: Path, log: Path) -> Run:
    """Run a job, unless it is finished; what it says goes to the file `log`. Raises `KeyboardInterrupt` where it was interrupted."""
    failure, seconds = None, None
    if not (job.path / RESULTS).is_file():
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with open(log, "w", encoding="utf-8") as file:
            code = subprocess.run(job.command(script), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False).returncode
        seconds = time.monotonic() - start
        if code in (INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt
        failure = reason(code, log.read_text(encoding="utf-8", errors="replace")) if code else None
    folder = None if failure else str(job.path)
    return Run(system=system, seed=job.settings.seed, command=job.typed, folder=folder, failure=failure, seconds=seconds, note=job.note)


def reason(code: int, said: str) -> str:
    """Why a process ended with `code` after it `said` something: the problems of a `UserError`, a signal, or the last line."""
    if code < 0:
        killed = signal.Signals(-code).name
        return f"killed by {killed}" + (", as a machine without memory does" if killed == "SIGKILL" else "")
    problems = re.findall(r"^  - (.+)$", said.rpartition("problem")[2], re.MULTILINE) if code == MISTAKE else []
    lines = [line for line in said.splitlines() if line.strip()]
    return "; ".join(problems)[:REASON] or (lines[-1].strip()[:REASON] if lines else f"ended with exit code {code} and no word")
