"""One run: dataset -> samples -> every model of the table -> results. What RecBole's `run_recbole` is to RecBole."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from recbole.data.dataloader import AbstractDataLoader
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import init_seed
from recbole.utils.logger import RemoveColorFilter
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers.utils import logging as transformers_logging

from recbole_prunerec import __version__
from recbole_prunerec.arguments import Arguments
from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.config import RunConfig
from recbole_prunerec.data.dataset import NextItemDataset, part_of
from recbole_prunerec.data.samples import Samples, TestRows, choose_rows
from recbole_prunerec.lookup import model_class, trainer_class
from recbole_prunerec.pipeline import StepRecord
from recbole_prunerec.report.ranks import Ranks, compare, retention
from recbole_prunerec.report.results import Measured, Parameters, Results, Row, device_name, versions
from recbole_prunerec.report.tables import to_screen, write_all
from recbole_prunerec.run_folder import RunFolder, file_hash, hash_of, point_latest, read_json, write_json, write_text
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import recbole_folder

TEACHER = "BIGRec (teacher)"
SHOWN_AS = {"Popularity": "Pop"}
NOT_IN_HASH = {"checkpoint_dir", "data_path", "show_progress"}  # what changes no figure

logger = logging.getLogger(__name__)


def run(arguments: Arguments) -> str:
    """Run everything that `arguments` ask for, or go on with it, and return the table for the screen. Everything else lies in the run's folder."""
    settings = arguments.settings
    root = Path(settings.checkpoint_dir)
    path = root / f"{'-'.join(settings.model)}-{settings.dataset}-{_identity(settings)}"
    folder = RunFolder(path)
    with folder.lock():
        if arguments.fresh:
            folder.clear()
        _start_log(path / "run.log")
        point_latest(root, path)
        results_file = path / "results.json"
        if results_file.exists():
            done = "finished before; this is its table (--fresh runs it again)"
            results = read_json(results_file, Results)
        else:
            done = "finished"
            write_text(path / "config.yaml", _config_yaml(settings))
            results = _Run(settings, folder, root / "cache").results()
            write_all(results, path)
    return f"{to_screen(results)}\n{path}: {done}\n"


def _identity(settings: Settings) -> str:
    """A hash of all that the figures depend on: settings, data, a local backbone or teacher, version."""
    folder = recbole_folder() / "dataset_example" / "ml-100k" if settings.dataset == "ml-100k" else Path(settings.data_path) / settings.dataset
    data = {path.name: file_hash(path) for path in sorted(folder.glob("*.i*")) if path.suffix in (".inter", ".item")}
    start = Path(settings.teacher or settings.backbone)
    files = [start] if start.is_file() else sorted(path for path in start.glob("*") if path.suffix in (".json", ".safetensors"))
    return hash_of([settings.model_dump(mode="json", exclude=NOT_IN_HASH), data, [file_hash(path) for path in files], __version__])[:8]


def _config_yaml(settings: Settings) -> str:
    """Every setting, in the form that `--config_files` reads: RecBole's keys stand beside ours."""
    values = settings.model_dump(mode="json")
    recbole = values.pop("recbole")
    return yaml.safe_dump({**values, **recbole}, sort_keys=False, allow_unicode=True)


def _start_log(path: Path) -> None:
    """Log to the screen and to `path`, in place of what an earlier run of this process logged to."""
    screen, file = logging.StreamHandler(), logging.FileHandler(path, encoding="utf-8")
    file.addFilter(RemoveColorFilter())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=[screen, file], force=True)
    warnings.filterwarnings("ignore", module=r"recbole\.")  # its pandas and torch calls are of their time, and work
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


class _Data(NamedTuple):
    """What all models of a run share."""

    dataset: NextItemDataset
    parts: list[NextItemDataset]  # train, valid, test
    samples: Samples
    rows: dict[TestRows, np.ndarray]  # numbers of the test samples that are ranked


