"""What a run takes, told from shapes and token counts alone: work, and so time; memory; disk. docs/training.md has the formulas in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from torch import Tensor

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.softmax import Part as PartOfLogits
from recbole_prunerec.backbone.softmax import Softmax, softmax_of
from recbole_prunerec.data.samples import Part, Samples, TestRows, choose_rows
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.settings import Finetune, Pruning, Restore, Settings, Step, Vocabulary
from recbole_prunerec.text.packing import Key, PackedRows, Rows, SampleRows, collate
from recbole_prunerec.text.prompts import Prompts

PASSES = 3  # a training step is a forward pass and a backward pass of twice its cost
FLOAT = 4  # bytes
TRAINED = 4 * FLOAT  # bytes a parameter that is trained: weight, gradient, and AdamW's two moments
CHECKPOINT = 3 * FLOAT  # bytes a parameter in a checkpoint: weight and moments
CHECKPOINTS = 3  # the newest and the best are kept, while another is written
SAMPLED = 100  # rows, or users, whose mean tells that of all
# Tensors of a part's logits that live at once at the peak of each loss, the student's and the teacher's logits included; None: cross-entropy alone.
LOGITS: dict[str | None, int] = {
    None: 4,
    "forward_kl": 8,
    "reverse_kl": 8,
    "symmetric_kl": 10,
    "skewed_forward_kl": 11,
    "skewed_reverse_kl": 11,
    "js": 12,
    "total_variation": 8,
}


class Read(NamedTuple):
    """What some rows hold."""

    rows: int
    tokens: int  # without padding
    answers: int  # positions where the softmax has a choice
    logits: int  # that it takes there

    def times(self, rows: int) -> Read:
        """The same for `rows` such rows."""
        return Read(*(count * rows // max(self.rows, 1) for count in self))

    def __add__(self, other: Read) -> Read:  # type: ignore[override]
        return Read(*map(sum, zip(self, other, strict=True)))


class Epoch(NamedTuple):
    """What training reads."""

    train: Read  # in an epoch
    valid: Read  # after it
    distinct: tuple[int, ...]  # training rows of the first epoch, of the first two, ..., each one counted once: packing has others in every epoch


class Tokens(NamedTuple):
    """How much a run reads."""

    epoch: Epoch
    user: int  # tokens that the ranking of one user reads


class Disk(NamedTuple):
    """Bytes of weights."""

    kept: int  # in the steps' folders, when the run is done
    peak: int  # the most at any time, with the checkpoints of the step that is trained


def training_rows(settings: Settings, prompts: Prompts, train: Part, chunkings: int | None = None) -> PackedRows | SampleRows:
    """What an epoch of training reads; packed rows have so many `chunkings`."""
    if settings.packing:
        return PackedRows(prompts, train, settings.titles_in_chunk, settings.packing_stride, settings.seed, chunkings)
    return SampleRows(prompts, train)


def count_tokens(settings: Settings, prompts: Prompts, samples: Samples) -> Tokens:
    """From the means of some rows and users."""
    rows, test = training_rows(settings, prompts, samples.train), samples.test
    valid = SampleRows(prompts, samples.valid.take(choose_rows(len(samples.valid), settings.valid_rows, settings.seed)))
    seen: set[Key] = set()
    distinct = []
    for epoch in range(max((restore.epochs for restore in _restorations(settings)), default=0)):
        seen.update(rows.keys(epoch))
        distinct.append(len(seen))
    asked = [len(prompts.prompt(test.history(row).tolist())) for row in choose_rows(len(test), SAMPLED, 0)]
    answer = sum(map(len, prompts.answers)) // len(prompts.answers)
    return Tokens(
        Epoch(_read(settings, prompts, rows), _read(settings, prompts, valid), tuple(distinct)),
        sum(asked) // len(asked) + settings.ranking.beams * answer,
    )


def _read(settings: Settings, prompts: Prompts, rows: Rows) -> Read:
    """What the rows of an epoch hold, from the mean of some."""
    keys, vocab = rows.keys(0), len(prompts.tokenizer)  # a model may have a few rows more in its output head
    few = [rows[keys[index]] for index in choose_rows(len(keys), SAMPLED, 0)]
    parts = softmax_of(settings.softmax, prompts.trie, vocab).parts(collate(few, prompts.pad_id)["labels"], 1)
    answers, logits = sum(len(part.places) for part in parts), sum(_size(part, vocab) for part in parts)
    return Read(len(few), sum(len(example.ids) for example in few), answers, logits).times(len(keys))


def _size(part: PartOfLogits, vocab: int) -> int:
    """How many logits a part has."""
    return len(part.places) * (vocab if part.tokens is None else part.tokens.shape[-1])


def largest_batch(settings: Settings, prompts: Prompts, train: Part, tokens: int) -> Tensor:
    """Labels of a micro-batch of at most `tokens`, as if all its rows were the one with the longest titles. Shape (row, position)."""
    rows = training_rows(settings, prompts, train)
    keys = rows.keys(0)
    labels = torch.from_numpy(rows[max(keys, key=rows.size)].labels)
    return labels.expand(max(1, min(settings.train_batch_size, len(keys), tokens // len(labels))), -1)


def sizes_by_step(steps: Sequence[Step], sizes: Sizes, shape: Shape, tokens: int | None = None) -> list[Sizes]:
    """The sizes of a backbone of `sizes` and `shape` after each step. `tokens` are those that a vocabulary step leaves; None: it leaves all."""
    found = []
    for step in steps:
        if isinstance(step, Pruning):
            shape, _ = shape.after(step)
        elif isinstance(step, Vocabulary):
            sizes = replace(sizes, vocab=tokens or sizes.vocab)
        found.append(replace(sizes, **{key: value for key, value in asdict(shape).items() if key != "family"}))
    return found


def _restorations(settings: Settings) -> list[Restore]:
    return [settings.restore_of(step) for step in settings.steps if isinstance(step, Pruning)]


def _epochs(settings: Settings, step: Step) -> int:
    """Epochs that a step trains, at most."""
    if isinstance(step, Vocabulary):
        return 0
    return settings.epochs if isinstance(step, Finetune) else settings.restore_of(step).epochs


def _logits(settings: Settings, read: Read, start: Sizes, now: Sizes) -> int:
    """Logits of a model of sizes `now` over what is read, which was counted with the vocabulary of the backbone's, `start`."""
    return read.logits * now.vocab // start.vocab if settings.softmax == "vocabulary" else read.logits


