"""Fine-tuning and restoration: one `transformers.Trainer` whose loss sees answer positions only (METHOD 1 and 5)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedModel, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from recbole_prunerec.backbone.forward import IGNORE, answer_logits
from recbole_prunerec.errors import UserError
from recbole_prunerec.restore.checkpoints import Checkpoints
from recbole_prunerec.restore.losses import restoration_loss
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.text.packing import EpochBatches, PackedRows, SampleRows, collate

logger = logging.getLogger(__name__)

BFLOAT16_FROM = 50_000_000  # parameters from which a CPU with bfloat16 instructions trains faster in it


@dataclass(frozen=True)
class Optimisation:
    """How to train; METHOD 1 gives the paper's values."""

    epochs: int
    batch_size: int  # rows
    learning_rate: float
    schedule: str  # "linear" or "cosine"
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    stopping_step: int  # stop once more evaluations than this in a row were no better
    precision: str  # "auto", "float32" or "bfloat16"
    seed: int
    checkpoint_minutes: float = 10.0


@dataclass(frozen=True)
class Distillation:
    """What restoration adds to the loss: a frozen teacher (METHOD 5)."""

    teacher: PreTrainedModel
    kd_weight: float
    kd_loss: str
    temperature: float


def use_bfloat16(precision: str, parameters: int, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast. "auto": on CUDA, and on a CPU with avx512_bf16 for models above a fixed size."""
    if precision != "auto":
        return precision == "bfloat16"
    return device.type == "cuda" or (parameters > BFLOAT16_FROM and torch.cpu._is_avx512_bf16_supported())


class _Progress(TrainerCallback):
    """A bar with loss and the time that is left."""

    def __init__(self, name: str, shown: bool) -> None:
        self._name, self._shown = name, shown

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self._name, unit="step", disable=not self._shown)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update()

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self._bar.set_postfix({key: f"{value:.3f}" for key, value in (logs or {}).items() if key in ("loss", "eval_loss")})

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


class AnswerTrainer(Trainer):
    """Trains on answer positions: cross-entropy, or distillation and cross-entropy, each a sum divided by the global batch's answer positions."""

    def __init__(
        self, model: PreTrainedModel, args: TrainingArguments, batches: DataLoader, valid: DataLoader, distillation: Distillation | None
    ) -> None:
        self._batches, self._valid, self._distillation = batches, valid, distillation
        self._parts: list[Tensor] = []
        self._student = model
        super().__init__(model=model, args=args, train_dataset=batches.dataset, eval_dataset=valid.dataset)

    def get_train_dataloader(self) -> DataLoader:
        """The batches as given: they are shuffled, sorted by length and seeded already."""
        return self.accelerator.prepare(self._batches)

    def _losses(self, batch: dict[str, Tensor], count: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
        """Total, KD and CE of one batch, each a sum over answer positions divided by `count`."""
        with self.accelerator.autocast():
            student = answer_logits(self._student, batch)
            if self._distillation is None:
                loss = torch.nn.functional.cross_entropy(student.logits.float(), student.targets, reduction="sum") / count
                return loss, torch.zeros_like(loss), loss
            with torch.no_grad():
                teacher = answer_logits(self._distillation.teacher, batch)
        settings = self._distillation
        return restoration_loss(
            student.logits.float(), teacher.logits.float(), student.targets, settings.kd_weight, settings.kd_loss, settings.temperature, count
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One batch, forward and backward. Raises `UserError` that names the batch where its loss is not finite."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            epoch, batch = divmod(self.state.global_step, len(self._batches))
            raise UserError(
                f"the loss of batch {batch + 1} of epoch {epoch + 1} is {float(loss)}, and training would spoil the weights; "
                "choose a lower learning_rate or precision=float32 (the last good checkpoint stays)"
            )
        return loss

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The batch's loss; its parts are kept for the log."""
        count = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"] != IGNORE).sum()
        total, kd, ce = self._losses(inputs, count)
        self._parts.append(torch.stack([kd.detach(), ce.detach()]))
        return (total, None) if return_outputs else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss's parts, averaged over the steps since the last log."""
        if "loss" in logs and self._parts:
            kd, ce = torch.stack(self._parts).mean(0).tolist()
            self._parts.clear()
            logs = {**logs, "ce": ce, **({"kd": kd} if self._distillation else {})}
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The training loss on the validation rows, summed over all their answer positions and divided once."""
        self._student.eval()
        sums, count = torch.zeros(3, dtype=torch.float64), 0
        for batch in self._valid:
            batch = {key: value.to(self.args.device) for key, value in batch.items()}
            sums += torch.stack(self._losses(batch, 1)).double().cpu()
            count += int((batch["labels"] != IGNORE).sum())
        total, kd, ce = (sums / count).tolist()
        if not math.isfinite(total):
            raise UserError(f"the validation loss after step {self.state.global_step} is {total}; choose a lower learning_rate or precision=float32")
        metrics = {f"{metric_key_prefix}_loss": total, f"{metric_key_prefix}_ce": ce}
        if self._distillation:
            metrics[f"{metric_key_prefix}_kd"] = kd
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._student.train()
        return metrics


def train(
    model: PreTrainedModel,
    rows: SampleRows | PackedRows,
    valid: SampleRows,
    pad_id: int,
    how: Optimisation,
    folder: RunFolder,
    name: str,
    distillation: Distillation | None = None,
    show_progress: bool = True,
) -> float | None:
    """Train `model` in place and leave it, in evaluation mode, at the weights of its best validation loss, which is returned.

    Training that was cut goes on from the last checkpoint under `.work/<name>` of the run's folder, and ends with the same weights. Losses, learning
    rate and validation losses go to `tensorboard/<name>`. With 0 epochs the model stays as it is and the loss is None. Raises `UserError` where a
    loss is not finite.
    """
    if how.epochs == 0:
        return None
    if distillation is not None:
        distillation.teacher.eval()
    batches = EpochBatches(rows, how.batch_size, how.epochs, how.seed)
    steps = len(batches) * how.epochs
    checkpoints = Checkpoints(folder, name, how.checkpoint_minutes, how.stopping_step)
    pad: Callable[..., dict[str, Tensor]] = partial(collate, pad_id=pad_id)
    arguments = TrainingArguments(
        output_dir=str(checkpoints.path),
        num_train_epochs=how.epochs,
        per_device_train_batch_size=how.batch_size,
        learning_rate=how.learning_rate,
        lr_scheduler_type=how.schedule,
        warmup_steps=min(how.warmup_steps, steps // 5),
        weight_decay=how.weight_decay,
        adam_beta1=how.betas[0],
        adam_beta2=how.betas[1],
        max_grad_norm=how.clip,
        seed=how.seed,
        bf16=use_bfloat16(how.precision, model.num_parameters(), model.device),
        use_cpu=model.device.type == "cpu",
        eval_strategy="epoch",
        save_strategy="no",  # `Checkpoints` decides
        logging_nan_inf_filter=False,
        logging_steps=max(1, min(10, steps // 10)),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = AnswerTrainer(
        model,
        arguments,
        DataLoader(rows, batch_sampler=batches, collate_fn=pad),
        DataLoader(valid, batch_size=how.batch_size, collate_fn=pad),
        distillation,
    )
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    done = checkpoints.progress.step
    if done:
        logger.info("%s: going on after step %d of %d of its training", name, done, steps)
    if done < steps and not checkpoints.progress.stopped:
        writer = SummaryWriter(str(folder.path / "tensorboard" / name), purge_step=done + 1 if done else None)
        for callback in (_Progress(name, show_progress), TensorBoardCallback(writer), checkpoints):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=str(checkpoints.latest) if checkpoints.latest else None)
    checkpoints.load_best(model)
    model.eval()
    return checkpoints.progress.best_loss
