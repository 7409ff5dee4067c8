"""Where training goes on from when it was cut: transformers' checkpoints of one step, each whole, hashed and listed in the run's manifest.

Of several processes each writes the state of its random numbers, and process 0 all else.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_model
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from recbole_prunerec.distributed import agreed, by_first, rank, told
from recbole_prunerec.errors import UserError
from recbole_prunerec.run_folder import WORK, RunFolder
from recbole_prunerec.storage import read_json, write_json

PROGRESS = "progress.json"


class Progress(BaseModel):
    """progress.json of a checkpoint: the best validation loss so far and where its weights are."""

    model_config = ConfigDict(extra="forbid")

    step: int = 0  # optimiser steps done
    best_step: int = 0  # the checkpoint with the best weights; 0 before the first validation
    best_loss: float | None = None
    worse: int = 0  # evaluations in a row that were no better
    stopped: bool = False


class Checkpoints(TrainerCallback):
    """Saves after each validation and every `minutes`, keeps the newest checkpoint and the best, and stops early.

    Training stops once more than `stopping_step` validations in a row were no better. `latest` is the checkpoint to go on from, or None.
    """

    def __init__(self, folder: RunFolder, name: str, minutes: float, stopping_step: int) -> None:
        self._folder, self._seconds, self._stopping_step = folder, 60 * minutes, stopping_step
        self.path = folder.path / WORK / name
        step = int(told(str(self._newest() if rank() == 0 else 0)))
        self.latest = self._checkpoint(step) if step else None
        self.progress = read_json(self.latest / PROGRESS, Progress) if self.latest else Progress()

    def _newest(self) -> int:
        """The step of the newest checkpoint whose best weights are there, too; 0 where there is none."""
        found = [read_json(path / PROGRESS, Progress) for path in self.path.glob("checkpoint-*")]
        return max((one.step for one in found if not one.best_step or self._checkpoint(one.best_step).is_dir()), default=0)

    def _checkpoint(self, step: int) -> Path:
        return self.path / f"checkpoint-{step}"

    def load_best(self, model: PreTrainedModel) -> None:
        """Put the best weights into `model`."""
        load_model(model, self._checkpoint(self.progress.best_step) / "model.safetensors", device=str(model.device))

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves when it is time; not where an epoch ends, since that is saved after its validation."""
        steps = state.max_steps // state.num_train_epochs
        control.should_save |= state.global_step % steps > 0 and agreed(lambda: time.monotonic() - self._saved > self._seconds)

    def on_evaluate(self, args: TrainingArguments, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Notes whether the weights at hand are the best so far, and has them saved."""
        loss, progress = (metrics or {})["eval_loss"], self.progress
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_step, progress.best_loss, progress.worse = state.global_step, loss, 0
        else:
            progress.worse += 1
            progress.stopped = progress.worse > self._stopping_step
            control.should_training_stop |= progress.stopped
        control.should_save = True

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the new checkpoint count and removes those that are neither the newest nor the best. Raises `UserError` for weights not finite."""
        if not all(torch.isfinite(parameter).all() for parameter in kwargs["model"].parameters()):
            raise UserError(f"the weights are not finite after step {state.global_step}; choose a lower learning_rate or precision=float32")
        self.progress.step = state.global_step
        by_first(partial(self._keep, self._checkpoint(state.global_step)))
        self._saved = time.monotonic()

    def _keep(self, path: Path) -> None:
        (path / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
        write_json(path / PROGRESS, self.progress)
        kept = {path, self._checkpoint(self.progress.best_step)}
        self._folder.adopt(path)
        self._folder.drop(older for older in self.path.glob("checkpoint-*") if older not in kept)
