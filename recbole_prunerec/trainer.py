"""RecBole's trainers with ranked evaluation: every system is measured on the same rows, and the rank of every row is kept."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import AbstractDataLoader
from recbole.evaluator import Collector
from recbole.evaluator.collector import DataStruct
from recbole.trainer import Trainer
from recbole.trainer import trainer as recbole_trainer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel

from recbole_prunerec.data.dataset import part_of
from recbole_prunerec.data.samples import Samples, TestRows
from recbole_prunerec.distributed import alone, rank
from recbole_prunerec.pipeline import Method, StepRecord
from recbole_prunerec.ranking.seen import without_seen
from recbole_prunerec.report.cost import PeakMemory, Stopwatch, count_flops
from recbole_prunerec.report.measure import FLOPS_USERS
from recbole_prunerec.report.ranks import Ranks
from recbole_prunerec.report.results import Measured
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.text.prompts import Prompts


class _EvaluationData(Collector):
    """RecBole's collector, for metrics that also look at the training data: it would call `.cpu()` on numbers and counters and fail."""

    def get_data_struct(self) -> DataStruct:
        """What was collected, tensors on the CPU."""
        collected = self.data_struct._data_dict
        plain = {key: collected.pop(key) for key, value in list(collected.items()) if not isinstance(value, Tensor)}
        struct = super().get_data_struct()
        for key, value in plain.items():
            self.data_struct.set(key, value)
            struct.set(key, value)
        return struct


class RankedEvaluation(Trainer):
    """A mixin over any RecBole trainer: TensorBoard in the run's folder, the best weights in memory instead of a pickle, and `measure`."""

    def __init__(self, config: Any, model: torch.nn.Module) -> None:
        directory = str(Path(config["checkpoint_dir"]).parent.parent / "tensorboard" / config["model"])
        # RecBole's goes to ./log_tensorboard and is shared by all models
        recbole_trainer.get_tensorboard = lambda logger: SummaryWriter(directory) if rank() == 0 else None
        super().__init__(config, model)
        self.eval_collector = _EvaluationData(config)
        self.best_state: dict[str, Tensor] | None = None
        self._targets_ranks: list[Tensor] = []

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        self.best_state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        interaction, scores, positive_u, positive_i = super()._full_sort_batch_eval(batched_data)
        if self.config.settings.exclude_seen:
            scores = without_seen(scores, interaction[self.config["ITEM_ID_FIELD"] + self.config["LIST_SUFFIX"]])
        self._targets_ranks.append(target_ranks(scores, positive_i.to(scores.device)).cpu())
        return interaction, scores, positive_u, positive_i

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """RecBole's training, then its best weights."""
        fitted = super().fit(*args, **kwargs)
        self.tensorboard.close()
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)
        return fitted

    @property
    def converged(self) -> bool:
        """Whether training ended because the validation metric no longer rose, not because the epochs were used up."""
        return self.cur_step > self.stopping_step

    @property
    def note(self) -> str | None:
        """What a reader must know of the ranks that `measure` has taken, where the model has something to say."""
        return getattr(self.model, "note", None)

    def measure(self, loader: AbstractDataLoader, rows: np.ndarray) -> tuple[Measured, Ranks]:
        """Rank the test rows in `loader`, whose numbers among all test samples are `rows`: what was measured, and every row's rank."""
        self._targets_ranks = []
        device = self.device
        with PeakMemory(device) as peak, Stopwatch(device) as watch:
            metrics = self.evaluate(loader, load_best_model=False)
        note = self.note
        dataset, part = loader.dataset, part_of(loader.dataset)
        users, targets = (dataset.id2token(field, ids) for field, ids in ((dataset.uid_field, part.users), (dataset.iid_field, part.targets)))
        ranks = Ranks(rows, np.asarray(users, dtype=str), np.asarray(targets, dtype=str), torch.cat(self._targets_ranks).numpy())
        few = loader.dataset[np.arange(min(FLOPS_USERS, len(rows)))].to(device)
        flops: float | None = None  # some models rank item by item, which takes too long to be counted
        with torch.no_grad(), alone(), suppress(NotImplementedError):
            flops = count_flops(lambda: self.model.full_sort_predict(few)) / len(few)
        measured = Measured(
            test_rows=len(rows),
            metrics={name: float(value) for name, value in metrics.items()},
            flops_per_user=flops,
            seconds_per_user=watch.seconds / len(rows),
            peak_memory_bytes=peak.bytes,
            note=note,
        )
        return measured, ranks


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank, from 1, of each row's target among all items by falling score, ties by item id. `scores` (row, item), `targets` (row,)."""
    own = scores.gather(1, targets[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return 1 + (scores > own).sum(1) + ((scores == own) & earlier).sum(1)


class CountingTrainer(RankedEvaluation):
    """For models that have nothing to train."""

    def _build_optimizer(self, **kwargs: Any) -> None:
        return None

    def fit(self, train_data: AbstractDataLoader, *args: Any, **kwargs: Any) -> None:
        """Collects what some metrics need to know of the training data."""
        self.eval_collector.data_collect(train_data)

    @property
    def converged(self) -> bool:
        """There is nothing that could go on."""
        return True


class PruneRecTrainer(CountingTrainer):
    """Runs the method's steps, and measures each by RecBole's evaluator on the run's test rows."""

    def run(
        self, samples: Samples, folder: RunFolder, train_data: AbstractDataLoader, loaders: dict[TestRows, tuple[AbstractDataLoader, np.ndarray]]
    ) -> list[StepRecord]:
        """All steps, each measured on "all" or "few" of the test rows by `loaders`. Returns a record a step."""
        self.fit(train_data)
        settings = self.config.settings

        def measure(model: PreTrainedModel, prompts: Prompts, name: str, rows: TestRows) -> Measured:
            self.model.rank_with(model, prompts)
            loader, numbers = loaders[rows]
            measured, ranks = self.measure(loader, numbers)
            folder.write_text(f"ranks/{name}.csv", ranks.to_csv())
            return measured

        counts = {kind: len(numbers) for kind, (_, numbers) in loaders.items()}
        model = self.model
        return Method(settings, model.backbone, model.prompts, samples, folder, measure, counts, self.config.cache, model.tutor).run()
