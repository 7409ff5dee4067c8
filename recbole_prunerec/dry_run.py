"""`--dry_run`: the data, the model's shape after each step, and what time, memory and disk the run takes. No weights are made or loaded for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.softmax import softmax_of
from recbole_prunerec.compared.systems import models_of
from recbole_prunerec.errors import UserError
from recbole_prunerec.estimate import (
    PASSES,
    Epoch,
    cache_bytes,
    count_tokens,
    disk,
    duration,
    largest_batch,
    planned_work,
    sizes_by_step,
    training_memory,
)
from recbole_prunerec.loading import Data, load_data, load_prompts
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.prune.vocabulary import vocabulary_after
from recbole_prunerec.report.cost import Stopwatch
from recbole_prunerec.report.results import device_name
from recbole_prunerec.report.shapes import mebibytes, shape_table
from recbole_prunerec.report.tables import si
from recbole_prunerec.restore.train import micro_batch_tokens, use_bfloat16
from recbole_prunerec.settings import Settings
from recbole_prunerec.validation.fit import misfits
from recbole_prunerec.validation.preflight import check_attention, use_device

MOST_ROWS = 4096  # of the products that are timed; more are no faster

TEXT = """{data}

{table}

Time: at least about {time} on {device}, and often several times that:
  {work} planned multiply-adds at {rate} a second, as measured in {seconds:g} seconds of {kind} matrix products. A token takes as many as there are
  non-embedding parameters, a logit as many as the hidden size; an epoch trains on {tokens} tokens, {passes} times, and {logits} logits, 3 times.
  Left out are all but matrix products, those inside attention, importance scores, reading the data{others}.
Memory: at most {memory} while training, beside Python and its libraries: 16 bytes a parameter (weight, gradient, AdamW's two moments), 4 a
  parameter of the teacher and of the model before the cut, and a micro-batch in float32: {batch:,} tokens of 4 bytes times
  {floats}, its loss, and twice the output head.
Disk: {kept} for the steps' folders, 4 bytes a parameter; at most {peak} while training, with three checkpoints of 12 bytes a
  parameter; {cache} for what teachers say, in {folder}: 4 bytes times the hidden size for each of {answers} positions an epoch.
A dry run: nothing was trained or written{but}. The formulas: docs/training.md.
"""
LAYER = "(6 hidden + 2 head width (heads + K/V heads) + 4 MLP)"


def dry_run(settings: Settings) -> str:
    """The report for the screen. Raises `UserError` for what is wrong with data, backbone, or both together."""
    use_device(settings.device)
    check_attention(settings)
    root = Path(settings.checkpoint_dir)
    data = load_data(settings, root, root / "cache")
    if "PruneRec" not in settings.model:
        return f"{_statistics(data)}\n\nA dry run: nothing was trained or written{_but(settings)}. Only what PruneRec takes is told beforehand.\n"
    config, prompts = load_prompts(settings, data, None, weights=False)
    shape = Shape.of_config(config.to_dict())
    problems = misfits(settings, settings.steps, shape)
    if problems:
        raise UserError("\n".join(problems))
    with torch.device("meta"):
        start = Sizes.of(AutoModelForCausalLM.from_config(config))
    tokens = count_tokens(settings, prompts, data.samples)
    left = vocabulary_after(settings.steps, prompts)
    after = sizes_by_step(settings.steps, start, shape, left)
    work = planned_work(settings, start, shape, tokens.epoch, tokens.user, {kind: len(rows) for kind, rows in data.rows.items()}, left)
    device = torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")
    micro_batch = largest_batch(settings, prompts, data.samples.train, micro_batch_tokens(settings.micro_batch_tokens, device)).to(device)
    memory = training_memory(settings, start, after, micro_batch, softmax_of(settings.softmax, prompts.trie, start.vocab, device))
    return _report(settings, data, start, after, work, memory, tokens.epoch, micro_batch.numel(), device)


def measured_rate(rows: int, sizes: Sizes, device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Multiply-adds a second of the products that an MLP of `sizes` does on `rows` tokens, up and down, tried for `seconds`."""
    shapes = (rows, sizes.hidden), (sizes.hidden, sizes.intermediate), (sizes.intermediate, sizes.hidden)
    values, up, down = (torch.ones(shape, device=device, dtype=dtype) for shape in shapes)
    took: list[float] = []
    while len(took) < 3 or sum(took) < seconds:
        with Stopwatch(device) as watch:
            torch.mm(torch.mm(values, up), down)
        took.append(watch.seconds)
    return 2 * rows * sizes.hidden * sizes.intermediate / median(took)


def _statistics(data: Data) -> str:
    counts: Mapping[str, Any] = data.dataset.statistics(data.samples)
    facts = ", ".join(f"{counts[key]:,} {key}" for key in ("users", "items", "interactions"))
    parts = ", ".join(f"{counts[key]:,} {verb}" for key, verb in (("train", "train"), ("valid", "validate"), ("test", "test")))
    ranked = f"{len(data.rows['all']):,} are ranked, {len(data.rows['few']):,} of them between steps"
    return f"{counts['name']}: {facts}; samples: {parts}, of which {ranked}"


def _others(settings: Settings) -> str:
    """The models beside PruneRec whose training is not reckoned."""
    names = [name for name in models_of(settings) if name not in ("Popularity", "PruneRec")]
    return f", and all of {', '.join(names)}" if names else ""


def _but(settings: Settings) -> str:
    """What was written after all."""
    return "" if settings.rules is None else f" but the filtered data, in {Path(settings.checkpoint_dir) / 'cache'}"


def _report(
    settings: Settings,
    data: Data,
    start: Sizes,
    after: Sequence[Sizes],
    work: Sequence[float],
    memory: Sequence[int],
    epoch: Epoch,
    batch: int,
    device: torch.device,
) -> str:
    dtype = torch.bfloat16 if use_bfloat16(settings.precision, start.total_parameters, device) else torch.float32
    seconds = 2.0
    rate = measured_rate(min(batch, MOST_ROWS), start, device, dtype, seconds)
    weights, again = disk(settings, after), settings.gradient_checkpointing
    names = [f"{number} {step.do}" for number, step in enumerate(settings.steps, 1)]
    columns = {"Memory": ["", *map(mebibytes, memory)], "Time": ["", *(duration(amount / rate) for amount in work)]}
    return TEXT.format(
        data=_statistics(data),
        table=shape_table("Step", ["backbone", *names], [start, *after], start, columns),
        time=duration(sum(work) / rate),
        device=device_name(device),
        work=si(sum(work)),
        rate=si(rate),
        seconds=seconds,
        kind=str(dtype).removeprefix("torch."),
        passes=PASSES + again,
        others=_others(settings),
        tokens=si(epoch.train.tokens),
        logits=si(epoch.train.logits),
        memory=mebibytes(max(memory)),
        batch=batch,
        floats=f"(1.5 {LAYER} + (layers + 2) hidden)" if again else f"((layers + 1) {LAYER} + 2 hidden)",
        kept=mebibytes(weights.kept),
        peak=mebibytes(weights.peak),
        cache=mebibytes(cache_bytes(settings, start, after, epoch)),
        folder=Path(settings.checkpoint_dir) / "cache",
        answers=si(epoch.train.answers),
        but=_but(settings),
    )
