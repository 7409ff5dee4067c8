"""The whole method, step by step, from a Hugging Face model to smaller ones. Nothing here knows RecBole.

Each step takes a model and leaves a complete Hugging Face folder; a step whose folder exists is not run again, and one that was cut goes on from its
plan and its last checkpoint. A pruning step is: importance -> plan -> surgery -> measure -> restore by distillation -> measure.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_model
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from recbole_prunerec import __version__
from recbole_prunerec.backbone.family import Sizes, family_of, model_hash
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.load import FLASH, Backbone, load_step, redrawn, save_step
from recbole_prunerec.backbone.softmax import Softmax, softmax_of
from recbole_prunerec.backbone.title_tokens import embed, with_tokens
from recbole_prunerec.backbone.weights import UPDATE
from recbole_prunerec.data.samples import Samples, TestRows, choose_rows
from recbole_prunerec.distributed import by_first, first_only, joined, share
from recbole_prunerec.distributed import rank as process
from recbole_prunerec.errors import UserError
from recbole_prunerec.estimate import (
    Epoch,
    cache_bytes,
    comes_before_finetune,
    count_tokens,
    disk,
    planned_work,
    sizes_by_step,
    time_left,
    training_rows,
)
from recbole_prunerec.prune.budget import Shape, shape_problems
from recbole_prunerec.prune.decide import DECISIONS
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.prune.update import read_update, with_update
from recbole_prunerec.prune.vocabulary import kept_tokens, trimmed_tokenizer, vocabulary_after
from recbole_prunerec.ranking.recommender import ranker
from recbole_prunerec.report.card import model_card
from recbole_prunerec.report.cost import PeakMemory
from recbole_prunerec.report.facts import step_facts
from recbole_prunerec.report.measure import measure
from recbole_prunerec.report.results import Measured
from recbole_prunerec.restore.teacher_cache import TeacherCache
from recbole_prunerec.restore.train import Distillation, Optimisation, micro_batch_tokens, train, use_bfloat16
from recbole_prunerec.restore.tutor import ItemProbabilities, Tutor
from recbole_prunerec.run_folder import WORK, RunFolder
from recbole_prunerec.settings import Finetune, Pruning, Restore, Settings, Step, Vocabulary
from recbole_prunerec.storage import hash_of, read_json, write_json, write_text
from recbole_prunerec.text.packing import SampleRows, collate, micro_batches
from recbole_prunerec.text.prompts import Prompts, texts_as_tokens
from recbole_prunerec.validation.on_disk import disk_problems

CALIBRATION_TOKENS = 4096  # padded tokens a forward pass while scoring

Measure = Callable[[PreTrainedModel, Prompts, str, TestRows], Measured]

logger = logging.getLogger(__name__)


class StepRecord(BaseModel):
    """metrics.json of a step: what was measured, before and after restoration.

    Fine-tuning and vocabulary have nothing to restore, and before the fine-tuning nothing is measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    name: str
    unrestored: Measured | None
    final: Measured | None
    valid_loss: float | None  # None where nothing was trained
    seconds: float | None = None  # of the whole step, until this was written; None where it was cut and went on
    training_memory_bytes: int | None = None  # the most while it trained (report/cost.py says what is counted); None where nothing was
    sizes: Sizes


