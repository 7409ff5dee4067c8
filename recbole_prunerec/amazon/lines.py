"""Lines of a text file, plain or gzip, with their numbers, in blocks that fit into memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from recbole_prunerec.errors import UserError
from recbole_prunerec.validation.sentences import short

BLOCK = 2**25  # bytes of text at a time
START = 2**16  # those that are enough to see what a file holds
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"  # which some programs put before UTF-8
OTHERS = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by the bytes that such a file begins with


class Block(NamedTuple):
    """Lines in the file's order; blank ones are left out. Both arrays have the shape (line,)."""

    numbers: np.ndarray  # places in the file, from 1
    texts: np.ndarray  # str, without the line's end
    undecoded: list[int]  # numbers of the lines that are not UTF-8, which are left out


def blocks_ahead(path: Path, progress: Callable[[int], object] = int) -> Iterator[Block]:
    """`blocks`, of which the next one is read while the caller works on one."""
    coming = blocks(path, progress)
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, coming, None)
        while (block := following.result()) is not None:
            following = reader.submit(next, coming, None)
            yield block


def no_file(path: Path) -> str | None:
    """Why there is no file at `path` to read lines from; None where there is one."""
    return None if path.is_file() else f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a file of lines, plain or .gz"


def blocks(path: Path, progress: Callable[[int], object] = int, size: int | None = None) -> Iterator[Block]:
    """The lines of `path`, `size` bytes of text at a time. `progress` is told how many bytes of the file were read since it was last called.

    Raises `UserError` where it is missing or empty, is compressed otherwise than its name says or than by gzip, is cut, or has a line over 32 MiB.
    """
    if problem := no_file(path):
        raise UserError(problem)
    with path.open("rb") as raw:
        compressed = _is_gzip(path, raw.read(8))
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if compressed else raw
        first, told = 1, 0
        for data in _whole_lines(path, file, size or BLOCK):  # type: ignore[arg-type]
            progress(raw.tell() - told)
            told = raw.tell()
            block, lines = _block(data.removeprefix(BOM) if first == 1 else data, first)
            yield block
            first += lines


def _is_gzip(path: Path, start: bytes) -> bool:
    if not start:
        raise UserError(f"{path} is empty; expected a line for each record")
    other = next((name for magic, name in OTHERS.items() if start.startswith(magic)), None)
    if other:
        raise UserError(f"{path} is a {other} file; unpack it, or give a .gz file")
    if path.suffix == ".gz" and not start.startswith(GZIP):
        shown = short(start.decode("utf-8", "backslashreplace"))
        raise UserError(f"{path} is not gzip, though it is called so: it begins with {shown}; fetch it again, or rename it if it is plain text")
    return start.startswith(GZIP)


def _whole_lines(path: Path, file: BinaryIO, size: int) -> Iterator[bytes]:
    """The content in parts that end where lines do."""
    rest = b""
    try:
        while data := file.read(size):
            end = data.rfind(b"\n")
            if end >= 0:
                yield rest + data[:end]
                rest = data[end + 1 :]
            else:
                rest += data
            if len(rest) > BLOCK:
                raise UserError(f"{path} has a line that is longer than {BLOCK >> 20} MiB; expected a record a line")
    except EOFError:
        raise UserError(f"{path} is cut: its gzip stream has no end; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None
    if rest:
        yield rest


def _block(data: bytes, first: int) -> tuple[Block, int]:
    """The lines of `data`, of which the first has the number `first`, and how many there are."""
    undecoded = list[int]()
    try:
        text = data.decode().removesuffix("\r")
        lines = (text.replace("\r\n", "\n") if "\r" in text else text).split("\n")
    except UnicodeDecodeError:
        found = [_decoded(line) for line in data.split(b"\n")]
        undecoded = [number for number, line in zip(count(first), found, strict=False) if line is None]
        lines = [line or "" for line in found]
    texts = np.empty(len(lines), dtype=object)
    texts[:] = lines
    kept = (texts != "") & ~np.fromiter(map(str.isspace, lines), dtype=bool, count=len(lines))
    return Block(np.arange(first, first + len(lines))[kept], texts[kept], undecoded), len(lines)


def _decoded(line: bytes) -> str | None:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        return None