def _taught(settings: Settings, start: Sizes, after: Sequence[Sizes], epoch: Epoch) -> list[tuple[Sizes, Read] | None]:
    """For each step its teacher's sizes and what goes through that, with a cache what has not for an earlier step. None: no teacher."""
    found: list[tuple[Sizes, Read] | None] = []
    before, made_by = start, 0  # the model before the step, and the number of the step that cut it
    kept: dict[int, int] = {}  # training rows in the cache of each teacher, by the number of the step that cut it
    for number, (step, sizes) in enumerate(zip(settings.steps, after, strict=True), 1):
        if not isinstance(step, Pruning):
            if isinstance(step, Vocabulary):  # the teacher loses the same tokens, and what it said is kept under another name
                start, before, kept = replace(start, vocab=sizes.vocab), sizes, {}
            found.append(None)
            continue
        restore = settings.restore_of(step)
        teacher, name = (start, 0) if restore.teacher == "original" else (before, made_by)
        if not restore.epochs:
            found.append(None)
        elif restore.cache:
            already = kept.get(name, 0)
            kept[name] = max(already, epoch.distinct[min(restore.epochs, restore.chunkings or restore.epochs) - 1])
            found.append((teacher, epoch.train.times(kept[name] - already) + epoch.valid.times(0 if already else epoch.valid.rows)))
        else:
            found.append((teacher, epoch.train.times(restore.epochs * epoch.train.rows) + epoch.valid.times(restore.epochs * epoch.valid.rows)))
        before, made_by = sizes, number
    return found


