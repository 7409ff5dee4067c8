"""What the disk tells before anything heavy is imported: whether the data are there, and whether results can be written."""

from __future__ import annotations

import shutil
from os.path import isdir  # unlike that of Path, False for a name that no folder can have
from pathlib import Path
from tempfile import TemporaryFile

from recbole_prunerec.errors import nearest


def dataset_problems(dataset: str, data_path: str) -> list[str]:
    """Whether the data are there: ml-100k comes with RecBole."""
    if dataset == "ml-100k":
        return []
    path = Path(dataset)
    if path.name != dataset:
        return [f"dataset={dataset} is a path; write --data_path={path.parent} --dataset={path.name}"]
    folder = Path(data_path) / dataset
    if isdir(folder) and any(file.name.startswith(f"{dataset}.") for file in folder.glob("*.inter")):  # one, or benchmark_filename's parts
        return []
    there = sorted({"ml-100k", *(file.parent.name for file in (Path(data_path).glob("*/*.inter") if isdir(data_path) else ()))})
    wanted = f"{data_path.rstrip('/')}/{dataset}/{dataset}.inter"
    hint = f"found {', '.join(there)}{nearest(dataset, there)}"
    return [f"dataset={dataset} is not there: expected {wanted} and .item (RecBole's atomic files); {hint}"]


def disk_problems(path: str | Path, needed_bytes: int, key: str = "checkpoint_dir") -> list[str]:
    """Why the folder `path`, given as `key`, cannot take `needed_bytes`: not a folder, not writable, or too little room. It need not exist yet."""
    got, path = f"{key}={path}", Path(path).absolute()
    try:
        above = next(folder for folder in (path, *path.parents) if folder.exists())
        if not above.is_dir():
            where = "" if above == path else f" cannot be made: {above}"
            return [f"{got}{where} is a file; choose another folder"]
        with TemporaryFile(dir=above):
            pass
        free = shutil.disk_usage(above).free
    except OSError as error:
        return [f"{got} cannot be written to ({error.strerror}); choose another folder, or see to its rights"]
    if free < needed_bytes:
        return [f"{got} has {_amount(free)} free, and the run needs about {_amount(needed_bytes)}; make room, or choose another folder"]
    return []


def _amount(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
