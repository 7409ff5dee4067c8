"""One run, one folder: files and step folders that are either whole or absent, a lock, hashes, and the `latest` pointer.

Files are written under a temporary name beside the final one, flushed to the disk, and renamed; a step's folder likewise. A run that is cut
therefore never leaves something that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import filelock
from pydantic import BaseModel, ValidationError

from recbole_prunerec.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def _sync(path: Path) -> None:
    """Ask the system to put a file's or a folder's content on the disk. Windows cannot do so with a folder, nor with a file opened for reading."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically: after a crash at any point `path` holds the old content or the new, whole. Missing parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of UTF-8 text, line ends as given."""
    write_bytes(path, text.encode())


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of a pydantic model or plain data as indented JSON. Raises `ValueError` for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, model: type[Model]) -> Model:
    """Read a JSON file into a pydantic model. Raises `UserError` naming the file where it is missing, damaged or of another form."""
    try:
        return model.model_validate_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a JSON file ({model.__name__})") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged or was written by another version; expected {model.__name__}: {error}") from error


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """SHA-256 of a pydantic model or plain data by its JSON with sorted keys, as 64 hexadecimal digits: the same for any order of keys."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def point_latest(root: str | Path, folder: str | Path) -> None:
    """Make `root/latest` a symbolic link to `folder`, replacing an older one atomically; where links are refused, a text file with the path."""
    root, relative = Path(root), os.path.relpath(folder, root)
    partial = root / f".latest.{os.getpid()}.partial"
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(relative, target_is_directory=True)
    except OSError:
        write_text(root / "latest", relative + "\n")
    else:
        os.replace(partial, root / "latest")


class RunFolder:
    """A run's folder at `path`, made where it does not exist, with one folder a step inside."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def step_path(self, number: int, name: str) -> Path:
        """The final folder of a step, such as `2-width`; steps count from 1."""
        return self.path / f"{number}-{name}"

    def is_complete(self, number: int, name: str) -> bool:
        """Whether a step is finished: its folder gets its final name only when it is whole."""
        return self.step_path(number, name).is_dir()

    @contextmanager
    def writing(self, number: int, name: str) -> Iterator[Path]:
        """An empty temporary folder that takes the step's final name when the block ends well, replacing an older one.

        Where the block raises, the final name keeps what it had, and the temporary folder stays until the next attempt empties it.
        """
        final = self.step_path(number, name)
        partial, old = (self.path / f".{final.name}.{state}" for state in ("partial", "old"))
        for leftover in (partial, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir()
        yield partial
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        if final.exists():
            os.replace(final, old)
        os.replace(partial, final)
        _sync(self.path)
        if old.exists():
            shutil.rmtree(old)

    def clear(self) -> None:
        """Remove everything but the lock."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; the system frees it if the process dies. Raises `UserError` where another process holds it."""
        try:
            held = filelock.FileLock(self.path / ".lock").acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"another process is running in {self.path}; wait until it has ended, or choose another folder") from None
        with held:
            yield
