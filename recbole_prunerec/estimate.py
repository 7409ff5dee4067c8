"""What a run takes, told from shapes and token counts alone: work, and so time; memory; disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.data.samples import Part, Samples, TestRows, choose_rows
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.settings import Finetune, Settings, Step
from recbole_prunerec.text.packing import PackedRows, SampleRows
from recbole_prunerec.text.prompts import Prompts

PASSES = 3  # a training step is a forward pass and a backward pass of twice its cost
FLOAT = 4  # bytes
TRAINED = 4 * FLOAT  # bytes a parameter that is trained: weight, gradient, and AdamW's two moments
CHECKPOINT = 3 * FLOAT  # bytes a parameter in a checkpoint: weight and moments
CHECKPOINTS = 3  # the newest and the best are kept, while another is written
# Tensors of (answer, vocab) that live at once at the peak of each loss, the student's and the teacher's logits included; None: cross-entropy alone.
LOGITS: dict[str | None, int] = {
    None: 4,
    "forward_kl": 8,
    "reverse_kl": 8,
    "symmetric_kl": 10,
    "skewed_forward_kl": 11,
    "skewed_reverse_kl": 12,
    "js": 12,
    "total_variation": 8,
}


class Tokens(NamedTuple):
    """How much a run reads."""

    epoch: int  # tokens of an epoch of training, without padding
    user: int  # tokens that the ranking of one user reads
    batch: int  # tokens of the longest batch of training, padding included
    answers: int  # answer positions in that batch


class Disk(NamedTuple):
    """Bytes of weights."""

    kept: int  # in the steps' folders, when the run is done
    peak: int  # the most at any time, with the checkpoints of the step that is trained


def training_rows(settings: Settings, prompts: Prompts, train: Part) -> PackedRows | SampleRows:
    """What an epoch of training reads."""
    if settings.packing:
        return PackedRows(prompts, train, settings.longest_history, settings.packing_stride, settings.seed)
    return SampleRows(prompts, train)


def count_tokens(settings: Settings, prompts: Prompts, samples: Samples) -> Tokens:
    """An epoch's and a user's tokens from the mean of a hundred rows and users, the longest batch from the row with the longest titles."""
    rows, test = training_rows(settings, prompts, samples.train), samples.test
    keys = rows.keys(0)
    few = [keys[index] for index in choose_rows(len(keys), 100, 0)]
    epoch = len(keys) * sum(len(rows[key].ids) for key in few) // len(few)
    asked = [len(prompts.prompt(test.history(row).tolist())) for row in choose_rows(len(test), 100, 0)]
    answers = [len(answer) for answer in prompts.answers]
    longest = rows[max(keys, key=rows.size)]
    batch = min(settings.train_batch_size, len(keys))
    return Tokens(
        epoch=epoch,
        user=sum(asked) // len(asked) + settings.ranking.beams * sum(answers) // len(answers),
        batch=batch * len(longest.ids),
        answers=batch * int((longest.labels >= 0).sum()),
    )


def sizes_by_step(steps: Sequence[Step], sizes: Sizes, shape: Shape) -> list[Sizes]:
    """The sizes of a backbone of `sizes` and `shape` after each step."""
    found = []
    for step in steps:
        if not isinstance(step, Finetune):
            shape, _ = shape.after(step)
        found.append(replace(sizes, **{key: value for key, value in asdict(shape).items() if key != "family"}))
    return found


def _weights(sizes: Sizes) -> int:
    """Multiply-adds of one token's forward pass, those of attention's own products left out."""
    return sizes.non_embedding_parameters + sizes.vocab * sizes.hidden


def planned_work(
    settings: Settings, sizes: Sizes, shape: Shape, tokens_an_epoch: int, tokens_a_user: int, rows: Mapping[TestRows, int]
) -> list[float]:
    """Multiply-adds of every step of a backbone of `sizes` and `shape`.

    `rows` are the test rows ranked as "all" and as "few"; ranking a user reads `tokens_a_user` tokens.
    """
    teacher, work = _weights(sizes), []
    for number, (step, after) in enumerate(zip(settings.steps, sizes_by_step(settings.steps, sizes, shape), strict=True), 1):
        if isinstance(step, Finetune):
            work.append(float(teacher * (PASSES * settings.epochs * tokens_an_epoch + rows["all"] * tokens_a_user)))
            continue
        student, last = _weights(after), number == len(settings.steps)
        ranked = (rows["few"] + rows["all" if last else "few"]) * tokens_a_user
        work.append(float(settings.restore_of(step).epochs * tokens_an_epoch * (PASSES * student + teacher) + ranked * student))
    return work


def _layer(sizes: Sizes) -> int:
    """Floats that a layer keeps of a token for its backward pass.

    Its norms' inputs, what they normalise, and what they give; queries, keys, values, and attention's output; four of the MLP's width.
    """
    heads = sizes.head_dim * (sizes.heads + sizes.kv_heads)
    return 6 * sizes.hidden + (4 if sizes.qk_norm else 2) * heads + 4 * sizes.intermediate


def activation_bytes(sizes: Sizes, tokens: int, answers: int, loss: str | None, teacher: Sizes | None = None) -> int:
    """Bytes that a training step in float32 holds beside weights, gradients and moments.

    tokens * ((L + 1) (6 d + 2 k (h + g) + 4 m) + 2 d) floats in the model, one layer being at work, perhaps the teacher's; and LOGITS[loss] times
    answers * V floats in the loss. METHOD's symbols; 4 k (h + g) where heads have norms.
    """
    at_work = max(_layer(sizes), 0 if teacher is None else _layer(teacher))
    a_token = sizes.layers * _layer(sizes) + at_work + 2 * sizes.hidden
    return FLOAT * (tokens * a_token + LOGITS[loss] * answers * sizes.vocab)


def training_memory(settings: Settings, start: Sizes, after: Sequence[Sizes], tokens: Tokens) -> list[int]:
    """Bytes that each step's training holds at most: the model with gradients and moments, the models beside it, and activations.

    Beside a model that is restored stand the teacher, of sizes `start`, and the model before the cut, where that is another one. `after` are the
    sizes after each step.
    """
    found = []
    before, original = start, True  # whether the model before the cut is the teacher itself
    for step, sizes in zip(settings.steps, after, strict=True):
        if isinstance(step, Finetune):
            epochs, loss, others = settings.epochs, None, 0
        else:
            restore = settings.restore_of(step)
            epochs, loss = restore.epochs, restore.kd_loss
            others = start.total_parameters + (0 if original else before.total_parameters)
            before, original = sizes, False
        held = sizes.total_parameters * (TRAINED if epochs else FLOAT) + others * FLOAT
        found.append(held + (activation_bytes(sizes, tokens.batch, tokens.answers, loss, start) if epochs else 0))
    return found


def disk(settings: Settings, after: Sequence[Sizes]) -> Disk:
    """Bytes of the steps' models in float32, and the most with the checkpoints of the step at work, which go once its folder is whole."""
    kept = peak = 0
    for step, sizes in zip(settings.steps, after, strict=True):
        epochs = settings.epochs if isinstance(step, Finetune) else settings.restore_of(step).epochs
        kept += FLOAT * sizes.total_parameters
        peak = max(peak, kept + (CHECKPOINTS * CHECKPOINT * sizes.total_parameters if epochs else 0))
    return Disk(kept, peak)


def duration(seconds: float) -> str:
    """`40 s`, `30 min` or `5 h`: two digits are as much as an estimate has."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def time_left(work: Sequence[float], seconds: Sequence[float | None], done: int) -> str:
    """`, about 3 min left` after `done` steps, or nothing where no step has been timed. `seconds` are None for steps that were not run."""
    timed = [(amount, took) for amount, took in zip(work, seconds, strict=False) if took is not None]
    if not timed:
        return ""
    rate = sum(took for _, took in timed) / sum(amount for amount, _ in timed)
    return f", about {duration(rate * sum(work[done:]))} left"