class _Run:
    """The models of one run, each giving its rows; a row that is done is not measured again."""

    def __init__(self, settings: Settings, folder: RunFolder, cache: Path) -> None:
        self.settings, self.folder, self.cache = settings, folder, cache

    def results(self) -> Results:
        settings = self.settings
        self.data = self._load_data()
        names = list(settings.model)
        if "PruneRec" in names:
            others = [name for name in names if name != "PruneRec"] or list(settings.compare)
            names = ["Popularity", *(name for name in others if name != "Popularity"), "PruneRec"]
        rows: list[Row] = []
        for name in names:
            rows += self._prunerec() if name == "PruneRec" else [self._baseline(name)]
        results = Results(
            rows=tuple(rows),
            comparisons=tuple(self._comparisons(rows)),
            dataset=self.data.dataset.statistics(self.data.samples),
            protocol=self._protocol(),
            versions=versions(),
            device=device_name(),
            command=shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
            seed=settings.seed,
            preset=settings.preset,
            worthless=settings.worthless,
        )
        self._hparams(results)
        return results

    def _load_data(self) -> _Data:
        settings = self.settings
        config = RunConfig(settings, model_class("Popularity"), self.folder.path, self.cache)
        init_seed(settings.seed, True)
        dataset = NextItemDataset(config)
        parts = dataset.build()
        parts[0] = parts[0].copy(parts[0].inter_feat[np.arange(len(parts[0]))[: settings.training_rows]])
        samples = Samples(*(part_of(part) for part in parts))
        counts: dict[TestRows, int | None] = {"all": settings.test_rows, "few": settings.step_test_rows}
        rows = {kind: choose_rows(len(samples.test), count, settings.seed) for kind, count in counts.items()}
        logger.info("%s", dataset.statistics(samples))
        return _Data(dataset, parts, samples, rows)

    def _build(self, name: str) -> tuple[Any, Any, dict[str, AbstractDataLoader]]:
        """Trainer, model and loaders of one model; "all" and "few" are the ranked test rows."""
        config = RunConfig(self.settings, model_class(name), self.folder.path, self.cache)
        train, valid, test = self.data.parts
        samplers = create_samplers(config, self.data.dataset, self.data.parts)
        loaders = {
            "train": get_dataloader(config, "train")(config, train, samplers[0], shuffle=config["shuffle"]),
            "valid": get_dataloader(config, "valid")(config, valid, samplers[1], shuffle=False),
        }
        for kind, rows in self.data.rows.items():
            loaders[kind] = get_dataloader(config, "test")(config, test.copy(test.inter_feat[rows]), samplers[2], shuffle=False)
        init_seed(config["seed"], config["reproducibility"])
        model = model_class(name)(config, train).to(config["device"])
        return trainer_class(name)(config, model), model, loaders

    def _baseline(self, name: str) -> Row:
        """The row of a model that is trained whole; its file makes it done."""
        file = self.folder.path / "rows" / f"{name}.json"
        if not file.exists():
            logger.info("%s", name)
            trainer, model, loaders = self._build(name)
            trainer.fit(loaders["train"], loaders["valid"], saved=True, verbose=True, show_progress=self.settings.show_progress)
            measured = trainer.measure(loaders["all"], self.data.rows["all"], self._ranks_file(name))
            note = None if trainer.converged else f"not converged: {trainer.epochs} epochs"
            write_json(file, self._row(SHOWN_AS.get(name, name), measured, _parameters(model), note=note))
        return read_json(file, Row)

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
        for record in records:
            rows += self._step_rows(record, original, records[0])
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
        names = {shown: name for name, shown in SHOWN_AS.items()}
        ranks = {system: Ranks.read(self._ranks_file(names.get(file, file))) for system, file in files.items()}
        ours = [system for system in (TEACHER, "PruneRec") if system in ranks]
        others = [system for system in ranks if system != "PruneRec"]
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
            "ranked_items": "the full catalogue, items already seen included",
            "beams": settings.ranking.beams,
        }

    def _hparams(self, results: Results) -> None:
        """The final table in TensorBoard: one hparams entry a row."""
        for row in results.rows:
            label = "-".join(
                str(part) for part in (row.system, row.step, row.step_name, "unrestored" if row.restored is False else None) if part is not None
            )
            with SummaryWriter(str(self.folder.path / "tensorboard" / "table" / label)) as writer:
                facts = {
                    "system": row.system,
                    "step": row.step_name or "",
                    "restored": str(row.restored),
                    "test_rows": row.test_rows,
                    "parameters": row.parameters.total,
                }
                values = {f"table/{name}": value for name, value in row.metrics.items()} | {"table/retention": row.retention or 0.0}
                writer.add_hparams(facts, values, run_name=".")


def _parameters(model: nn.Module) -> Parameters:
    """Parameters of a model that has no original: shares are empty. Embedding tables are those of its nn.Embedding modules."""
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
