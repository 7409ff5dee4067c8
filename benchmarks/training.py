"""A training step: how fast and in how much memory, against transformers' Trainer with full logits and a live teacher.
`python benchmarks/training.py --help`

docs/benchmarks.md says what is measured and how, and has the tables, which `--write` makes anew together with results/training.json.
"""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from material import SMOLLM2, Subject, catalogue_of, load_samples, load_subject
from measuring import held
from plain_training import PlainTrainer
from reporting import MEBIBYTE, Figure, command_line, count, publish
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import answer_count
from recbole_prunerec.backbone.load import load_backbone
from recbole_prunerec.backbone.softmax import Vocabulary, softmax_of
from recbole_prunerec.data.samples import Part, Samples
from recbole_prunerec.dry_run import MOST_ROWS, measured_rate
from recbole_prunerec.estimate import activation_bytes, loss_bytes
from recbole_prunerec.exits import guarded
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.prune.vocabulary import kept_tokens, trimmed_tokenizer
from recbole_prunerec.report.cost import Stopwatch
from recbole_prunerec.restore.teacher_cache import TeacherCache
from recbole_prunerec.restore.train import Distillation, Optimisation, answer_trainer, micro_batch_tokens, training_arguments, use_bfloat16
from recbole_prunerec.shipped import properties
from recbole_prunerec.text.packing import EpochBatches, PackedRows, SampleRows, collate, micro_batches
from recbole_prunerec.text.prompts import Prompts

# The student after each pruning step of SmolLM2-135M, down to 5.0 % of its non-embedding parameters; of another shape's by the same shares.
STEPS = {
    "width": {"hidden_size": 1 / 2, "num_attention_heads": 1 / 3, "num_key_value_heads": 1 / 3},
    "mlp": {"intermediate_size": 1 / 3},
    "depth": {"num_hidden_layers": 3 / 10},
}
SOFTMAXES = ("catalogue", "vocabulary")
KD_WEIGHT = 0.8
HOW = Optimisation(
    epochs=1, batch_size=24, learning_rate=3e-4, schedule="linear", warmup_steps=0, weight_decay=0.01, betas=(0.9, 0.999), clip=1.0,
    stopping_step=0, precision="auto", seed=2020,
)  # fmt: skip
STRIDE, LONGEST_HISTORY = 11, 10
TINY_BATCH, TINY_STEPS = 64, 8
QWEN2 = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


class Few:
    """Some of a training set's rows."""

    def __init__(self, rows: SampleRows | PackedRows, keys: Sequence[tuple[int, ...]]) -> None:
        self._rows, self._keys, self.size = rows, list(keys), rows.size

    def keys(self, epoch: int) -> list[tuple[int, ...]]:
        """The same in every epoch."""
        return self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, key: Any) -> Any:
        return self._rows[key]


@dataclass(frozen=True)
class Work:
    """What all parts look at. `steps` are timed, after one that is not."""

    subject: Subject
    samples: Samples
    how: Optimisation
    steps: int
    rounds: int
    folder: Path

    @property
    def bfloat16(self) -> bool:
        """Whether the backbone trains in it; as a teacher it runs in it, too."""
        return use_bfloat16(self.how.precision, self.subject.model.num_parameters(), self.subject.model.device)

    def rows(self, packed: bool) -> Few:
        """As many rows as all steps take."""
        prompts, few = self.subject.prompts, (self.steps + 1) * self.how.batch_size
        train = self.samples.train
        rows = PackedRows(prompts, train, LONGEST_HISTORY + 1, STRIDE, self.how.seed) if packed else SampleRows(prompts, train)
        keys = rows.keys(0)
        return Few(rows, [keys[place] for place in np.random.default_rng(self.how.seed).permutation(len(keys))[:few]])

    @property
    def valid(self) -> SampleRows:
        """One row: validation ends an epoch, and is not timed."""
        part: Part = self.samples.valid.take(np.arange(1))
        return SampleRows(self.subject.prompts, part)


