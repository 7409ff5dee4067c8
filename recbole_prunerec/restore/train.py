"""Fine-tuning and restoration: one `transformers.Trainer` whose loss sees answer positions only (METHOD 1 and 5)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedModel, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from recbole_prunerec.backbone.forward import Batch, answer_count, answer_states, attending_by, headless
from recbole_prunerec.backbone.softmax import Part, Softmax, part_logits, summed_loss
from recbole_prunerec.distributed import rank, share, total, world
from recbole_prunerec.errors import UserError
from recbole_prunerec.restore.checkpoints import Checkpoints
from recbole_prunerec.restore.losses import restoration_loss
from recbole_prunerec.restore.teacher_cache import TeacherCache
from recbole_prunerec.restore.tutor import Tutor
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.text.packing import EpochBatches, EpochLoader, PackedRows, SampleRows, collate, micro_batches
from recbole_prunerec.text.prompts import Example

logger = logging.getLogger(__name__)

BFLOAT16_FROM = 50_000_000  # parameters from which a CPU with bfloat16 instructions trains faster in it
MICRO_BATCH_CPU, MICRO_BATCH_GPU = 4096, 16384  # padded tokens that go through the model at once


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
    micro_batch_tokens: int | None = None  # padded tokens that go through the model at once; None: by the kind of device
    gradient_checkpointing: bool = False  # activations are computed again for the backward pass
    attn_implementation: str | None = None  # how the model that is trained computes attention meanwhile; None: as it does anyway


@dataclass(frozen=True)
class Distillation:
    """What restoration adds to the loss: a frozen teacher (METHOD 5), and where what it says is kept; None: it runs beside the student."""

    teacher: PreTrainedModel
    kd_weight: float
    kd_loss: str
    temperature: float
    cache: TeacherCache | None = None


def use_bfloat16(precision: str, parameters: int, device: torch.device) -> bool:
    """Whether to train under bfloat16 autocast. "auto": on CUDA, and on a CPU with avx512_bf16 for models above a fixed size."""
    if precision != "auto":
        return precision == "bfloat16"
    return device.type == "cuda" or (parameters > BFLOAT16_FROM and torch.cpu._is_avx512_bf16_supported())


def micro_batch_tokens(given: int | None, device: torch.device) -> int:
    """How many padded tokens go through the model at once: those `given`, or as suits the kind of device."""
    return given or (MICRO_BATCH_CPU if device.type == "cpu" else MICRO_BATCH_GPU)


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
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        batches: EpochLoader,
        valid: DataLoader,
        softmax: Softmax,
        distillation: Distillation | None,
        teacher_bfloat16: bool,
        tutor: Tutor | None = None,
    ) -> None:
        self._tutor = tutor
        self._batches, self._valid, self._softmax, self._distillation = batches, valid, softmax, distillation
        self._teacher_bfloat16 = teacher_bfloat16
        self._parts: list[Tensor] = []
        self._student = model
        super().__init__(model=model, args=args, train_dataset=batches.dataset, eval_dataset=valid.dataset)
        self._weight = None
        if distillation is not None:  # in the precision that the student's head runs in
            weight = distillation.teacher.get_output_embeddings().weight.detach()
            self._weight = weight.bfloat16() if args.bf16 else weight

    def get_train_dataloader(self) -> DataLoader:
        """The batches as given: they are shuffled, sorted by length, seeded and shared out already."""
        return self._batches

    def _losses(self, model: torch.nn.Module, batch: Batch, count: Tensor | int) -> Tensor:
        """Total, KD and CE of one micro-batch, each a sum over answer positions divided by `count`. Only the total has a gradient."""
        with self.accelerator.autocast():
            with headless(self._student):
                hidden = model(input_ids=batch["input_ids"], use_cache=False).logits
            hidden = hidden[self._softmax.positions(batch["labels"])]
            parts = self._softmax.parts(batch["labels"], max(hidden.shape[1], 0 if self._weight is None else self._weight.shape[1]))
            return summed_loss(hidden, self._student.get_output_embeddings().weight, parts, self._loss_of(batch, count))

    def _loss_of(self, batch: Batch, count: Tensor | int) -> Callable[[Part, Tensor], Tensor]:
        settings, tutor, softmax = self._distillation, self._tutor, self._softmax
        shares: Any = None
        if tutor is not None:
            shares = softmax.shares(batch["labels"], batch["tutor"])  # type: ignore[attr-defined]  # the catalogue's: without it there is no tutor
        if settings is None:
            if tutor is None:
                return lambda part, logits: _cross_entropy(part, logits, count)
            worth = tutor.weight
            return lambda part, logits: torch.stack(restoration_loss(logits, shares(part), part.targets, worth, "forward_kl", 1.0, count))
        weight: Tensor = self._weight  # type: ignore[assignment]
        if "teacher" in batch:
            states = batch["teacher"]
        else:
            with torch.no_grad(), torch.autocast(weight.device.type, torch.bfloat16, enabled=self._teacher_bfloat16):
                states = answer_states(settings.teacher, batch, self._softmax)
        states = states.to(weight.dtype)

        def loss(part: Part, logits: Tensor) -> Tensor:
            with torch.no_grad():
                guide = part_logits(part, states, weight)
                if tutor is not None:
                    guide = tutor.mixed(guide, shares(part))
            return torch.stack(restoration_loss(logits, guide, part.targets, settings.kd_weight, settings.kd_loss, settings.temperature, count))

        return loss

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One batch, micro-batch by micro-batch, forward and backward. Raises `UserError` that names the batch where its loss is not finite.

        Processes average their gradients, so each one's loss is multiplied by their number.
        """
        model.train()
        batches: Any = self._prepare_inputs(inputs)
        count = total(torch.stack([answer_count(batch["labels"]) for batch in batches]).sum())
        sums = []
        for number, batch in enumerate(batches, 1):
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(model):
                losses = self._losses(model, batch, count) * world()
                self.accelerator.backward(losses[0])
            sums.append(losses.detach())
        losses = torch.stack(sums).sum(0)
        self._parts.append(losses[1:])
        if not torch.isfinite(losses[0]):
            epoch, step = divmod(self.state.global_step, len(self._batches))
            raise UserError(
                f"the loss of batch {step + 1} of epoch {epoch + 1} is {float(losses[0])}, and training would spoil the weights; "
                "choose a lower learning_rate or precision=float32 (the last good checkpoint stays)"
            )
        return losses[0]

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here: the report measures them."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss's parts, averaged over the steps since the last log."""
        if "loss" in logs and self._parts:
            kd, ce = (total(torch.stack(self._parts).mean(0)) / world()).tolist()
            self._parts.clear()
            logs = {**logs, "ce": ce, **({"kd": kd} if self._distillation or self._tutor else {})}
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The training loss on the validation rows, summed over all their answer positions and divided once."""
        self._student.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=self.args.device)
        for batch in self._valid:
            batch = self._prepare_inputs(batch)
            sums[:3] += self._losses(self._student, batch, 1)
            sums[3] += answer_count(batch["labels"])
        *losses, count = total(sums).tolist()
        whole, kd, ce = (loss / count for loss in losses)
        if not math.isfinite(whole):
            raise UserError(f"the validation loss after step {self.state.global_step} is {whole}; choose a lower learning_rate or precision=float32")
        metrics = {f"{metric_key_prefix}_loss": whole, f"{metric_key_prefix}_ce": ce}
        if self._distillation or self._tutor:
            metrics[f"{metric_key_prefix}_kd"] = kd
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._student.train()
        return metrics


def _cross_entropy(part: Part, logits: Tensor, count: Tensor | int) -> Tensor:
    loss = cross_entropy(logits, part.targets, reduction="sum") / count
    return torch.stack([loss, torch.zeros_like(loss), loss.detach()])


class _Fill(TrainerCallback):
    """Has the teacher's cache filled with an epoch's rows before the epoch begins."""

    def __init__(self, cache: TeacherCache, rows: SampleRows | PackedRows, shown: bool) -> None:
        self._cache, self._rows, self._shown = cache, rows, shown

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._cache.fill(self._rows, self._rows.keys(int(state.epoch)), self._shown)


def train(
    model: PreTrainedModel,
    rows: SampleRows | PackedRows,
    valid: SampleRows,
    pad_id: int,
    how: Optimisation,
    folder: RunFolder,
    name: str,
    softmax: Softmax,
    distillation: Distillation | None = None,
    show_progress: bool = True,
    tutor: Tutor | None = None,
) -> float | None:
    """Train `model` in place and leave it, in evaluation mode, at the weights of its best validation loss, which is returned.

    Training that was cut goes on from the last checkpoint under `.work/<name>` of the run's folder, and ends with the same weights. Losses, learning
    rate and validation losses go to `tensorboard/<name>`. With 0 epochs the model stays as it is and the loss is None. Raises `UserError` where a
    loss is not finite.
    """
    if how.epochs == 0:
        return None
    cache = None
    if distillation is not None:
        distillation.teacher.eval()
        cache = distillation.cache
    batches = EpochBatches(rows, how.batch_size, how.epochs, how.seed)
    steps = len(batches) * how.epochs
    checkpoints = Checkpoints(folder, name, how.checkpoint_minutes, how.stopping_step)
    done = checkpoints.progress.step
    if done < steps and not checkpoints.progress.stopped:
        if done:
            logger.info("%s: going on after step %d of %d of its training", name, done, steps)
        if cache is not None:
            cache.announce([(valid, valid.keys(0)), (rows, {key for epoch in range(how.epochs) for key in rows.keys(epoch)})])
            cache.fill(valid, valid.keys(0), show_progress)
        trainer = answer_trainer(model, batches, valid, pad_id, how, str(checkpoints.path), softmax, distillation, tutor)
        callbacks: list[TrainerCallback] = [] if cache is None else [_Fill(cache, rows, show_progress)]
        callbacks.append(_Progress(name, show_progress))
        if rank() == 0:
            writer = SummaryWriter(str(folder.path / "tensorboard" / name), purge_step=done + 1 if done else None)
            callbacks.append(TensorBoardCallback(writer))
        for callback in [*callbacks, checkpoints]:
            trainer.add_callback(callback)
        with attending_by(model, how.attn_implementation):
            trainer.train(resume_from_checkpoint=str(checkpoints.latest) if checkpoints.latest else None)
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)  # whose autocast would stay in the model's call
        vars(model).pop("forward", None)
        if how.gradient_checkpointing:
            getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
            model.disable_input_require_grads()  # a hook of transformers' that ranking in inference mode does not stand
    checkpoints.load_best(model)
    model.eval()
    return checkpoints.progress.best_loss


def answer_trainer(
    model: PreTrainedModel,
    batches: EpochBatches,
    valid: SampleRows,
    pad_id: int,
    how: Optimisation,
    folder: str,
    softmax: Softmax,
    distillation: Distillation | None = None,
    tutor: Tutor | None = None,
) -> AnswerTrainer:
    """transformers' trainer for `model`, which saves nothing by itself; `folder` is for checkpoints that callbacks ask for."""
    device, cache = model.device, None if distillation is None else distillation.cache
    tokens = micro_batch_tokens(how.micro_batch_tokens, device)
    pad = partial(_padded, pad_id=pad_id, cache=cache, tutor=tutor)
    if how.gradient_checkpointing:  # which transformers has renamed
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    caches = model.config.use_cache  # which transformers' trainer overwrites, and saved configs and hashes would show it
    trainer = AnswerTrainer(
        model,
        training_arguments(model, how, folder, len(batches) * how.epochs),
        EpochLoader(batches, lambda examples: [pad(few) for few in micro_batches(examples, tokens)]),
        DataLoader(micro_batches([valid[key] for key in share(valid.keys(0))], tokens), batch_size=None, collate_fn=pad),  # type: ignore[arg-type]
        softmax,
        distillation,
        distillation is not None and use_bfloat16(how.precision, distillation.teacher.num_parameters(), device),
        tutor,
    )
    model.config.use_cache = caches
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    return trainer


