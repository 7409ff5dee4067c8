"""`python baselines/compare.py`: every system, every seed, one table."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recbole_prunerec.arguments import parse
from recbole_prunerec.errors import UserError, problems_of
from recbole_prunerec.settings import Settings
from recbole_prunerec.study.runs import FINETUNED, Common, Job, Run, carry_out, job_of, missing_data
from recbole_prunerec.study.systems import SYSTEMS, TEACHER, System, chosen

FIRST_SEED = 2020
OURS = ("systems", "seeds", "tuned", "out", "page", "dry_run")
SHOWN = 3  # systems in a message
DECIDED = ("model", "compare", "teacher", "fresh", "yes", "show_progress")  # each system's own, or for single runs

USAGE = """python baselines/compare.py [--dataset=ml-100k] [--key=value ...]

  --systems=all               or short, recommenders, criteria, or names with commas between them
  --seeds=3                   so many, from --seed on (2020)
  --tuned=<folder>            settings that baselines/tune.py found, by the systems' names
  --out=<folder>              for the tables and the page (saved/compare-<dataset>)
  --page=<file.md>            the same as one page in Markdown, with plots and numbers beside it
  --dry_run                   say what it takes, and stop
  --preset=tiny --device=cpu  and whatever run_recbole.py takes, for all runs

