"""Files that are either whole or as they were, and their hashes: written under a temporary name beside the final one, flushed, and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from recbole_prunerec.errors import UserError

MANIFEST = "manifest.json"  # of a run's folder: its files with their hashes

Model = TypeVar("Model", bound=BaseModel)


def sync(path: Path) -> None:
    """Ask the system to put a file's or a folder's content on the disk. Windows cannot do so with a folder, nor with a file opened for reading."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write in place of `path`, which it becomes when the block ends well: after a crash at any point `path` holds the old content or the
    new, whole. Missing parent folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file, as `writing` does."""
    with writing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of UTF-8 text, line ends as given."""
    write_bytes(path, text.encode())


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def as_json(value: Any) -> str:
    """A pydantic model or plain data as indented JSON. Raises `ValueError` for NaN and infinities, which JSON does not have."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of a pydantic model or plain data as indented JSON. Raises `ValueError` for NaN and infinities, which JSON does not have."""
    write_text(path, as_json(value))


def read_json(path: str | Path, model: type[Model]) -> Model:
    """Read a JSON file into a pydantic model. Raises `UserError` naming the file where it is missing, damaged or of another form."""
    try:
        return model.model_validate_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a JSON file ({model.__name__})") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors()[:3])
        raise UserError(f"{path} is damaged or was written by another version; expected {model.__name__}: {problems}") from error


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """SHA-256 of a pydantic model or plain data by its JSON with sorted keys, as 64 hexadecimal digits: the same for any order of keys."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()