def comes_before_finetune(steps: Sequence[Step], number: int) -> bool:
    """Whether a step is before the fine-tuning, so that its model cannot recommend yet."""
    return any(isinstance(step, Finetune) for step in steps[number:])


def planned_work(
    settings: Settings,
    sizes: Sizes,
    shape: Shape,
    epoch: Epoch,
    tokens_a_user: int,
    rows: Mapping[TestRows, int],
    tokens: int | None = None,
) -> list[float]:
    """Multiply-adds of every step of a backbone of `sizes` and `shape`, those of attention's own products left out.

    A token takes the non-embedding parameters in a forward pass, a logit takes the hidden size; training takes three passes, or four through the
    layers with gradient checkpointing. `rows` are the test rows ranked as "all" and as "few"; ranking a user reads `tokens_a_user` tokens.
    `tokens` are those that a vocabulary step leaves.
    """
    after, work = sizes_by_step(settings.steps, sizes, shape, tokens), []
    train, valid = epoch.train, epoch.valid
    for number, (step, now, taught) in enumerate(zip(settings.steps, after, _taught(settings, sizes, after, epoch), strict=True), 1):
        epochs, ours = _epochs(settings, step), [_logits(settings, read, sizes, now) for read in (train, valid)]
        layers = (PASSES + settings.gradient_checkpointing) * train.tokens + valid.tokens
        amount = epochs * (layers * now.non_embedding_parameters + (PASSES * ours[0] + ours[1]) * now.hidden)
        if taught is not None:
            teacher, read = taught
            amount += read.tokens * teacher.non_embedding_parameters + epochs * sum(ours) * teacher.hidden
        last: TestRows = "all" if number == len(settings.steps) else "few"
        if isinstance(step, Vocabulary):
            ranked = 0 if comes_before_finetune(settings.steps, number) else rows[last]
        else:
            ranked = rows["all"] if isinstance(step, Finetune) else rows["few"] + rows[last]
        work.append(float(amount + ranked * ranking_work(now, tokens_a_user)))
    return work


def ranking_work(sizes: Sizes, tokens: int) -> int:
    """Multiply-adds of ranking one user, which reads so many tokens, with all logits of each."""
    return tokens * (sizes.non_embedding_parameters + sizes.vocab * sizes.hidden)


def serving_bytes(sizes: Sizes, tokens: int) -> int:
    """Bytes of a model that ranks one user, in float32: its weights, and the keys and values of the tokens that are read."""
    return FLOAT * (sizes.total_parameters + 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * tokens)


def _layer(sizes: Sizes) -> int:
    """Floats that a layer keeps of a token for its backward pass.

    Its norms' inputs, what they normalise, and what they give; queries, keys, values, and attention's output; four of the MLP's width.
    """
    heads = sizes.head_dim * (sizes.heads + sizes.kv_heads)
    return 6 * sizes.hidden + (4 if sizes.qk_norm else 2) * heads + 4 * sizes.intermediate


def activation_bytes(sizes: Sizes, tokens: int, checkpointing: bool = False, teacher: Sizes | None = None) -> int:
    """Bytes that the layers hold of a micro-batch in float32 during a training step.

    tokens * ((L + 1) (6 d + 2 k (h + g) + 4 m) + 2 d) floats, one layer being at work, perhaps that of a teacher that runs beside; METHOD's symbols;
    4 k (h + g) where heads have norms. With checkpointing, tokens * (3/2 (6 d + ...) + (L + 2) d).
    """
    layer = _layer(sizes)
    own = sizes.layers * sizes.hidden + layer + layer // 2 if checkpointing else (sizes.layers + 1) * layer
    beside = 0 if teacher is None else max(0, _layer(teacher) - layer)
    return FLOAT * tokens * (own + beside + 2 * sizes.hidden)