@dataclass
class Method:
    """One run of the method: what every step needs. `run()` gives a record for each step."""

    settings: Settings
    backbone: Backbone
    prompts: Prompts
    samples: Samples
    folder: RunFolder
    measure: Measure
    test_rows: Mapping[TestRows, int]  # how many rows `measure` ranks; for the estimate of what is left
    cache: Path  # where a teacher's hidden states are kept, for other runs, too
    tutor: ItemProbabilities | None = None  # what fine-tuning learns from beside the titles

    def __post_init__(self) -> None:
        self.original = Sizes.of(self.backbone.model)

    def run(self) -> list[StepRecord]:
        """Run every step that is not complete, in order, and give the record of each."""
        model, records = self.backbone.model, []
        tokens, shape = count_tokens(self.settings, self.prompts, self.samples), Shape.of_config(model.config.to_dict())
        left = vocabulary_after(self.settings.steps, self.prompts)
        work = planned_work(self.settings, self.original, shape, tokens.epoch, tokens.user, self.test_rows, left)
        took: list[float | None] = []
        teacher = model
        if self.settings.teacher is not None:
            records.append(self._given_teacher(model))
        steps = list(enumerate(self.settings.steps, 1))
        whole = next((number - 1 for number, step in steps if not self.folder.is_complete(number, step.do)), len(steps))
        if not whole:
            self._check_room(sizes_by_step(self.settings.steps, self.original, shape, left), tokens.epoch)
        for number, step in steps:
            path, started = self.folder.step_path(number, step.do), time.monotonic()
            if number <= whole:
                logger.info("step %d, %s: complete in %s", number, step.do, path)
                if isinstance(step, Finetune):  # into the backbone, so that a run that goes on needs no more memory than one that was not cut
                    load_model(model, path / "model.safetensors", device=str(model.device))
                elif isinstance(step, Vocabulary):
                    model, teacher = self._without(read_json(path / "plan.json", Plan).tokens, teacher, teacher)
                if number == whole < len(steps) and any(isinstance(cut, Pruning) for _, cut in steps[:number]):
                    model = load_step(path, model.config._attn_implementation).to(model.device)  # type: ignore[arg-type]  # its decorator hides self
                took.append(None)
            else:
                logger.info("step %d of %d, %s%s", number, len(steps), step.do, time_left(work, took, number - 1))
                later = [f"{after}-{other.do}" for after, other in steps if after > number]
                self.folder.drop(self.folder.path / part / name for name in later for part in ("", WORK))
                set_seed(self.settings.seed + number)
                self._started = None if (self.folder.path / WORK / path.name).exists() else started
                self._peak: int | None = None
                if isinstance(step, Vocabulary):
                    model, teacher = self._trim(number, step, model, teacher)
                else:
                    model = self._finetune(number, step, model) if isinstance(step, Finetune) else self._prune(number, step, model, teacher)
                took.append(time.monotonic() - started)
            if isinstance(step, Finetune):
                teacher = model
            records.append(read_json(path / "metrics.json", StepRecord))
        return records

    @first_only
    def _check_room(self, after: Sequence[Sizes], epoch: Epoch) -> None:
        """Of what the teachers say, beside the steps' folders. Raises `UserError` before anything is trained."""
        states = cache_bytes(self.settings, self.original, after, epoch)
        problems = disk_problems(self.cache, states + disk(self.settings, after).peak)
        if states and problems:
            raise UserError(f"{problems[0]}; restore.cache=false spares {states / 2**20:,.0f} MiB of it, for more time")

    def _given_teacher(self, model: PreTrainedModel) -> StepRecord:
        """Step 0: the fine-tuned model that was given is measured, and nothing else."""
        path = self.folder.step_path(0, "teacher")
        if not self.folder.is_complete(0, "teacher"):
            final = self.measure(model, self.prompts, "0-teacher", "all")
            self._write_record(StepRecord(number=0, name="teacher", unrestored=None, final=final, valid_loss=None, sizes=Sizes.of(model)))
        return read_json(path / "metrics.json", StepRecord)

    @first_only
    def _write_record(self, record: StepRecord) -> None:
        with self.folder.writing(record.number, record.name) as out:
            write_json(out / "metrics.json", record)

    def _trim(self, number: int, step: Vocabulary, model: PreTrainedModel, teacher: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Model and teacher without the tokens that no title needs; with all of them, and a word, where the tokenizer cannot be trimmed."""
        name = f"{number}-{step.do}"
        plan = self.folder.once(f"{WORK}/{name}/plan.json", Plan, lambda: self._decide_tokens(number, model))
        model, teacher = self._without(plan.tokens, model, teacher)
        rows: TestRows = "all" if number == len(self.settings.steps) else "few"
        final = None if comes_before_finetune(self.settings.steps, number) else self.measure(model, self.prompts, name, rows)
        self._save(number, step, model, None, final, None, plan.model_dump(mode="json"))
        return model, teacher

    def _decide_tokens(self, number: int, model: PreTrainedModel) -> Plan:
        sizes = Sizes.of(model)
        try:
            tokens = kept_tokens(self.prompts)
        except UserError as reason:
            logger.warning("steps.%d, vocabulary: %s; all tokens stay", number, reason)
            return Plan.of("vocabulary", "titles", sizes)
        logger.info("steps.%d, vocabulary: %s of %s tokens stay", number, f"{len(tokens):,}", f"{sizes.vocab:,}")
        return Plan.of("vocabulary", "titles", sizes, tokens=tokens)

    def _without(self, tokens: list[int] | None, model: PreTrainedModel, teacher: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Model and teacher with `tokens` alone, so that they speak of the same; from now on all that is read and written is in these."""
        if tokens is None:
            return model, teacher
        both = [model] if model is teacher else [model, teacher]
        cut = [apply(Plan.of("vocabulary", "titles", Sizes.of(each), tokens=tokens), each) for each in both]
        self.backbone = replace(self.backbone, model=cut[-1], tokenizer=trimmed_tokenizer(self.backbone.tokenizer, tokens))
        self.prompts = self.prompts.with_tokenizer(self.backbone.tokenizer)
        self.__dict__.pop("softmax", None)
        return cut[0], cut[-1]

    def _finetune(self, number: int, step: Finetune, model: PreTrainedModel) -> PreTrainedModel:
        settings = self.settings
        tutor = self._tutor(settings.tutor.weight)
        loss = self._train(model, number, step.do, settings.epochs, settings.learning_rate, tutor=tutor)
        final = self.measure(model, self.prompts, f"{number}-{step.do}", "all")
        self._save(number, step, model, None, _noted(final, self._said(tutor, "fine-tuned")), loss)
        return model

    def _tutor(self, weight: float) -> Tutor | None:
        return None if self.tutor is None else Tutor(self.tutor, self.prompts.catalogue, self.prompts.trie, weight)

    def _said(self, tutor: Tutor | None, how: str) -> str | None:
        """What a reader must know of a model that learnt from more than titles and teacher."""
        return None if tutor is None else f"{how} beside {self.settings.tutor.model}, weight {tutor.weight:g}"

    def _prune(self, number: int, step: Pruning, model: PreTrainedModel, teacher: PreTrainedModel) -> PreTrainedModel:
        name = f"{number}-{step.do}"
        plan = self.folder.once(f"{WORK}/{name}/plan.json", Plan, lambda: self._decide(number, step, model))
        restore = self.settings.restore_of(step)
        student = apply(plan, model, read_update(plan, self.folder.path / WORK / name))
        if restore.start == "random":
            student = redrawn(student, self.settings.seed + number)
        unrestored = self.folder.once(
            f"{WORK}/{name}/unrestored.json", Measured, lambda: _noted(self.measure(student, self.prompts, f"{name}-unrestored", "few"), plan.note)
        )
        guide = teacher if restore.teacher == "original" else model
        tutor = self._tutor(restore.tutor_weight) if restore.tutor_weight and restore.epochs else None
        loss = self._restore(student, guide, number, step.do, restore, tutor)
        last = number == len(self.settings.steps)
        measured = _noted(self.measure(student, self.prompts, name, "all" if last else "few"), plan.note)
        final = _noted(measured, self._said(tutor, "restored"))
        self._save(number, step, student, unrestored, final, loss, plan.model_dump(mode="json"))
        return student

    def _decide(self, number: int, step: Pruning, model: PreTrainedModel) -> Plan:
        """What the step keeps; new weights lie beside the plan, and the pictures that show why go to TensorBoard."""
        progress = partial(tqdm, desc="importance", disable=not self.settings.show_progress)
        seed = (self.settings.seed, number)  # steps that draw at random differ from one another
        samples = self.calibration(self.backbone.model.device)
        decision = DECISIONS[step.do](model, samples, self.softmax, step, progress, seed)  # type: ignore[operator]
        by_first(lambda: self._draw(f"{number}-{step.do}", decision.figures))
        if not decision.update:
            return decision.plan
        plan, data = with_update(decision.plan, decision.update)
        self.folder.write_bytes(f"{WORK}/{number}-{step.do}/{UPDATE}", data)
        return plan

    def _draw(self, name: str, figures: Mapping[str, Figure]) -> None:
        with SummaryWriter(str(self.folder.path / "tensorboard" / name)) as writer:
            for label, figure in figures.items():
                writer.add_figure(f"importance/{label}", figure)

    def calibration(self, device: torch.device) -> list[Batch]:
        """This process's share of the seeded calibration samples, one a row, the same for every step; rows of like length come together."""
        rows = SampleRows(self.prompts, self.samples.train)
        chosen = choose_rows(len(rows), self.settings.calibration_samples, self.settings.seed).tolist()
        groups = micro_batches([rows[sample] for sample in share(chosen)], CALIBRATION_TOKENS)
        batches = [collate(examples, self.prompts.pad_id) for examples in groups if examples]
        return [{key: value.to(device) for key, value in batch.items()} for batch in batches]

    @cached_property
    def softmax(self) -> Softmax:
        """What probabilities are normalised over, in training and calibration; ranking has its own."""
        model = self.backbone.model
        return softmax_of(self.settings.softmax, self.prompts.trie, Sizes.of(model).vocab, model.device)

    def _teacher_cache(self, teacher: PreTrainedModel) -> TeacherCache:
        settings, device = self.settings, teacher.device
        bfloat16 = use_bfloat16(settings.precision, teacher.num_parameters(), device)
        tokens = micro_batch_tokens(settings.micro_batch_tokens, device)
        return TeacherCache(self.cache, teacher.eval(), self.softmax, self.prompts.made_of, self.prompts.pad_id, tokens, bfloat16)

    def _restore(
        self, student: PreTrainedModel, teacher: PreTrainedModel, number: int, name: str, restore: Restore, tutor: Tutor | None
    ) -> float | None:
        cache = self._teacher_cache(teacher) if restore.cache and restore.epochs else None
        distillation = Distillation(teacher, restore.kd_weight, restore.kd_loss, restore.temperature, cache)
        learning_rate = restore.learning_rate or self.settings.learning_rate
        return self._train(student, number, name, restore.epochs, learning_rate, distillation, restore.chunkings, tutor)

    def _train(
        self,
        model: PreTrainedModel,
        number: int,
        name: str,
        epochs: int,
        learning_rate: float,
        distillation: Distillation | None = None,
        chunkings: int | None = None,
        tutor: Tutor | None = None,
    ) -> float | None:
        settings = self.settings
        how = Optimisation(
            epochs=epochs,
            batch_size=settings.train_batch_size,
            learning_rate=learning_rate,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            betas=settings.adam_betas,
            clip=settings.clip,
            stopping_step=settings.stopping_step,
            precision=settings.precision,
            seed=settings.seed,
            checkpoint_minutes=settings.checkpoint_minutes,
            micro_batch_tokens=settings.micro_batch_tokens,
            gradient_checkpointing=settings.gradient_checkpointing,
            attn_implementation=FLASH if settings.attn_implementation == FLASH else None,  # all other models attend so anyway
        )
        valid = SampleRows(self.prompts, self.samples.valid.take(choose_rows(len(self.samples.valid), settings.valid_rows, settings.seed)))
        rows, shown = training_rows(settings, self.prompts, self.samples.train, chunkings), settings.show_progress
        with PeakMemory(model.device) as peak:
            loss = train(model, rows, valid, self.prompts.pad_id, how, self.folder, f"{number}-{name}", self.softmax, distillation, shown, tutor)
        self._peak = peak.bytes if epochs else None
        return loss

    @first_only
    def _save(
        self,
        number: int,
        step: Step,
        model: PreTrainedModel,
        unrestored: Measured | None,
        final: Measured | None,
        loss: float | None,
        plan: dict | None = None,
    ) -> None:
        """A complete Hugging Face folder, under a temporary name until it is whole."""
        history = self.samples.test.history(0).tolist()
        sizes = Sizes.of(model)
        with self.folder.writing(number, step.do) as out:
            save_step(out, model, self.backbone.tokenizer, self.prompts.terminators, self.prompts.prompt(history))
            self.prompts.save(out, self.settings.softmax)
            if plan is not None:
                write_json(out / "plan.json", plan)
                if plan["update"] is not None:
                    shutil.copy(self.folder.path / WORK / f"{number}-{step.do}" / UPDATE, out)
            record = StepRecord(
                number=number,
                name=step.do,
                unrestored=unrestored,
                final=final,
                valid_loss=loss,
                seconds=None if self._started is None else time.monotonic() - self._started,
                training_memory_bytes=self._peak,
                sizes=sizes,
            )
            write_json(out / "metrics.json", record)
            before = self.original if plan is None else Sizes(**plan["sizes_before"])
            facts = step_facts(self.settings, number, self.backbone, self.prompts, history, before, sizes, final)
            write_text(out / "README.md", model_card(facts))


def _noted(measured: Measured, note: str | None) -> Measured:
    """What was measured, with what a reader must know of how the model was made."""
    return measured.model_copy(update={"note": "; ".join(filter(None, (note, measured.note))) or None})


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    settings: Settings,
    folder: str | Path = "saved/run",
    cache: str | Path | None = None,
) -> list[StepRecord]:
    """The whole method without RecBole: fine-tune `model`, prune it step by step, restore it after each; `samples` have a catalogue.

    `folder` gets one Hugging Face folder a step, and the same call goes on where it was cut. HR and NDCG are measured
    over the samples that the settings choose. What teachers say is kept in `cache`, for other runs, too; None: in `folder`.
    `model` itself does not change. Raises `UserError` where its family is not known, the steps do
    not fit it, the folder is another run's, or an assistant is to help, which only RecBole can train.

    Of processes that torchrun or accelerate has started each makes the same call, and gives the same records; `model` is on the process's own device.
    """
    if samples.catalogue is None:
        raise UserError("the method reads titles, and the samples have no catalogue; make them with Samples.of(histories, titles)")
    for key, name in (("ranking.assistant", settings.ranking.assistant), ("tutor.model", settings.tutor.model)):
        if name is not None:
            raise UserError(f"{key}={name} needs RecBole, which is not here; leave it out, or use run_recbole.py")
    family_of(model.config)
    problems = shape_problems(settings.steps, Shape.of_config(model.config.to_dict()))
    if problems:
        raise UserError("\n".join(problems))
    catalogue, identity = samples.catalogue, samples_identity(model, tokenizer, samples, settings)
    tokenizer, parts = with_tokens(tokenizer, texts_as_tokens(settings, catalogue))
    prompts = Prompts(tokenizer, catalogue, settings.template, settings.max_prompt_tokens, max_title_tokens=settings.max_title_tokens)
    counts: dict[TestRows, int | None] = {"all": settings.test_rows, "few": settings.step_test_rows}
    ranked = samples.ranked(settings.ranked)
    rows = {kind: choose_rows(len(ranked), count, settings.seed) for kind, count in counts.items()}
    run_folder = RunFolder(folder, identity)

    def rank(model: PreTrainedModel, prompts: Prompts, name: str, kind: TestRows) -> Measured:
        recommender = ranker(model, prompts, settings, samples.valid)
        measured, ranks = measure(recommender, catalogue, ranked, rows[kind], settings.topk, settings.exclude_seen)
        run_folder.write_text(f"ranks/{name}.csv", ranks.to_csv())
        return measured

    backbone = Backbone(copy.deepcopy(model).float(), tokenizer, model.config.name_or_path or "", random=False)
    embed(backbone.model, parts)
    with joined(model.device.type == "cpu"), run_folder.lock():
        if process():
            settings = settings.model_copy(update={"show_progress": False})
        run_folder.check()
        counted = {kind: len(chosen) for kind, chosen in rows.items()}
        return Method(settings, backbone, prompts, samples, run_folder, rank, counted, Path(cache or run_folder.path / "cache")).run()


def samples_identity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Samples, settings: Settings) -> str:
    """A hash of all that a run's figures depend on."""
    words = tokenizer.backend_tokenizer.to_str()
    arrays = [value for part in (samples.train, samples.valid, samples.test) for value in vars(part).values()]
    parts = [(value.shape, hashlib.sha256(np.ascontiguousarray(value, dtype=np.int64).data).hexdigest()) for value in arrays]
    titles = [samples.catalogue.titles, samples.catalogue.written] if samples.catalogue else []
    return hash_of([model_hash(model), words, parts, titles, settings.identity(), __version__])