class _Clock(TrainerCallback):
    """Seconds of each step, what is done before it included."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self._last = now


@dataclass(frozen=True)
class Timed:
    """What a step took."""

    seconds: float
    bytes: int  # the most above what was held before: gradients, AdamW's moments, activations
    loss: float  # of the first step


def timed(trainer: Trainer) -> Timed:
    """Train over all rows once; the first step is not timed."""
    clock = _Clock()
    trainer.add_callback(clock)
    with held() as peak:
        trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return Timed(median(clock.steps[1:] or clock.steps), peak.bytes, loss)


def ours(
    work: Work, model: PreTrainedModel, rows: Few, softmax: str, teacher: PreTrainedModel | None = None, cache: TeacherCache | None = None
) -> Timed:
    """A step of `model`, which does not change."""
    how = work.how
    distillation = None if teacher is None else Distillation(teacher, KD_WEIGHT, "forward_kl", 1.0, cache)
    batches = EpochBatches(rows, how.batch_size, 1, how.seed)
    over = softmax_of(softmax, work.subject.prompts.trie, model.config.vocab_size)
    return timed(answer_trainer(copy.deepcopy(model), batches, work.valid, work.subject.prompts.pad_id, how, str(work.folder), over, distillation))


def plain(work: Work, model: PreTrainedModel, rows: Few, softmax: str, teacher: PreTrainedModel | None = None, ours_order: bool = False) -> Timed:
    """A step of the reference; its batches are drawn at random, as the trainer would, unless they are to be ours."""
    how, model = work.how, copy.deepcopy(model)
    keys = rows.keys(0)
    if ours_order:
        keys = [key for batch in EpochBatches(rows, how.batch_size, 1, how.seed) for key in batch]
    arguments = replace(training_arguments(model, how, str(work.folder), len(keys) // how.batch_size), eval_strategy="no")
    trie = work.subject.prompts.trie if softmax == "catalogue" else None
    examples = [rows[key] for key in keys]
    trainer = PlainTrainer(model, arguments, examples, work.subject.prompts.pad_id, trie, teacher, KD_WEIGHT, work.bfloat16)
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    return timed(trainer)


def students(work: Work) -> dict[str, PreTrainedModel]:
    """Random models of the backbone's shape after each pruning step."""
    config, made = work.subject.model.config, {}
    shape = {name: getattr(config, name) for name in SMOLLM2 if hasattr(config, name)}
    for name, shares in STEPS.items():
        shape = {**shape, **{key: max(1, round(shape[key] * share)) for key, share in shares.items()}}
        torch.manual_seed(work.how.seed)
        made[name] = AutoModelForCausalLM.from_config(type(config)(**shape), dtype=torch.float32)
    return made


def cached(work: Work, rows: Few, softmax: str) -> tuple[TeacherCache, float]:
    """The teacher's cache for `rows`, and the seconds that filling it took."""
    teacher, prompts = work.subject.model, work.subject.prompts
    over = softmax_of(softmax, prompts.trie, teacher.config.vocab_size)
    tokens = micro_batch_tokens(work.how.micro_batch_tokens, teacher.device)
    cache = TeacherCache(work.folder, teacher, over, prompts.made_of, prompts.pad_id, tokens, work.bfloat16)
    cache.fill(work.valid, work.valid.keys(0), False)
    with Stopwatch() as watch:
        cache.fill(rows, rows.keys(0), False)
    return cache, watch.seconds


def distillation_steps(work: Work) -> tuple[list[Figure], list[dict[str, Any]]]:
    """A distillation step beside the student's own fine-tuning step and the reference's, after each pruning step, for both softmaxes."""
    rows, teacher, table = work.rows(packed=True), work.subject.model, []
    for softmax in SOFTMAXES:
        cache, filling = cached(work, rows, softmax)
        for name, student in tqdm(students(work).items(), desc=softmax, unit="step"):
            rounds = work.rounds if softmax == "catalogue" else 1
            pairs = [(ours(work, student, rows, softmax), ours(work, student, rows, softmax, teacher, cache)) for _ in range(rounds)]
            usual = plain(work, student, rows, softmax, teacher)
            alone, step = (median(pair[place].seconds for pair in pairs) for place in (0, 1))
            most = max(pair[1].bytes for pair in pairs)
            table.append(
                {
                    "softmax": softmax,
                    "student after": name,
                    "distillation step, s": step,
                    "fine-tuning step, s": alone,
                    "over_sft": median(taught.seconds / own.seconds for own, taught in pairs),
                    "reference, s": usual.seconds,
                    "speedup": usual.seconds / step,
                    "MiB": most / MEBIBYTE,
                    "reference, MiB": usual.bytes / MEBIBYTE,
                    "memory_ratio": most / usual.bytes,
                    "filling the cache, s a batch": filling / (len(rows) / work.how.batch_size),
                }
            )
    of = {(row["softmax"], row["student after"]): row for row in table}
    last = of["catalogue", "depth"]
    figures = [
        Figure("speedup", "distillation, final shape, catalogue: times the reference's samples a second", last["speedup"], least=8),
        Figure("memory_ratio", "its peak memory, as a share of the reference's", last["memory_ratio"], most=1 / 3),
        Figure(
            "over_sft",
            "distillation step, times the student's own fine-tuning step, catalogue, worst step",
            max(of["catalogue", name]["over_sft"] for name in STEPS),
            most=1.15,
        ),
        Figure("speedup_vocabulary", "distillation, final shape, vocabulary: times the reference's", of["vocabulary", "depth"]["speedup"]),
        Figure("over_sft_vocabulary", "vocabulary, worst step: times fine-tuning", max(of["vocabulary", name]["over_sft"] for name in STEPS)),
    ]
    return figures, table


