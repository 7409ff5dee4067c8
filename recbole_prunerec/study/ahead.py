"""What a comparison will take, told before it starts: matrix products for language models, two timed batches for models over item ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.compared.systems import OURS, READERS, helpers_of, with_helpers
from recbole_prunerec.dry_run import MOST_ROWS, measured_rate
from recbole_prunerec.estimate import PASSES, Tokens, count_tokens, duration, planned_work, ranking_work
from recbole_prunerec.loading import Data, build, load_data, load_prompts
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.prune.vocabulary import vocabulary_after
from recbole_prunerec.report.cost import Stopwatch
from recbole_prunerec.restore.train import use_bfloat16
from recbole_prunerec.settings import Finetune, Pruning, Settings
from recbole_prunerec.shared_rows import shared_file
from recbole_prunerec.shipped import model_defaults
from recbole_prunerec.study.runs import Job
from recbole_prunerec.text.prompts import Prompts

EPOCHS = 30  # until a model over item ids stops early, where it may go on for so long
START = 15.0  # seconds: libraries and data
PROMPT = 25  # tokens around the items' vectors that E4SRec reads

RULE = (
    "at least {total} for {count} runs on this machine, and often several times that for language models: their matrix products alone, at the rate "
    "measured; for RecBole's models {epochs} epochs by two timed batches; {start:.0f} s for each start"
)

logger = logging.getLogger(__name__)


class Ahead:
    """Reckons with the data and the backbone that all `jobs` share, and the training rows of the one that restores for the most epochs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.settings = max((job.settings for job in jobs), key=_restorations)
        self.root = Path(self.settings.checkpoint_dir)
        self.data: Data = load_data(self.settings, self.root, self.root / "cache")
        config, self.prompts = load_prompts(self.settings, self.data, None, weights=False)
        self.shape, self.sizes = Shape.of_config(config.to_dict()), Sizes.of_config(config.to_dict(), self.settings.backbone)
        self.tokens: Tokens = count_tokens(self.settings, self.prompts, self.data.samples)
        self.device = torch.device("cuda" if self.settings.device != "cpu" and torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if use_bfloat16(self.settings.precision, self.sizes.total_parameters, self.device) else torch.float32
        self.rate = measured_rate(MOST_ROWS, self.sizes, self.device, dtype, 1.0)
        self.epoch_seconds: dict[tuple[str, str], float] = {}
        self.trained: set[Path] = set()  # rows that jobs before leave for others

    def seconds(self, job: Job, has_teacher: bool) -> float:
        """What a job takes at least; with `has_teacher` its fine-tuned model is another job's."""
        settings = job.settings
        models = [name for name in with_helpers(settings.model) if self._trains(settings, name)]
        work = sum(self._work(settings, name, has_teacher) for name in models)
        helpers = [name for name in helpers_of(settings) if "PruneRec" in models and self._trains(settings, name)]
        ids = [name for name in [*models, *helpers] if name not in ("PruneRec", "Popularity", *READERS)]
        return START + work / self.rate + sum(self._training(settings, name) for name in ids)

    def _trains(self, settings: Settings, name: str) -> bool:
        """Whether a run trains a model, and does not take what another has trained, or a job before will have."""
        file = shared_file(self.root / "cache", settings, name)
        if file is None:
            return True
        there = file in self.trained or file.exists()
        self.trained.add(file)
        return not there

    def _work(self, settings: Settings, name: str, has_teacher: bool) -> float:
        """Multiply-adds of what a language model does."""
        rows, user = {kind: len(chosen) for kind, chosen in self.data.rows.items()}, ranking_work(self.sizes, self.tokens.user)
        if name == "PruneRec":
            prompts: Prompts = self.prompts
            left = vocabulary_after(settings.steps, prompts)
            work = planned_work(settings, self.sizes, self.shape, self.tokens.epoch, self.tokens.user, rows, left)
            done = [has_teacher and isinstance(step, Finetune) for step in settings.steps]
            return sum(amount for amount, elsewhere in zip(work, done, strict=True) if not elsewhere) + any(done) * float(rows["all"] * user)
        if name == "DLLM2Rec":
            return float(user * settings.recbole.get("teacher_samples", model_defaults(name)["teacher_samples"]))
        if name in READERS:
            read = PROMPT + settings.longest_history
            epochs = settings.baselines.get(name, {}).get("epochs", model_defaults(name)["epochs"])
            return float(self.sizes.non_embedding_parameters * read * (PASSES * epochs * len(self.data.samples.train) + rows["all"]))
        return 0.0

    def _training(self, settings: Settings, name: str) -> float:
        """Seconds until a model over item ids has stopped early."""
        own = name in settings.model or "PruneRec" not in settings.model  # else it helps PruneRec
        most = settings.epochs if own else settings.baselines.get("epochs", EPOCHS)
        student = settings.recbole.get("student", "SASRec") if name in OURS else name
        key = (student, str(settings.recbole.get("loss_type")))
        if key not in self.epoch_seconds:
            self.epoch_seconds[key] = self._epoch(settings.model_copy(update={"model": (student,)}), student)
        return min(most, EPOCHS) * self.epoch_seconds[key]

    def _epoch(self, settings: Settings, name: str) -> float:
        """Seconds of an epoch and its validation, from two batches of either, the first to warm up."""
        keys = model_defaults(name)
        recbole = {key: value for key, value in settings.recbole.items() if key in keys or key not in model_defaults("DLLM2Rec")}
        _, model, loaders = build(settings.model_copy(update={"recbole": recbole}), self.data, name, self.root, self.root / "cache")
        for batch, _ in zip(loaders["train"], range(2), strict=False):
            with Stopwatch(self.device) as training:
                model.calculate_loss(batch.to(self.device)).backward()
        model.eval()
        with torch.no_grad():
            for batch, _ in zip(loaders["valid"], range(2), strict=False):
                with Stopwatch(self.device) as validating:
                    model.full_sort_predict(batch[0].to(self.device)).topk(max(settings.topk))
        return training.seconds * len(loaders["train"]) + validating.seconds * len(loaders["valid"])


def _restorations(settings: Settings) -> int:
    return max((settings.restore_of(step).epochs for step in settings.steps if isinstance(step, Pruning)), default=0)


def told_ahead(seconds: Sequence[float]) -> str:
    """What the runs take at least, in words."""
    return RULE.format(total=duration(sum(seconds)), count=len(seconds), epochs=EPOCHS, start=START)
