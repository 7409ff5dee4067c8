"""The files of a dataset in RecBole's zip of it, under the dataset's own name. Nothing else is taken out, and no path in the zip is followed."""

from __future__ import annotations

import shutil
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from recbole_prunerec.storage import sync
from recbole_prunerec.validation.sentences import listed, short

KINDS = (".inter", ".item")
DAMAGED = (BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error)  # RuntimeError: it asks for a password


class Unusable(Exception):
    """A zip is not what it should be; the message says why, a line for each problem."""


def wanted_files(archive: Path, stem: str, name: str) -> dict[str, ZipInfo]:
    """What `archive` holds of a dataset, by the names that it is to have: `<name>.inter`, `<name>.item`, or parts such as `<name>.train.inter`.

    In the zip they are called after its only file of interactions, or after `stem`. Raises `Unusable` with all that is wrong.
    """
    try:
        with ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
        if not all(0 <= member.header_offset < archive.stat().st_size for member in members):
            raise BadZipFile("its list of files leads out of it")
    except DAMAGED as error:
        raise Unusable(f"is no zip, or is damaged ({error})") from error
    problems = [f"holds {short(member.filename)}, {reason}" for member in members if (reason := _danger(member))]
    names = [(PurePosixPath(member.filename).name, member) for member in members]
    inter = [file for file, _ in names if file.endswith(".inter") and not file.startswith(".")]
    stem = inter[0].removesuffix(".inter") if len(inter) == 1 else stem
    found: dict[str, ZipInfo] = {}
    for file, member in names:
        if file.startswith(f"{stem}.") and file.endswith(KINDS):
            if name + file.removeprefix(stem) in found:
                problems.append(f"holds {file} twice")
            found[name + file.removeprefix(stem)] = member
    if not any(file.endswith(".inter") for file in found):
        problems.append(f"has no {stem}.inter; it has {listed([member.filename for member in members]) or 'nothing'}")
    if problems:
        raise Unusable("\n".join(problems))
    return found


def unzip(archive: Path, files: Mapping[str, ZipInfo], folder: Path) -> None:
    """Write `files` of `archive` into `folder`, by name; of each no more than the zip declares. Raises `Unusable` where it is damaged."""
    with ZipFile(archive) as opened:
        for name, member in files.items():
            try:
                with opened.open(member) as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
            except DAMAGED as error:
                raise Unusable(f"is damaged: {short(member.filename)} cannot be taken out ({error})") from error
            sync(folder / name)


def _danger(member: ZipInfo) -> str:
    """Why a zip with this member is not trusted; empty where there is no reason."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or member.filename[1:2] == ":":
        return "a path that leads out of it"
    return "a link" if stat.S_ISLNK(member.external_attr >> 16) else ""
