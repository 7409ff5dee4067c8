"""How long the rest of the method takes: planned work in multiply-adds, scaled by what the steps so far took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.data.samples import TestRows
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.settings import Finetune, Settings

PASSES = 3  # a training step is a forward pass and a backward pass of twice its cost


def _weights(sizes: Sizes) -> int:
    """Multiply-adds of one token's forward pass."""
    return sizes.non_embedding_parameters + sizes.vocab * sizes.hidden


def planned_work(
    settings: Settings, sizes: Sizes, shape: Shape, tokens_an_epoch: int, tokens_a_user: int, rows: Mapping[TestRows, int]
) -> list[float]:
    """Multiply-adds of every step of a backbone of `sizes` and `shape`.

    `rows` are the test rows ranked as "all" and as "few"; ranking a user reads `tokens_a_user` tokens.
    """
    teacher, work = _weights(sizes), []
    for number, step in enumerate(settings.steps, 1):
        if isinstance(step, Finetune):
            work.append(float(teacher * (PASSES * settings.epochs * tokens_an_epoch + rows["all"] * tokens_a_user)))
            continue
        shape, _ = shape.after(step)
        student = _weights(replace(sizes, **{key: value for key, value in asdict(shape).items() if key != "family"}))
        last = number == len(settings.steps)
        ranked = (rows["few"] + rows["all" if last else "few"]) * tokens_a_user
        work.append(float(settings.restore_of(step).epochs * tokens_an_epoch * (PASSES * student + teacher) + ranked * student))
    return work


def time_left(work: Sequence[float], seconds: Sequence[float | None], done: int) -> str:
    """`, about 3 min left` after `done` steps, or nothing where no step has been timed. `seconds` are None for steps that were not run."""
    timed = [(amount, took) for amount, took in zip(work, seconds, strict=False) if took is not None]
    if not timed:
        return ""
    rate = sum(took for _, took in timed) / sum(amount for amount, _ in timed)
    left = rate * sum(work[done:])
    return f", about {left:.0f} s left" if left < 100 else f", about {left / 60:.0f} min left"
