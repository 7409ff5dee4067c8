"""What the paper's figures look at: one dataset and backbone, their models, batches and ranks, and the runs that a figure is made of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.load import load_for
from recbole_prunerec.data.samples import choose_rows
from recbole_prunerec.errors import UserError
from recbole_prunerec.loading import load_data, load_prompts
from recbole_prunerec.pipeline import CALIBRATION_TOKENS
from recbole_prunerec.ranking.recommender import ranker
from recbole_prunerec.report.measure import measure
from recbole_prunerec.report.ranks import Ranks
from recbole_prunerec.study.command import Question, carry_out_all, expected_seconds, jobs_of, with_teacher
from recbole_prunerec.study.runs import FINETUNED, Run
from recbole_prunerec.study.systems import REFERENCE, SYSTEMS, TEACHER, System
from recbole_prunerec.text.packing import SampleRows, collate, micro_batches

SAMPLES = 100  # training samples behind the activations


class Subject:
    """`question` has PruneRec's jobs; further runs are started by `script`. `typed` is the command, for what is written."""

    def __init__(self, question: Question, script: Path, typed: str) -> None:
        self.question, self.script, self.typed = question, script, typed
        self.settings = question.jobs[REFERENCE, question.seeds[0]].settings
        root = Path(self.settings.checkpoint_dir)
        self.data = load_data(self.settings, root, root / "cache")
        config, self.prompts = load_prompts(self.settings, self.data, None)
        self.sizes = Sizes.of_config(config.to_dict(), self.settings.backbone)
        self.metric = str(self.settings.recbole["valid_metric"]).lower()

    def runs(self, systems: Mapping[str, System]) -> list[Run]:
        """What became of the runs of `systems`. Raises `UserError` where one failed: a figure has no room for a gap."""
        systems, problems = with_teacher(systems), list[str]()
        jobs = jobs_of(systems, self.question.seeds, self.question.common, problems)
        if problems:
            raise UserError("\n".join(problems))
        question = self.question._replace(systems=systems, jobs=jobs)
        runs = carry_out_all(question, expected_seconds(question), self.script)
        failed = [f"{run.system}, seed {run.seed}: {run.failure}" for run in runs if run.failure]
        if failed:
            raise UserError("\n".join(failed))
        return runs

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The fine-tuned model of the first seed."""
        (run, *_) = self.runs({TEACHER: SYSTEMS[TEACHER]})
        return self._load("teacher", str(Path(str(run.folder)) / FINETUNED))

    @property
    def backbone(self) -> PreTrainedModel:
        """The model before fine-tuning."""
        return self._load("backbone", self.settings.backbone)

    def _load(self, key: str, name: str) -> PreTrainedModel:
        return load_for(self.settings, self.prompts.catalogue, key, name).model.eval()

    @cached_property
    def batches(self) -> list[Batch]:
        """SAMPLES training samples, one a row."""
        rows = SampleRows(self.prompts, self.data.samples.train)
        chosen = choose_rows(len(rows), SAMPLES, self.settings.seed).tolist()
        return [collate(few, self.prompts.pad_id) for few in micro_batches([rows[row] for row in chosen], CALIBRATION_TOKENS)]

    def ranks(self, model: PreTrainedModel) -> Ranks:
        """Of the rows that a run ranks between steps."""
        samples, settings = self.data.samples, self.settings
        recommender, part = ranker(model, self.prompts, settings, samples.valid), samples.ranked(settings.ranked)
        return measure(recommender, self.prompts.catalogue, part, self.data.rows["few"], settings.topk, settings.exclude_seen)[1]
