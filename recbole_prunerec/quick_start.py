"""One run: dataset -> samples -> every model of the table -> results. What RecBole's `run_recbole` is to RecBole."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import yaml
from recbole.utils.logger import RemoveColorFilter
from transformers.utils import logging as transformers_logging

from recbole_prunerec.arguments import Arguments
from recbole_prunerec.data.download import download
from recbole_prunerec.distributed import agreed, by_first, joined, rank
from recbole_prunerec.dry_run import dry_run
from recbole_prunerec.identity import identity_of, run_path, settled
from recbole_prunerec.loading import load_data_and_model
from recbole_prunerec.report.results import Results
from recbole_prunerec.report.tables import to_screen, write_all
from recbole_prunerec.run_folder import RunFolder, point_latest
from recbole_prunerec.run_table import RunTable
from recbole_prunerec.settings import Settings
from recbole_prunerec.storage import read_json, write_text
from recbole_prunerec.validation.on_disk import has_data
from recbole_prunerec.validation.preflight import preflight

__all__ = ["load_data_and_model", "run"]

RESULTS = "results.json"

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
        table = RunTable(settings, folder, root / "cache", fresh)
        by_first(lambda: _point_latest(settings, root, path))  # not before the data are judged, so that a refused run is never the latest
        rows = table.rows()
        by_first(lambda: write_all(table.results(rows), folder))
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