Finished runs are kept: the same command goes on where it was cut. docs/compare.md says what each column is.
"""

logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """What is to be compared, judged."""

    systems: Mapping[str, System]  # the teacher first, where it is needed
    seeds: list[int]
    common: Common
    out: Path
    page: Path | None
    dry_run: bool
    jobs: dict[tuple[str, int], Job]  # as they are before there is a teacher, seed by seed

    @property
    def settings(self) -> Settings:
        """Of any of the runs."""
        return next(iter(self.jobs.values())).settings


def judged(argv: Sequence[str]) -> Question:
    """The question that the command line asks. Raises one `UserError` with every problem, before anything heavy is imported."""
    problems: list[str] = []
    given = parse(argv, problems)
    ours = {key: given.pop(key) for key in OURS if key in given}
    problems += [f"--{key}={given.pop(key)}: each system has its own, or it is for a single run; leave it out" for key in DECIDED if key in given]
    systems = with_teacher(_systems(ours.get("systems", "all"), problems))
    seeds = _seeds(ours.get("seeds", "3"), given.pop("seed", str(FIRST_SEED)), problems)
    tuned = Path(ours["tuned"]) if "tuned" in ours else None
    if tuned is not None and not tuned.is_dir():
        problems.append(f"tuned={tuned} is not a folder; expected one that baselines/tune.py has written")
    if ours.get("dry_run", "true") != "true":
        problems.append(f"dry_run={ours['dry_run']}: expected the bare --dry_run")
    common = Common(given, tuple(given.pop("config_files", "").split()), tuned)
    jobs = jobs_of(systems, seeds, common, problems)
    problems += missing_data(job.settings for job in jobs.values())
    if problems:
        raise UserError("\n".join(problems))
    settings = next(iter(jobs.values())).settings
    out = Path(ours.get("out", Path(settings.checkpoint_dir) / f"compare-{settings.dataset}"))
    return Question(systems, seeds, common, out, Path(ours["page"]) if "page" in ours else None, "dry_run" in ours, jobs)


def _systems(text: str, problems: list[str]) -> dict[str, System]:
    try:
        return {name: SYSTEMS[name] for name in chosen(text)}
    except UserError as error:
        problems += str(error).splitlines()
        return {}


def _seeds(count: str, first: str, problems: list[str]) -> list[int]:
    wrong = [
        f"{key}={text}: expected a whole number, at least {least}"
        for key, text, least in (("seeds", count, 1), ("seed", first, 0))
        if not text.isdecimal() or int(text) < least
    ]
    problems += wrong
    return [FIRST_SEED] if wrong else [int(first) + number for number in range(int(count))]


def jobs_of(systems: Mapping[str, System], seeds: Sequence[int], common: Common, problems: list[str]) -> dict[tuple[str, int], Job]:
    """The run of every system and seed, as long as there is no teacher. What is wrong with some systems alone names them."""
    jobs: dict[tuple[str, int], Job] = {}
    wrong: dict[str, list[str]] = {}
    for name in systems:
        for seed in seeds:
            for problem in problems_of(lambda name=name, seed=seed: jobs.update({(name, seed): job_of(name, systems[name], common, seed)})):  # type: ignore[misc]
                wrong.setdefault(problem, []).append(name)
            if name in [known for names in wrong.values() for known in names]:
                break  # other seeds have the same problems
    problems += [problem if len(names) == len(systems) else f"{problem} ({_some(names)})" for problem, names in wrong.items()]
    return {(name, seed): jobs[name, seed] for seed in seeds for name in systems if (name, seed) in jobs}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} others" if len(names) > SHOWN else "")


def with_teacher(systems: Mapping[str, System]) -> dict[str, System]:
    """The systems, and first the one that makes the model that others of them start from."""
    needed = any(system.needs_teacher for system in systems.values())
    return {TEACHER: SYSTEMS[TEACHER], **systems} if needed else dict(systems)


def compare(argv: Sequence[str], script: Path) -> str:
    """Run what `argv` asks for and is not finished, by `script`, and write the tables. Returns what is printed."""
    question = judged(argv)
    from recbole_prunerec.quick_start import start_log  # takes seconds to import, as all below; mistakes are answered before
    from recbole_prunerec.study.ahead import told_ahead
    from recbole_prunerec.study.gathered import gather
    from recbole_prunerec.study.output import write

    start_log(None)
    expected = expected_seconds(question)
    if question.dry_run:
        return f"{told_ahead(expected)}\nA dry run: nothing was run or written.\n"
    logger.info("%s", told_ahead(expected))
    runs = carry_out_all(question, expected, script)
    if not any(run.folder for run in runs):
        raise UserError("\n".join(f"{run.system}, seed {run.seed}: {run.failure}" for run in runs))
    return write(gather(runs, SYSTEMS, shlex.join(["python", "baselines/compare.py", *argv])), question.out, question.page)


def expected_seconds(question: Question) -> list[float]:
    """What each of the jobs takes at least; two rows of one run take it once."""
    from recbole_prunerec.study.ahead import Ahead

    ahead = Ahead(list(question.jobs.values()))
    first = {job.path: key for key, job in reversed(question.jobs.items())}
    return [ahead.seconds(job, question.systems[key[0]].needs_teacher) if first[job.path] == key else 0.0 for key, job in question.jobs.items()]


def carry_out_all(question: Question, expected: Sequence[float], script: Path) -> list[Run]:
    """What became of every run, a line in the log each. `expected` are their seconds, from which follows what is left."""
    from recbole_prunerec.estimate import time_left

    runs: dict[tuple[str, int], Run] = {}
    took: list[float | None] = []
    for number, (name, seed) in enumerate(question.jobs):
        run = runs[name, seed] = _carried_out(name, seed, question, runs, script)
        took.append(run.seconds)
        said = f"failed: {run.failure}" if run.failure else run.folder if run.seconds is not None else f"{run.folder}, as it was"
        logger.info("%d of %d, %s, seed %d: %s%s", number + 1, len(question.jobs), name, seed, said, time_left(expected, took, number + 1))
    return list(runs.values())


def _carried_out(name: str, seed: int, question: Question, runs: Mapping[tuple[str, int], Run], script: Path) -> Run:
    job, system = question.jobs[name, seed], question.systems[name]
    if system.needs_teacher:
        made = runs[TEACHER, seed]
        if made.folder is None:
            return Run(system=name, seed=seed, command=job.typed, failure=f"{TEACHER}, from whose model it starts, failed")
        try:
            job = job_of(name, system, question.common, seed, Path(made.folder) / FINETUNED)
        except UserError as error:
            return Run(system=name, seed=seed, command=job.typed, failure="; ".join(str(error).splitlines()))
    return carry_out(job, name, script, question.out / "logs" / f"{name}-{seed}.log")
