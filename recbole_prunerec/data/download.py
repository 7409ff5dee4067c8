"""RecBole's datasets by name: where the files are not here, its zip is fetched and unpacked, or one that was put here.

RecBole's own downloader asks on standard input, leaves half a dataset behind where it is cut, and fails on one process.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path, PurePosixPath

import filelock

from recbole_prunerec.data.unzip import Unusable, unzip, wanted_files
from recbole_prunerec.data.web import Unreachable, fetch, remote_file
from recbole_prunerec.errors import UserError
from recbole_prunerec.shipped import recbole_urls
from recbole_prunerec.storage import hash_of, sync
from recbole_prunerec.validation.on_disk import amount, dataset_problems, disk_problems, has_data

LARGE = 2**30  # bytes; more are fetched only if somebody says yes
UNPACKED = 2  # times its zip a dataset's text takes at least; the zip itself tells it exactly

logger = logging.getLogger(__name__)


def download(name: str, data_path: str, yes: bool, show_progress: bool) -> None:
    """Make `<data_path>/<name>/` from RecBole's zip of that name, which is fetched, or lies in `data_path` as `<name>.zip` and stays there.

    More than 1 GiB is fetched with `yes`, or where a terminal says so. What has come of a zip is kept until the dataset is whole, and gone on with.
    Raises `UserError` where the zip cannot be had, does not fit on the disk, or is not what it should be.
    """
    root, problems = Path(data_path), dataset_problems(name, data_path)
    if problems:
        raise UserError("\n".join(problems))
    root.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(root / f".{name}.lock").acquire(timeout=0):
            if not has_data(name, data_path):  # another process may have brought it
                _bring(name, root, yes, show_progress)
    except filelock.Timeout:
        raise UserError(f"another process is fetching {name} into {root}; wait until it has ended") from None


def _bring(name: str, root: Path, yes: bool, show_progress: bool) -> None:
    url, given = recbole_urls()[name], root / f"{name}.zip"
    own = given.is_file()
    archive = given if own else _fetched(name, url, given, yes, show_progress)
    try:
        _unpack(archive, PurePosixPath(url).stem, root, name)
    except Unusable as problems:
        if own:
            place, advice = str(given), "put another zip in its place, or remove it and have it fetched"
        else:
            archive.unlink()
            place, advice = f"{url}, as it was fetched,", f"put another zip here as {given}, or have it fetched anew"
        raise UserError("\n".join(f"{place} {problem}; {advice}" for problem in str(problems).splitlines())) from problems
    if not own:
        archive.unlink()
    logger.info("dataset=%s is unpacked into %s", name, root / name)


def _fetched(name: str, url: str, given: Path, yes: bool, show_progress: bool) -> Path:
    """The zip at `url`, fetched as far as it is not here yet; `given` is where a user may put one instead."""
    root, absent = given.parent, f"dataset={name} is not here"
    try:
        file = remote_file(url)
        part = root / f".{name}.{hash_of(list(file))[:16]}.part"  # another version of the file is another part
        for stale in set(root.glob(f".{name}.*.part")) - {part}:
            stale.unlink()
        missing = file.bytes - (part.stat().st_size if part.exists() else 0)
        _check_room(root, missing + UNPACKED * file.bytes)
        if missing > LARGE and not yes:
            _ask(f"{absent}, and {amount(missing)} would be fetched from {url}", f"put the file here as {given}")
        logger.info("%s: %s are fetched from %s", absent, amount(missing), url)
        fetch(file, part, show_progress)
    except Unreachable as reason:
        raise UserError(
            f"{absent}, and {url} cannot be fetched: {reason}; give the same command again, which goes on where it was cut, "
            f"or fetch the file elsewhere and put it here as {given}"
        ) from reason
    return part


def _ask(question: str, otherwise: str) -> None:
    """Raises `UserError` where nobody says yes to a large download."""
    if not sys.stdin.isatty():
        raise UserError(f"{question}; say --yes to that, or {otherwise}")
    sys.stderr.write(f"{question}. Fetch it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError(f"{question}, which was not wanted; say yes, or {otherwise}")


def _unpack(archive: Path, stem: str, root: Path, name: str) -> None:
    """Make the dataset's folder, whole or not at all, from the files in `archive` that begin with `stem`."""
    files = wanted_files(archive, stem, name)
    _check_room(root, sum(member.file_size for member in files.values()))
    folder, partial = root / name, root / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        unzip(archive, files, partial)
        if folder.exists():
            folder.rmdir()  # it is empty: what holds other files is refused before
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(root)


def _check_room(root: Path, needed: int) -> None:
    problems = disk_problems(root, needed, "data_path")
    if problems:
        raise UserError("\n".join(problems))