def loss_bytes(parts: Sequence[PartOfLogits], sizes: Sizes, loss: str | None, teacher: Sizes | None = None) -> int:
    """Bytes that the loss holds in float32: LOGITS[loss] times the logits of the largest part, and twice the output head's gradient.

    Where positions have their own tokens, these tokens' rows of the output head are gathered, which outweighs the logits.
    """
    head = sizes.vocab * sizes.hidden
    held = head
    before = 2 if len(parts) > 1 else 0  # logits of the part before, and their gradient
    for part in parts:
        logits = _size(part, sizes.vocab)
        if part.tokens is None or part.tokens.dim() == 1:
            held = max(held, (LOGITS[loss] + before) * logits, 2 * logits + (head if part.tokens is None else 0))
        else:
            held = max(held, logits * (LOGITS[loss] + before + 2 * sizes.hidden + max(sizes.hidden, teacher.hidden if teacher else 0)))
    return FLOAT * (head + held)


def training_memory(settings: Settings, start: Sizes, after: Sequence[Sizes], labels: Tensor, softmax: Softmax) -> list[int]:
    """Bytes that each step's training holds at most: the model with gradients and moments, the models beside it, and a micro-batch at work.

    Beside a model that is restored stand the teacher, of sizes `start`, and the model before the cut, where that is another one. `after` are the
    sizes after each step, `labels` (row, position) those of the largest micro-batch.
    """
    found = []
    before, original = start, True  # whether the model before the cut is the teacher itself
    for step, sizes in zip(settings.steps, after, strict=True):
        loss, live, teacher = None, None, None
        epochs, others = _epochs(settings, step), 0
        if isinstance(step, Vocabulary):
            start, before = replace(start, vocab=sizes.vocab), sizes
        if isinstance(step, Pruning):
            restore = settings.restore_of(step)
            loss, teacher = restore.kd_loss, start if restore.teacher == "original" else before
            live = None if restore.cache else teacher
            others = start.total_parameters + (0 if original else before.total_parameters)
            before, original = sizes, False
        held = sizes.total_parameters * (TRAINED if epochs else FLOAT) + others * FLOAT
        if epochs:
            held += activation_bytes(sizes, labels.numel(), settings.gradient_checkpointing, live)
            held += loss_bytes(softmax.parts(labels, max(sizes.hidden, 0 if teacher is None else teacher.hidden)), sizes, loss, teacher)
        found.append(held)
    return found


def disk(settings: Settings, after: Sequence[Sizes]) -> Disk:
    """Bytes of the steps' models in float32, and the most with the checkpoints of the step at work, which go once its folder is whole."""
    kept = peak = 0
    for step, sizes in zip(settings.steps, after, strict=True):
        epochs = _epochs(settings, step)
        kept += FLOAT * sizes.total_parameters
        peak = max(peak, kept + (CHECKPOINTS * CHECKPOINT * sizes.total_parameters if epochs else 0))
    return Disk(kept, peak)


def cache_bytes(settings: Settings, start: Sizes, after: Sequence[Sizes], epoch: Epoch) -> int:
    """Bytes of the teachers' hidden states on the disk, where they are kept: 4 d a position where the softmax has a choice, of each distinct row."""
    taught = [found for found in _taught(settings, start, after, epoch) if found is not None]
    caches = [restore.cache for restore in _restorations(settings) if restore.epochs]
    return sum(FLOAT * teacher.hidden * read.answers for (teacher, read), cache in zip(taught, caches, strict=True) if cache)


def duration(seconds: float) -> str:
    """`40 s`, `30 min` or `5 h`: two digits are as much as an estimate has."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def time_left(work: Sequence[float], seconds: Sequence[float | None], done: int) -> str:
    """`, about 3 min left` after `done` steps, or nothing where no step has been timed. `seconds` are None for steps that were not run."""
    timed = [(amount, took) for amount, took in zip(work, seconds, strict=False) if took is not None and amount]
    if not timed:
        return ""
    rate = sum(took for _, took in timed) / sum(amount for amount, _ in timed)
    return f", about {duration(rate * sum(work[done:]))} left"
