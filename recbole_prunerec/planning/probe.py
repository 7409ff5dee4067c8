"""`plan --probe`: shapes tried out. Each is cut from one fine-tuned teacher, shortly restored, and ranked on validation samples.

A score before restoration mispredicts the order after it, so shapes are compared after. All runs are the pipeline's own, with folders and cache: the
same command goes on where it was cut, and a shape that another plan has tried is not tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import Backbone, load_for
from recbole_prunerec.data.samples import Samples, choose_rows
from recbole_prunerec.dry_run import MOST_ROWS, measured_rate
from recbole_prunerec.errors import UserError
from recbole_prunerec.estimate import cache_bytes, count_tokens, disk, duration, planned_work, sizes_by_step
from recbole_prunerec.pipeline import run, samples_identity
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.report.results import device_name
from recbole_prunerec.report.shapes import mebibytes
from recbole_prunerec.restore.train import use_bfloat16
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.settings import Pruning, Settings, Step, Vocabulary
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.validation.on_disk import disk_problems

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What a probe gave: metrics by RecBole's names, of the teacher and of each shape, and where all of it lies."""

    folder: Path
    teacher: Mapping[str, float]
    shapes: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Probe:
    """Shapes to be tried: `before` are the steps from the backbone to the teacher, `shapes` those from there to each."""

    settings: Settings  # with backbone or teacher
    prompts: Prompts
    parts: Samples
    before: tuple[Step, ...]
    shapes: Sequence[tuple[Pruning, ...]]

    @cached_property
    def samples(self) -> Samples:
        """Training samples, and those of validation in the place of the test's, which are not looked at."""
        return Samples(self.parts.train, self.parts.valid, self.parts.valid, self.prompts.catalogue)

    @property
    def rows(self) -> int:
        """Validation samples that are ranked: as many as a run ranks between steps."""
        return len(choose_rows(len(self.parts.valid), self.settings.step_test_rows, self.settings.seed))

    def _run_of(self, steps: Iterable[Step]) -> Settings:
        """The settings of one run, which ranks its last model; those between, of which nobody asks, on a single sample."""
        return self.settings.model_copy(update={"teacher": None, "steps": tuple(steps), "test_rows": self.rows, "step_test_rows": 1})

    def cost(self, sizes: Sizes, shape: Shape, kept: int | None) -> str:
        """What the probe takes, in words, for a backbone of `sizes` and `shape` of which `kept` tokens stay.

        Raises `UserError` where the disk has too little room.
        """
        trim = [step for step in self.before if isinstance(step, Vocabulary)]
        runs = [self._run_of(self.before), *(self._run_of([*trim, *steps]) for steps in self.shapes)]
        work, needed, states = 0.0, 0, 0
        for number, settings in enumerate(runs):
            tokens, after = count_tokens(settings, self.prompts, self.samples), sizes_by_step(settings.steps, sizes, shape, kept)
            states = max(states, cache_bytes(settings, sizes, after, tokens.epoch))
            shared = number > 1 and settings.restore.cache and settings.restore.teacher == "original"
            epoch = tokens.epoch._replace(distinct=(0,) * len(tokens.epoch.distinct)) if shared else tokens.epoch  # what the teacher says is there
            work += sum(planned_work(settings, sizes, shape, epoch, tokens.user, {"all": self.rows, "few": 1}, kept))
            needed += disk(settings, after).peak
        problems = disk_problems(self.settings.checkpoint_dir, needed + states)
        if problems:
            raise UserError("\n".join(problems))
        device = self._device
        dtype = torch.bfloat16 if use_bfloat16(self.settings.precision, sizes.total_parameters, device) else torch.float32
        time = duration(work / measured_rate(MOST_ROWS, sizes, device, dtype))
        return (
            f"{len(self.shapes)} shapes from one teacher take at least about {time} on {device_name(device)}, and often several times that; "
            f"{mebibytes(needed + states)} of disk in {self.settings.checkpoint_dir}"
        )

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if self.settings.device != "cpu" and torch.cuda.is_available() else "cpu")

    def run(self, fresh: bool) -> Outcome:
        """Try all shapes, or go on with it; `fresh`: from the start."""
        settings, root = self.settings, Path(self.settings.checkpoint_dir)
        start = self._load(*settings.start)
        first = self._run_of(self.before)
        if not self.before:  # the teacher as it was given is measured, and nothing else
            first = first.model_copy(update={"teacher": settings.teacher})
        folder = root / f"plan-{settings.dataset}-{samples_identity(start.model, start.tokenizer, self.samples, first)[:8]}"
        if fresh:
            _clear(folder)
        logger.info("probe: the teacher, in %s", folder)
        *_, record = run(start.model, start.tokenizer, self.samples, first, folder / "teacher", root / "cache")
        teacher = self._load("teacher", str(folder / "teacher" / f"{record.number}-{record.name}")) if self.before else start
        del start
        metrics, found = record.final.metrics if record.final else {}, []
        for number, steps in enumerate(self.shapes, 1):
            name = _name(steps)
            logger.info("probe: shape %d of %d, %s", number, len(self.shapes), name)
            records = run(teacher.model, teacher.tokenizer, self.samples, self._run_of(steps), folder / name, root / "cache")
            found.append(records[-1].final.metrics if records and records[-1].final else metrics)
        return Outcome(folder, metrics, found)

    def _load(self, key: str, name: str) -> Backbone:
        backbone = load_for(self.settings, self.prompts.catalogue, key, name)
        backbone.model.to(self._device)  # type: ignore[arg-type]  # its decorator hides self
        return backbone


def _name(steps: Iterable[Pruning]) -> str:
    """What a shape's folder is called: its steps, each with what it sets, such as width-3-192-group-mlp-608-depth-11."""
    parts = []
    for step in steps:
        given = step.model_dump(exclude_unset=True)
        own = [f"{key}={value}" for key, value in given.pop("restore", {}).items()]
        parts += [given.pop("do"), *map(str, given.values()), *own]
    return "-".join(parts) or "whole"


def _clear(folder: Path) -> None:
    """Remove what a probe has left in its folder."""
    for path in folder.glob("*/"):
        run_folder = RunFolder(path)
        with run_folder.lock():
            run_folder.clear()