def differences(work: Work) -> list[Figure]:
    """The loss of one step with the same weights and rows, ours with the cache and the reference's, all in float32."""
    exact = replace(work, how=replace(work.how, precision="float32"), steps=0)
    rows, student, worst = exact.rows(packed=True), students(work)["depth"], 0.0
    for softmax in SOFTMAXES:
        cache, _ = cached(exact, rows, softmax)
        mine = ours(exact, student, rows, softmax, work.subject.model, cache)
        worst = max(worst, abs(mine.loss - plain(exact, student, rows, softmax, work.subject.model, ours_order=True).loss))
    return [Figure("max_abs_difference", "largest difference of the first step's loss, float32", worst, "{:.1e}", most=1e-4)]


def finetuning(work: Work) -> list[Figure]:
    """Fine-tuning the backbone, by titles learned a second: one sample a row, and packed, against the reference with one sample a row."""
    samples, packed = work.rows(packed=False), work.rows(packed=True)
    titles = sum(_titles(packed[key]) for key in packed.keys(0)) / len(packed)
    figures = []
    for softmax, short in (("catalogue", ""), ("vocabulary", "_vocabulary")):
        usual = plain(work, work.subject.model, samples, softmax).seconds
        single = ours(work, work.subject.model, samples, softmax).seconds
        together = ours(work, work.subject.model, packed, softmax).seconds
        figures += [
            Figure(f"finetuning{short}", f"fine-tuning, one sample a row, {softmax}: times the reference", usual / single, least=1.3),
            Figure(f"finetuning_packed{short}", f"packed, {softmax}: times the reference, by titles", titles * usual / together, least=4),
        ]
    return [*figures, Figure("titles_a_row", "titles learned from a packed row", titles)]


def _titles(example: Any) -> int:
    """Answers that a row has labelled."""
    labelled = example.labels >= 0
    return int((labelled[1:] & ~labelled[:-1]).sum())


def softmaxes(work: Work) -> list[Figure]:
    """A fine-tuning step of the preset `tiny` under both softmaxes, in turn."""
    catalogue = catalogue_of(work.samples)
    backbone = load_backbone("tiny", properties("backbone", "tiny"), catalogue.distinct, work.how.seed)
    how = replace(work.how, batch_size=TINY_BATCH)
    subject = Subject("tiny", backbone.model, Prompts(backbone.tokenizer, catalogue, "list", 512))
    tiny = replace(work, subject=subject, how=how, steps=TINY_STEPS)
    rows = tiny.rows(packed=True)
    pairs = [[ours(tiny, backbone.model, rows, softmax).seconds for softmax in SOFTMAXES] for _ in range(work.rounds)]
    catalogues, vocabularies = zip(*pairs, strict=True)
    return [
        Figure("tiny_catalogue_seconds", "fine-tuning step of the preset tiny, catalogue, seconds", median(catalogues)),
        Figure("tiny_vocabulary_seconds", "the same, vocabulary, seconds", median(vocabularies)),
    ]


