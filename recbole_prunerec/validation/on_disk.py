"""What the disk tells before anything heavy is imported: whether the data are there, and whether results can be written."""

from __future__ import annotations

import shutil
from os.path import exists, isdir  # unlike those of Path, False for a name that no folder can have
from pathlib import Path
from tempfile import TemporaryFile

from recbole_prunerec.errors import nearest
from recbole_prunerec.shipped import recbole_urls


def has_data(dataset: str, data_path: str) -> bool:
    """Whether the interactions are there: one file, or benchmark_filename's parts. ml-100k comes with RecBole."""
    folder = Path(data_path) / dataset
    return dataset == "ml-100k" or (isdir(folder) and any(file.name.startswith(f"{dataset}.") for file in folder.glob("*.inter")))


def dataset_problems(dataset: str, data_path: str) -> list[str]:
    """Whether the data are there, or RecBole has them by name, so that `data.download` brings them."""
    path, folder, urls = Path(dataset), Path(data_path) / dataset, recbole_urls()
    if path.name != dataset:
        return [f"dataset={dataset} is a path; write --data_path={path.parent} --dataset={path.name}"]
    if has_data(dataset, data_path):
        return []
    free = not exists(folder) or (isdir(folder) and not any(folder.iterdir()))
    if dataset in urls and free:
        return disk_problems(data_path, 0, "data_path")
    there = sorted({"ml-100k", *(file.parent.name for file in (Path(data_path).glob("*/*.inter") if isdir(data_path) else ()))})
    wanted = f"{data_path.rstrip('/')}/{dataset}/{dataset}.inter"
    if dataset in urls:
        hint = f"{folder} is in the way; move it elsewhere, and RecBole's dataset of this name is fetched"
    else:
        hint = f"found {', '.join(there)}{nearest(dataset, [*urls, *there])}"
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
        return [f"{got} has {amount(free)} free, and the run needs about {amount(needed_bytes)}; make room, or choose another folder"]
    return []


def amount(count: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
