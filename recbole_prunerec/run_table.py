"""The table of one run: every model trained, or read from where it lies, and measured on the same rows."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import source_of
from recbole_prunerec.backbone.origin import origin_of
from recbole_prunerec.compared.systems import NEEDS, TAUGHT, helpers_of, models_of
from recbole_prunerec.compared.teacher import check_catalogue
from recbole_prunerec.distributed import by_first, world
from recbole_prunerec.loading import build, load_data, load_prompts, weights_file
from recbole_prunerec.lookup import trainer_class
from recbole_prunerec.model.prunerec import PruneRec
from recbole_prunerec.pipeline import StepRecord
from recbole_prunerec.report.plots import image, size_quality
from recbole_prunerec.report.ranks import Ranks, compare, retention
from recbole_prunerec.report.results import Measured, Parameters, Results, Row, device_name, versions
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.settings import Settings
from recbole_prunerec.shared_rows import Trained, shared, shared_file
from recbole_prunerec.storage import read_json, write_bytes

TEACHER = "BIGRec (teacher)"
TENSORBOARD = "tensorboard"
STATISTICS = "statistics.md"

logger = logging.getLogger(__name__)


class RunTable:
    """The table of one run: a row or more of each model. A row that is done is not measured again."""

    def __init__(self, settings: Settings, folder: RunFolder, cache: Path, fresh: bool = False) -> None:
        self.settings, self.folder, self.cache, self.fresh = settings, folder, cache, fresh
        self.shown_as = {"Popularity": "Pop"}  # systems that nothing is trained for
        if not settings.steps:
            self.shown_as["PruneRec"] = Path(settings.backbone).resolve().name
        self.data, self.processes = load_data(settings, folder.path, cache), world()
        if settings.rules is not None:
            by_first(lambda: write_bytes(folder.path / STATISTICS, (Path(self.data.dataset.dataset_path) / STATISTICS).read_bytes()))
        if "PruneRec" in settings.model:
            by_first(lambda: load_prompts(settings, self.data, cache))  # what is wrong with titles is said before anything is trained
        self.names = models_of(settings)
        if settings.teacher and set(TAUGHT) & set(self.names):
            by_first(lambda: check_catalogue(Path(str(settings.teacher)), self.data.catalogue))
        self.helping = {*helpers_of(settings), *(name for other in self.names for name in NEEDS.get(other, ()))}

    def rows(self) -> list[Row]:
        """The rows of all models, each measured once; those that a fine-tuned model teaches come after the run's own."""
        rows = {}
        for name in sorted(self.names, key=lambda name: name in TAUGHT):
            rows[name] = self._prunerec() if name == "PruneRec" and self.settings.steps else [self._row_of(name)]
        return [row for name in self.names for row in rows[name]]

    def results(self, rows: list[Row]) -> Results:
        """The whole table of `rows`, which goes to TensorBoard and plots, too."""
        settings = self.settings
        results = Results(
            rows=tuple(rows),
            comparisons=tuple(self._comparisons(rows)),
            dataset=self.data.dataset.statistics(self.data.samples),
            protocol=self._protocol(),
            versions=versions(),
            device=device_name() + (f", {self.processes} processes" if self.processes > 1 else ""),
            command=_command(),
            seed=settings.seed,
            preset=settings.preset,
            worthless=settings.worthless,
        )
        self._hparams(results)
        self._curves(results)
        return results

    def _build(self, name: str) -> tuple[Any, Any, dict[str, Any]]:
        """Trainer, model and loaders of one model."""
        config, model, loaders = build(self.settings, self.data, name, self.folder.path, self.cache)
        return trainer_class(name)(config, model), model, loaders

    def _row_of(self, name: str) -> Row:
        """The row of a model that has one. All processes rank with PruneRec; what RecBole trains is process 0's."""
        measure = partial(self._baseline, name)
        measure() if name == "PruneRec" else by_first(measure)
        return read_json(self.folder.path / "rows" / f"{name}.json", Row)

    def _baseline(self, name: str) -> None:
        """Write the row of a model that is trained whole; its files make it done. Of one that helps another the weights are among them."""
        row, ranks_file, weights = f"rows/{name}.json", f"ranks/{name}.csv", weights_file(name)
        assists = name in self.helping
        if not all(map(self.folder.has, (row, ranks_file, *([weights] if assists else [])))):
            file = shared_file(self.cache, self.settings, name)
            trained = shared(file, self.fresh, self.folder.path / TENSORBOARD / name, lambda: self._trained(name, file is not None))
            self.folder.write_text(ranks_file, trained.ranks)
            if assists:
                self.folder.write_bytes(weights, save(trained.weights))
            self.folder.write_json(row, trained.row)

    def _trained(self, name: str, keep: bool) -> Trained:
        """A model trained and measured; `keep` its weights, too."""
        start = "" if name in self.shown_as else " (trained from the start: where a run is cut, RecBole's models begin their row again)"
        logger.info("%s%s", self.shown_as.get(name, name), start)
        trainer, model, loaders = self._build(name)
        trainer.fit(loaders["train"], loaders["valid"], saved=True, verbose=True, show_progress=self.settings.show_progress)
        measured, ranks = trainer.measure(loaders["all"], self.data.rows["all"])
        if not trainer.converged:
            notes = [measured.note, f"not converged: {trainer.epochs} epochs"]
            measured = measured.model_copy(update={"note": "; ".join(filter(None, notes))})
        state = model.state_dict() if keep else {}
        weights = {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        return Trained(self._row(self.shown_as.get(name, name), measured, _parameters(model)), ranks.to_csv(), weights, self.folder.path)

    def _prunerec(self) -> list[Row]:
        """A row for the teacher, and for every step before and after restoration."""
        trainer, model, loaders = self._build("PruneRec")
        if model.backbone.random:
            logger.warning(
                "backbone=%s starts from random weights: it knows only these titles. "
                "For a pretrained one: --backbone=Qwen/Qwen2-0.5B, a folder, or a .gguf file",
                model.backbone.name,
            )
        original = Sizes.of(model.backbone.model)
        test = {kind: (loaders[kind], self.data.rows[kind]) for kind in ("all", "few")}
        records = trainer.run(self.data.samples, self.folder, loaders["train"], test)
        rows = []
        measured = [record for record in records if record.final is not None]
        for record in measured:
            rows += self._step_rows(record, original, measured[0])
        return rows

    def _step_rows(self, record: StepRecord, original: Sizes, teacher: StepRecord) -> list[Row]:
        name = f"{record.number}-{record.name}"
        teacher_ranks = Ranks.read(self._ranks_file(f"{teacher.number}-{teacher.name}"))
        step = self.settings.steps[record.number - 1] if record.number else None  # a teacher that was given is no step
        criterion = getattr(step, "criterion", None)
        rows = []
        for measured, restored, ranks in (
            (record.unrestored, False, f"{name}-unrestored"),
            (record.final, None if record.unrestored is None else True, name),
        ):
            if measured is None:
                continue
            kept = retention(Ranks.read(self._ranks_file(ranks)), teacher_ranks, self.settings.topk)
            system = TEACHER if record is teacher else "PruneRec"
            parameters = _shares(record.sizes, original)
            about = {"step": record.number, "step_name": record.name, "criterion": criterion, "restored": restored, "retention": kept}
            if restored is not False:
                about |= {"step_seconds": record.seconds, "training_memory_bytes": record.training_memory_bytes}
            rows.append(self._row(system, measured, parameters, **about))
        return rows

    def _row(self, system: str, measured: Measured, parameters: Parameters, **more: Any) -> Row:
        return Row(system=system, parameters=parameters, **measured.model_dump(), **more)

    def _ranks_file(self, name: str) -> Path:
        return self.folder.path / "ranks" / f"{name}.csv"

    def _comparisons(self, rows: list[Row]) -> list[Any]:
        """Teacher and final model against every other system that was ranked on all rows."""
        files = {
            row.system: row.system if row.step is None else f"{row.step}-{row.step_name}"
            for row in rows
            if row.test_rows == len(self.data.rows["all"])
        }
        names = {shown: name for name, shown in self.shown_as.items()}
        ranks = {system: Ranks.read(self._ranks_file(names.get(file, file))) for system, file in files.items()}
        final = self.shown_as.get("PruneRec", "PruneRec")
        ours = [system for system in (TEACHER, final) if system in ranks]
        others = [system for system in ranks if system != final]
        pairs = [(system, other) for system in ours for other in others if system != other]
        return [
            comparison
            for system, other in pairs
            for comparison in compare(system, ranks[system], other, ranks[other], self.settings.topk, self.settings.seed)
        ]

    def _protocol(self) -> dict[str, Any]:
        settings = self.settings
        names = ("split", "MAX_ITEM_LIST_LENGTH", "metrics", "topk")
        given = {key: value for key, value in settings.recbole.items() if key.endswith("_interval") or key == "valid_metric"}
        return {
            **{name: getattr(settings, name) for name in names},
            **given,
            **({} if settings.rules is None else {f"rules.{key}": value for key, value in settings.rules.model_dump().items()}),
            **({} if settings.ranked == "test" else {"ranked": "validation samples, by which settings may be chosen"}),
            "ranked_items": f"the full catalogue, items already seen {'left out' if settings.exclude_seen else 'included'}",
            "softmax": settings.softmax,
            **self._commit(),
            **settings.ranking.facts(),
        }

    def _commit(self) -> dict[str, str]:
        """Of a backbone on the hub: `main` will be another one day."""
        settings = self.settings
        if "PruneRec" not in settings.model or settings.teacher or settings.backbone == "tiny":
            return {}
        commit = origin_of(source_of(settings.backbone, revision=settings.revision)).commit
        return {"backbone_commit": commit} if commit else {}

    def _hparams(self, results: Results) -> None:
        """The final table in TensorBoard: one hparams entry a row."""
        for row in results.rows:
            label = "-".join(
                str(part) for part in (row.system, row.step, row.step_name, "unrestored" if row.restored is False else None) if part is not None
            )
            with SummaryWriter(str(self.folder.path / TENSORBOARD / "table" / label)) as writer:
                facts = {
                    "system": row.system,
                    "step": row.step_name or "",
                    "restored": str(row.restored),
                    "test_rows": row.test_rows,
                    "parameters": row.parameters.total,
                }
                values = {f"table/{name}": value for name, value in row.metrics.items()} | {"table/retention": row.retention or 0.0}
                writer.add_hparams(facts, values, run_name=".")

    def _curves(self, results: Results) -> None:
        """Quality against size: every metric in TensorBoard, the one that is validated as files too."""
        if not any(row.step is not None for row in results.rows):
            return
        with SummaryWriter(str(self.folder.path / TENSORBOARD / "table")) as writer:
            for metric in results.rows[-1].metrics:
                writer.add_figure(f"size-quality/{metric}", size_quality(results, metric))
        figure = size_quality(results, self.settings.recbole["valid_metric"].lower())
        for kind in ("png", "svg"):
            write_bytes(self.folder.path / "plots" / f"size-quality.{kind}", image(figure, kind))


def _command() -> str:
    """What started this process, as one types it."""
    script, count = Path(sys.argv[0]), os.environ.get("LOCAL_WORLD_SIZE")
    start = ["python"] if count is None else ["torchrun", f"--nnodes={os.environ.get('GROUP_WORLD_SIZE', '1')}", f"--nproc_per_node={count}"]
    return shlex.join([*start, *(["-m", script.parent.name] if script.name == "__main__.py" else [script.name]), *sys.argv[1:]])


def _parameters(model: nn.Module) -> Parameters:
    """Parameters of a model that has no original: shares are empty. Embedding tables are those of its nn.Embedding modules."""
    if isinstance(model, PruneRec):
        sizes = Sizes.of(model.backbone.model)
        return Parameters(non_embedding=sizes.non_embedding_parameters, total=sizes.total_parameters)
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    return Parameters(non_embedding=total - embedding, total=total)


def _shares(sizes: Sizes, original: Sizes) -> Parameters:
    """Parameters of a step's model, and their share of the backbone's."""
    return Parameters(
        non_embedding=sizes.non_embedding_parameters,
        total=sizes.total_parameters,
        share_non_embedding=sizes.non_embedding_parameters / original.non_embedding_parameters,
        share_total=sizes.total_parameters / original.total_parameters,
    )
