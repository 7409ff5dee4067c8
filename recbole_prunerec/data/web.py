"""A file from the web: what the server says of it, and its bytes, which go on where they were cut. Patience is short, and nothing is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from recbole_prunerec import __version__

PATIENCE = 30.0  # seconds until a server must have answered, or sent more
CONNECTIONS = 3  # at most; each goes on where the one before broke
CHUNK = 2**20  # bytes


class Unreachable(Exception):
    """A file cannot be had; the message is the reason, in a few words."""


class Remote(NamedTuple):
    """A file as its server describes it."""

    url: str
    bytes: int
    version: str  # its ETag, else the time of its last change; empty where neither is told


def remote_file(url: str) -> Remote:
    """What the server says of `url`. Raises `Unreachable`, also where the size is not told."""
    with _opened(Request(url, method="HEAD")) as answer:
        headers = answer.headers
    size = headers.get("Content-Length", "")
    if not size.isdecimal():
        raise Unreachable("the server does not say how large the file is")
    return Remote(url, int(size), headers.get("ETag") or headers.get("Last-Modified") or "")


def fetch(file: Remote, part: Path, show_progress: bool) -> None:
    """Write `file` into `part`, from where that ends on; where the server cannot begin in the middle, or the file is another by now, from the start.

    Raises `Unreachable` where connections break too often; `part` then holds what has come.
    """
    for connection in range(1, CONNECTIONS + 1):
        try:
            _append(file, part, show_progress)
        except Unreachable:
            if connection == CONNECTIONS:
                raise
        else:
            return


def _append(file: Remote, part: Path, show_progress: bool) -> None:
    """What one connection brings of the file. Raises `Unreachable` where it is not the rest."""
    done = part.stat().st_size if part.exists() else 0
    if done == file.bytes:
        return
    wanted = {"Range": f"bytes={done}-", **({"If-Range": file.version} if file.version else {})} if done else {}
    with _opened(Request(file.url, headers=wanted)) as answer:
        if answer.status != 206:
            done = 0
        _check_length(answer, file, done)
        name = file.url.rpartition("/")[2]
        with (
            part.open("ab" if done else "wb") as out,
            tqdm(
                desc=name, total=file.bytes, initial=done, unit="B", unit_scale=True, unit_divisor=1024, disable=not show_progress, leave=False
            ) as bar,
        ):
            while chunk := _read(answer, file.bytes - done):
                out.write(chunk)
                out.flush()  # a kill is to lose nothing that has come
                done += len(chunk)
                bar.update(len(chunk))
            os.fsync(out.fileno())
    if done != file.bytes:
        raise Unreachable(f"the connection ended after {done:,} of {file.bytes:,} bytes")


def _check_length(answer: HTTPResponse, file: Remote, done: int) -> None:
    """Raises `Unreachable` where the answer is not the file from byte `done` on."""
    promised = answer.headers.get("Content-Range") if done else answer.headers.get("Content-Length")
    if promised != (f"bytes {done}-{file.bytes - 1}/{file.bytes}" if done else str(file.bytes)):
        raise Unreachable(f"the server now promises {promised} of a file that had {file.bytes:,} bytes")


def _opened(request: Request) -> HTTPResponse:
    request.add_header("User-Agent", f"recbole-prunerec/{__version__}")
    with _online():
        return cast(HTTPResponse, urlopen(request, timeout=PATIENCE))


def _read(answer: HTTPResponse, missing: int) -> bytes:
    """What has come by now, of the `missing` bytes at most; empty at the end."""
    with _online():
        return answer.read1(min(CHUNK, missing))


@contextmanager
def _online() -> Iterator[None]:
    """Errors of the network as `Unreachable`; those of the disk, elsewhere, stay what they are."""
    try:
        yield
    except HTTPError as error:
        raise Unreachable(f"the server says {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__) from error
