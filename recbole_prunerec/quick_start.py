"""One run: dataset -> samples -> every model of the table -> results. What RecBole's `run_recbole` is to RecBole."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.data.dataloader import AbstractDataLoader
from recbole.utils.logger import RemoveColorFilter
from safetensors.torch import save
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers.utils import logging as transformers_logging

from recbole_prunerec.arguments import Arguments
from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import source_of
from recbole_prunerec.backbone.origin import origin_of
from recbole_prunerec.compared.systems import NEEDS, TAUGHT, with_helpers
from recbole_prunerec.compared.teacher import check_catalogue
from recbole_prunerec.data.download import download
from recbole_prunerec.distributed import agreed, by_first, joined, rank, world
from recbole_prunerec.dry_run import dry_run
from recbole_prunerec.identity import identity_of, run_path, settled
from recbole_prunerec.loading import build, load_data, load_data_and_model, load_prompts, weights_file
from recbole_prunerec.lookup import trainer_class
from recbole_prunerec.model.prunerec import PruneRec
from recbole_prunerec.pipeline import StepRecord
from recbole_prunerec.report.plots import image, size_quality
from recbole_prunerec.report.ranks import Ranks, compare, retention
from recbole_prunerec.report.results import Measured, Parameters, Results, Row, device_name, versions
from recbole_prunerec.report.tables import to_screen, write_all
from recbole_prunerec.run_folder import RunFolder, point_latest
from recbole_prunerec.settings import Settings
from recbole_prunerec.shared_rows import Trained, shared, shared_file
from recbole_prunerec.storage import read_json, write_bytes, write_text
from recbole_prunerec.validation.on_disk import has_data
from recbole_prunerec.validation.preflight import preflight

__all__ = ["load_data_and_model", "run"]

TEACHER = "BIGRec (teacher)"
RESULTS = "results.json"
TENSORBOARD = "tensorboard"
STATISTICS = "statistics.md"

logger = logging.getLogger(__name__)


def run(arguments: Arguments) -> str:
    """Run everything that `arguments` ask for, or go on with it, and return the table for the screen. Everything else lies in the run's folder.

    Processes that torchrun or accelerate have started share the work out; process 0 alone returns the table.
    """
    with joined(arguments.settings.device == "cpu"):
        settings = settled(arguments.settings)
        if rank():
            settings = settings.model_copy(update={"show_progress": False})
        shown: list[str] = []
        by_first(lambda: bring_data(settings, arguments.yes))
        if arguments.dry_run:
            by_first(lambda: shown.append(_dry_run(settings)))
        else:
            path, done = _carry_out(settings, arguments.fresh)
            by_first(lambda: shown.append(f"{to_screen(read_json(path / RESULTS, Results))}\n{path}: {done}\n"))
        return "".join(shown)


def bring_data(settings: Settings, yes: bool) -> None:
    """Fetch a dataset of RecBole's that is not here."""
    if not has_data(settings.dataset, settings.data_path):
        start_log(None)
        download(settings.dataset, settings.data_path, yes, settings.show_progress)


def _dry_run(settings: Settings) -> str:
    start_log(None)
    return dry_run(settings)


def _carry_out(settings: Settings, fresh: bool) -> tuple[Path, str]:
    """The folder that has the results now, and whether it had them before."""
    root = Path(settings.checkpoint_dir)
    identity = identity_of(settings)
    path = run_path(settings, identity)
    if fresh or not agreed((path / RESULTS).exists):
        preflight(settings, path)
    folder = RunFolder(path, identity)
    with folder.lock():
        if fresh:
            folder.clear()
        folder.check()
        start_log(path / "run.log")
        if folder.has(RESULTS):
            by_first(lambda: _point_latest(settings, root, path))
            return path, "finished before; this is its table (--fresh runs it again)"
        by_first(lambda: write_text(path / "config.yaml", _config_yaml(settings)))
        whole = _Run(settings, folder, root / "cache", fresh)
        by_first(lambda: _point_latest(settings, root, path))  # not before the data are judged, so that a refused run is never the latest
        rows = whole.rows()
        by_first(lambda: write_all(whole.results(rows), folder))
    return path, "finished"


def _point_latest(settings: Settings, root: Path, path: Path) -> None:
    if settings.steps:  # an evaluation is no run of its own
        point_latest(root, path)


def _config_yaml(settings: Settings) -> str:
    """Every setting, in the form that `--config_files` reads: RecBole's keys stand beside ours."""
    values = settings.model_dump(mode="json")
    recbole = values.pop("recbole")
    return yaml.safe_dump({**values, **recbole}, sort_keys=False, allow_unicode=True)


def start_log(path: Path | None) -> None:
    """Log to the screen and, where it is given, to `path`, in place of what an earlier run of this process logged to.

    Of several processes all but the first say errors alone, and into no file.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if path is not None and rank() == 0:
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
        handlers[1].addFilter(RemoveColorFilter())
    level, form = (logging.ERROR, f"%(asctime)s process {rank()}: %(message)s") if rank() else (logging.INFO, "%(asctime)s %(message)s")
    logging.basicConfig(level=level, format=form, datefmt="%H:%M:%S", handlers=handlers, force=True)
    if rank():
        warnings.filterwarnings("ignore")
    warnings.filterwarnings("ignore", module=r"recbole\.")  # its pandas and torch calls are of their time, and work
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


class _Run:
    """The models of one run, each giving its rows; a row that is done is not measured again."""

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
        self.names = self._names()
        if settings.teacher and set(TAUGHT) & set(self.names):
            by_first(lambda: check_catalogue(Path(str(settings.teacher)), self.data.catalogue))
        self.helping = {name for other in self.names for name in (*NEEDS.get(other, ()), settings.ranking.assistant)}

    def _names(self) -> list[str]:
        """The models of the table, in its order: what is named, and what that needs."""
        settings = self.settings
        if "PruneRec" not in settings.model:
            return with_helpers(settings.model)
        others = [name for name in settings.model if name != "PruneRec"] or list(settings.compare)
        helpers = [settings.ranking.assistant] if settings.ranking.assistant else []
        return ["Popularity", *(name for name in with_helpers([*others, *helpers]) if name != "Popularity"), "PruneRec"]

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

    def _build(self, name: str) -> tuple[Any, Any, dict[str, AbstractDataLoader]]:
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
            rows.append(self._row(system, measured, parameters, step=record.number, step_name=record.name, restored=restored, retention=kept))
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
            "ranked_items": "the full catalogue, items already seen included",
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