def trimming(work: Work) -> list[Figure]:
    """A packed fine-tuning step of the backbone before and after the step `vocabulary`, in turn, under both softmaxes."""
    subject = work.subject
    kept = kept_tokens(subject.prompts)
    cut = apply(Plan.of("vocabulary", "titles", Sizes.of(subject.model), tokens=kept), subject.model)
    prompts = subject.prompts.with_tokenizer(trimmed_tokenizer(subject.prompts.tokenizer, kept))
    trimmed = replace(work, subject=Subject(f"{subject.name}, trimmed", cut, prompts))
    both = [(each, each.subject.model, each.rows(packed=True)) for each in (work, trimmed)]
    figures = []
    for softmax in SOFTMAXES:
        pairs = [[ours(each, model, rows, softmax) for each, model, rows in both] for _ in range(work.rounds)]
        ratio = median(before.seconds / after.seconds for before, after in pairs)
        memory = median(after.bytes / before.bytes for before, after in pairs)
        figures += [
            Figure(f"trimming_{softmax}", f"vocabulary trimmed, fine-tuning step, {softmax}: times faster", ratio),
            Figure(f"trimming_{softmax}_memory", f"its peak memory, {softmax}, as a share", memory),
        ]
    return [*figures, Figure("tokens_kept", f"tokens kept of {subject.model.config.vocab_size:,}", len(kept), "{:,.0f}")]


def large(work: Work) -> list[Figure]:
    """A fine-tuning step of a random model of Qwen2-0.5B's shape, beside what `--dry_run` would foretell of it."""
    torch.manual_seed(work.how.seed)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**QWEN2), dtype=torch.float32)
    sizes, prompts, rows = Sizes.of(model), work.subject.prompts, replace(work, steps=1).rows(packed=True)
    low = use_bfloat16(work.how.precision, model.num_parameters(), model.device)
    examples = [rows[key] for key in rows.keys(0)[: work.how.batch_size]]
    groups = [collate(group, prompts.pad_id)["labels"] for group in micro_batches(examples, micro_batch_tokens(None, model.device))]
    tokens, answers = sum(len(example.ids) for example in examples), sum(int(answer_count(labels)) for labels in groups)
    work_of_step = 3 * (tokens * sizes.non_embedding_parameters + answers * sizes.vocab * sizes.hidden)
    rate = measured_rate(MOST_ROWS, sizes, model.device, torch.bfloat16 if low else torch.float32)
    parts = Vocabulary(sizes.vocab).parts(groups[0], sizes.hidden)
    foretold = 12 * sizes.total_parameters + activation_bytes(sizes, groups[0].numel(), False) + loss_bytes(parts, sizes, None)
    step = ours(work, model, rows, "vocabulary")
    return [
        Figure("large_seconds", "fine-tuning step of Qwen2-0.5B's shape, vocabulary, seconds", step.seconds),
        Figure("large_seconds_foretold", "foretold, seconds", work_of_step / rate),
        Figure("large_mebibytes", "its memory above the weights, MiB", step.bytes / MEBIBYTE, "{:,.0f}"),
        Figure("large_mebibytes_foretold", "foretold, MiB", foretold / MEBIBYTE, "{:,.0f}"),
    ]


def main(argv: Sequence[str]) -> None:
    """Measure what `argv` asks for and show it."""
    parser = command_line("training", "How fast a training step is, and how much memory it takes.")
    parser.add_argument("--steps", type=count, default=2, help="timed steps of each kind, after one that is not timed (2)")
    parser.add_argument("--rounds", type=count, default=3, help="how often what is compared closely is repeated, in turn (3)")
    parser.add_argument("--batch_size", type=count, default=HOW.batch_size, help=f"rows of a batch ({HOW.batch_size})")
    options = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    logging.getLogger("recbole_prunerec").setLevel(logging.WARNING)
    how = replace(HOW, batch_size=options.batch_size, seed=options.seed)
    with TemporaryDirectory() as folder, Stopwatch() as watch:
        samples = load_samples(options.seed, Path(folder))
        subject = load_subject(options.backbone, catalogue_of(samples), options.seed)
        work = Work(subject, samples, how, options.steps, options.rounds, Path(folder))
        figures, rows = distillation_steps(work)
        for part in (differences, finetuning, softmaxes, trimming, large):
            figures += part(work)
    publish("training", figures, options, argv, watch.seconds, rows)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), "the same command starts again"))
