"""A filtered dataset on the disk: a folder that is whole or absent, made once for the same files, rules and version."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path

import filelock

from recbole_prunerec.amazon.atomic import FIELDS, Fields, read_atomic
from recbole_prunerec.amazon.engine import engine
from recbole_prunerec.amazon.making import STATISTICS, Making, make
from recbole_prunerec.amazon.raw import read_raw
from recbole_prunerec.amazon.statistics import Statistics
from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Rules
from recbole_prunerec.storage import file_hash, hash_of, read_json, sync
from recbole_prunerec.validation.on_disk import disk_problems

VERSION = 1  # raised whenever the same files and rules would give something else
ROOM = 1.0  # times the size of the files that are read: what the disk needs meanwhile

logger = logging.getLogger(__name__)


def cached_dataset(inter: Path, items: Path, rules: Rules, cache: Path, name: str, fields: Fields = FIELDS, show_progress: bool = True) -> Path:
    """The folder that holds the dataset's folder `name`: RecBole's files `inter` and `items` after `rules`, made where `cache` does not have it.

    Raises `UserError` as `making.make` does.
    """
    read = partial(read_atomic, inter=inter, items=items, fields=fields)
    made_of = _made_of((inter, items), rules, name, *fields)
    data_path = cache / f"data-{made_of[:16]}"
    _once(data_path / name, made_of, Making(read, (inter, items), rules, fields, "checkpoint_dir", show_progress))
    return data_path


def raw_dataset(reviews: Path, metadata: Path, rules: Rules, out: Path, name: str, show_progress: bool = True) -> Path:
    """`<out>/<name>`: the dataset of a category's raw files after `rules`. What is there already of the same files and rules is left as it is.

    Raises `UserError` as `making.make` does, and where something else has that name.
    """
    read = partial(read_raw, reviews=reviews, metadata=metadata)
    _once(out / name, _made_of((reviews, metadata), rules, name), Making(read, (reviews, metadata), rules, FIELDS, "out", show_progress))
    return out / name


def _made_of(paths: tuple[Path, Path], rules: Rules, *names: str) -> str:
    """A hash of all that the result depends on. Raises one `UserError` for the files that are missing."""
    missing = [f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a file" for path in paths if not path.is_file()]
    if missing:
        raise UserError("\n".join(missing))
    return hash_of([VERSION, *map(file_hash, paths), rules.model_dump(), *names])


def _once(folder: Path, made_of: str, making: Making) -> None:
    """Make `folder`, which gets its name when it is whole, unless it is there; of several processes one makes it, and the others wait."""
    if problems := disk_problems(folder.parent, 0, making.key):
        raise UserError("\n".join(problems))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            _check_same(folder, made_of)
            return
        if problems := disk_problems(folder.parent, int(ROOM * sum(path.stat().st_size for path in making.paths)), making.key):
            raise UserError("\n".join(problems))
        unfinished = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        work = unfinished / "work"
        work.mkdir(parents=True)
        try:
            with engine(work) as connection:
                make(connection, unfinished, folder.name, made_of, making)
            shutil.rmtree(work)
            for path in (*unfinished.iterdir(), unfinished):
                sync(path)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        sync(folder.parent)


def _check_same(folder: Path, made_of: str) -> None:
    file = folder / STATISTICS
    if not file.is_file() or read_json(file, Statistics).made_of != made_of:
        raise UserError(f"{folder} exists and holds other data; choose another name than name={folder.name}, or delete it")
    logger.info("%s is there already, made of the same files by the same rules", folder)
