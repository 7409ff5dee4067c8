"""One run, one folder: files and step folders that are either whole or absent, a manifest of their hashes, a lock, and the `latest` pointer.

Files are written under a temporary name beside the final one, flushed to the disk, and renamed; a step's folder likewise. A run that is cut
therefore never leaves something that looks finished. Every file that a run goes on from stands in manifest.json before it gets its name, so that
what is there is either as this run wrote it or refused.

Where several processes work on a run, all call the same methods; process 0 alone writes, and the others wait. What it sees is there for all of them,
since another machine may see a new file late.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
from pydantic import BaseModel

from recbole_prunerec.distributed import agreed, by_first, first_only, rank, told
from recbole_prunerec.errors import UserError
from recbole_prunerec.storage import MANIFEST, Model, as_json, file_hash, read_json, sync, write_bytes, write_json, write_text

ANEW = "start anew, with --fresh or in another folder"
WORK = ".work"  # what steps in progress go on from
LEFTOVERS = [f"{folder}.*.{state}" for folder in ("", "*/", f"{WORK}/*/", "cache/*/") for state in ("partial", "old")]
READ_AGAIN = ("[0-9]*-*", "rows/*.json", "rows/*.safetensors", f"{WORK}/*/*.json", "results.json")  # where foreign files would be taken for ours


class Entry(BaseModel):
    """One file in the manifest."""

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """manifest.json: which run the folder belongs to, and its files by path."""

    run: str
    files: dict[str, Entry]


def point_latest(root: str | Path, folder: str | Path) -> None:
    """Make `root/latest` a symbolic link to `folder`, replacing an older one atomically; where links are refused, a text file with the path."""
    root, relative = Path(root), os.path.relpath(folder, root)
    partial = root / f".latest.{os.getpid()}.partial"
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(relative, target_is_directory=True)
        if os.name == "nt":  # which replaces no link to a folder
            (root / "latest").unlink(missing_ok=True)
        os.replace(partial, root / "latest")
    except OSError:
        write_text(root / "latest", relative + "\n")


class RunFolder:
    """A run's folder at `path`, made where it does not exist, with one folder a step inside. `run` tells this run from all others.

    Names of files are relative to `path`. Work in progress lies in `.work/<step>/`, and goes when the step is complete.
    """

    def __init__(self, path: str | Path, run: str = "") -> None:
        self.path, self._run = Path(path), run
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{self.path} cannot be a run's folder: {error.filename} is a file; move it away, or choose another folder") from error

    # What is there

    @cached_property
    def _files(self) -> dict[str, Entry]:
        """The manifest's entries. Raises `UserError` where it is damaged, or another run's."""
        file = self.path / MANIFEST
        if not file.exists():
            return {}
        try:
            manifest = read_json(file, Manifest)
        except UserError as error:
            raise UserError(f"{error}; {ANEW}") from error
        if manifest.run != self._run:
            raise UserError(f"{file} belongs to another run; move {self.path} away, or {ANEW}")
        return manifest.files

    def check(self) -> None:
        """Sweep away what a cut run left half-written, and compare every other file with the manifest.

        To be called with the lock held, before anything is read. Raises `UserError` naming each file that is changed, cut, missing or foreign, or
        where processes differ in what run this is.
        """
        if told(self._run) != self._run:
            raise UserError(
                f"process {rank()} has other settings, data or model files than process 0; start all with the same command, on folders that all share"
            )
        self._check()

    @first_only
    def _check(self) -> None:
        self._sweep()
        problems = [problem for name, entry in self._files.items() if (problem := self._problem(name, entry))]
        found = {_unit(path.relative_to(self.path).as_posix()) for pattern in READ_AGAIN for path in self.path.glob(pattern)}
        foreign = sorted(found - set(map(_unit, self._files)))
        problems += [f"{self.path / name} was not written by this run: {MANIFEST} does not list it; move it away" for name in foreign]
        if problems:
            raise UserError("\n".join([*problems, f"put the files of {self.path} back as they were, or {ANEW}"]))
        self._forget()

    def _problem(self, name: str, entry: Entry) -> str | None:
        """What is wrong with a listed file. One that never got its name is none, nor a folder that never did: it is made again."""
        path, whole = self.path / name, self.path / _unit(name)
        if not path.exists():
            return f"{path} is missing" if whole != path and whole.exists() else None
        size = path.stat().st_size
        if size != entry.bytes:
            return f"{path} has {size:,} bytes; expected {entry.bytes:,}: it was cut or changed"
        return None if file_hash(path) == entry.sha256 else f"{path} was changed since this run wrote it; expected the SHA-256 {entry.sha256[:16]}..."

    def _sweep(self) -> None:
        """Remove half-written files and folders, the work of complete steps, and checkpoints that the manifest does not list."""
        listed = set(map(_unit, self._files))
        leftovers = [path for pattern in LEFTOVERS for path in self.path.glob(pattern)]
        for path in leftovers:
            _remove(path)
        self.drop(path for path in self.path.glob(f"{WORK}/*") if (self.path / path.name).exists())
        self.drop(path for path in self.path.glob(f"{WORK}/*/checkpoint-*") if path.relative_to(self.path).as_posix() not in listed)

    def has(self, name: str) -> bool:
        """Whether a file is there; after `check`, then it is whole."""
        return agreed((self.path / name).is_file)

    def step_path(self, number: int, name: str) -> Path:
        """The final folder of a step, such as `2-width`; steps count from 1."""
        return self.path / f"{number}-{name}"

    def is_complete(self, number: int, name: str) -> bool:
        """Whether a step is finished: its folder gets its final name only when it is whole."""
        return agreed(self.step_path(number, name).is_dir)

    # What is written

    @first_only
    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically, and its hash into the manifest."""
        path = self.path / name
        path.unlink(missing_ok=True)  # the manifest and a file of this name must never contradict each other
        self._list({name: Entry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))})
        write_bytes(path, data)

    def write_text(self, name: str, text: str) -> None:
        """`write_bytes` of UTF-8 text."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """`write_text` of a pydantic model or plain data as JSON."""
        self.write_text(name, as_json(value))

    def once(self, name: str, model: type[Model], make: Callable[[], Model]) -> Model:
        """The content of a JSON file, made by the first call: by all processes, which may share the work out, and what process 0 made is written."""
        if not self.has(name):
            self.write_json(name, make())
        return read_json(self.path / name, model)

    @contextmanager
    def writing(self, number: int, name: str) -> Iterator[Path]:
        """An empty temporary folder that takes the step's final name when the block ends well, replacing an older one and the step's `.work`.

        Where the block raises, the final name keeps what it had, and the temporary folder stays until the next attempt empties it. Of several
        processes this is process 0's alone.
        """
        final = self.step_path(number, name)
        partial = self.path / f".{final.name}.partial"
        _remove(partial)
        partial.mkdir()
        yield partial
        entries = self._entries(partial, final.name)
        self.drop([final])
        self._list(entries)
        os.replace(partial, final)
        sync(self.path)
        self.drop([self.path / WORK / final.name])

    @first_only
    def adopt(self, folder: Path) -> None:
        """List a folder that a library has written."""
        self._list(self._entries(folder, folder.relative_to(self.path).as_posix()))

    @first_only
    def drop(self, folders: Iterable[Path]) -> None:
        """Remove folders, each in one go: a kill must not leave one that the manifest lists and that lacks files."""
        there = [folder for folder in folders if folder.exists()]
        for folder in there:
            _remove_at_once(folder)
        if there:
            self._forget()

    def _entries(self, folder: Path, name: str) -> dict[str, Entry]:
        """Entries of all files in `folder`, flushed to the disk, as they will be under `name`."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in (*folder.rglob("*"), folder):
            sync(path)
        return {f"{name}/{path.relative_to(folder).as_posix()}": Entry(sha256=file_hash(path), bytes=path.stat().st_size) for path in files}

    def _forget(self) -> None:
        """Drop what is gone from the manifest."""
        if not all((self.path / name).exists() for name in self._files):
            self._list({})

    def _list(self, entries: dict[str, Entry]) -> None:
        """Put entries into the manifest in place of those of their units, and drop those of what is gone."""
        units = set(map(_unit, entries))
        kept = {name: entry for name, entry in self._files.items() if _unit(name) not in units and (self.path / name).exists()}
        self._files.clear()
        self._files.update(kept | entries)
        write_json(self.path / MANIFEST, Manifest(run=self._run, files=dict(sorted(self._files.items()))))

    @first_only
    def clear(self) -> None:
        """Remove everything but the lock: first what says that the run is finished, last the manifest, folders in one go: a kill does no harm."""
        for path in sorted(self.path.iterdir(), key=lambda path: (path.name == MANIFEST, path.name != "results.json")):
            if path.is_dir() and (path.name == WORK or not path.name.startswith(".")):  # others with a dot are half removed already
                _remove_at_once(path)
            elif path.name != ".lock":
                _remove(path)
        self.__dict__.pop("_files", None)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this run; the system frees it if the process dies. Raises `UserError` where another run holds it."""
        with ExitStack() as held:
            by_first(lambda: held.enter_context(self._locked()))
            yield

    def _locked(self) -> AbstractContextManager[object]:
        try:
            return filelock.FileLock(self.path / ".lock").acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"another process is running in {self.path}; wait until it has ended, or choose another folder") from None


def _unit(name: str) -> str:
    """What gets its name in one piece: a step's folder, a checkpoint, or else the file itself."""
    parts = name.split("/")
    if parts[0][0].isdigit():
        return parts[0]
    return "/".join(parts[:3]) if parts[0] == WORK and len(parts) > 3 else name


def _remove_at_once(folder: Path) -> None:
    """Remove a folder so that it is there whole or not at all."""
    old = folder.with_name(f".{folder.name}.old")
    _remove(old)
    os.replace(folder, old)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