def _padded(examples: Sequence[Example], pad_id: int, cache: TeacherCache | None, tutor: Tutor | None) -> Batch:
    """A micro-batch, with what the teacher says where that is kept, and what the tutor does."""
    batch = collate(examples, pad_id)
    said = {} if cache is None else {"teacher": cache.states(examples)}
    return {**batch, **said, **({} if tutor is None else {"tutor": tutor.sums(examples)})}


def training_arguments(model: PreTrainedModel, how: Optimisation, folder: str, steps: int) -> TrainingArguments:
    """What transformers' trainer is told."""
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=how.epochs,
        per_device_train_batch_size=how.batch_size,
        learning_rate=how.learning_rate,
        lr_scheduler_type=how.schedule,
        warmup_steps=min(how.warmup_steps, steps // 5),
        weight_decay=how.weight_decay,
        adam_beta1=how.betas[0],
        adam_beta2=how.betas[1],
        max_grad_norm=how.clip,
        optim="adamw_torch_fused",
        seed=how.seed,
        bf16=use_bfloat16(how.precision, model.num_parameters(), model.device),
        use_cpu=model.device.type == "cpu",
        ddp_find_unused_parameters=False,
        eval_strategy="epoch",
        save_strategy="no",  # `Checkpoints` decides
        logging_nan_inf_filter=False,
        logging_steps=max(1, min(10, steps // 10)),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
