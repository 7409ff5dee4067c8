"""What the disk tells before anything heavy is imported: whether the data are there, and whether results can be written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os.path import isdir  # unlike that of Path, False for a name that no folder can have
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from recbole_prunerec.errors import nearest

BESIDE_MODELS = 2**26  # bytes: logs, ranks, prepared tokens


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


def room_problems(folder: str, models: Sequence[str], dataset: str, config: Mapping[str, Any] | None, steps: int) -> list[str]:
    """Why `folder`, the run's checkpoint_dir, cannot take the results of so many steps on the backbone of `config`. Roughly.

    Counted are a model a step, and three checkpoints with two moments of Adam's each, all in float32; what a run has written already is not.
    """
    needed = BESIDE_MODELS
    if config is not None:
        hidden, embeddings = config["hidden_size"], 1 if config.get("tie_word_embeddings") else 2
        layers = config["num_hidden_layers"] * hidden * (4 * hidden + 3 * config["intermediate_size"])
        needed += 4 * (embeddings * config["vocab_size"] * hidden + layers) * (steps + 9)
    with suppress(OSError):  # the folder is not there, or cannot be read, which is told below
        begun = [run for run in Path(folder).iterdir() if run.name.startswith(f"{'-'.join(models)}-{dataset}-")]
        needed -= sum(file.stat().st_size for run in begun for file in run.rglob("*") if file.is_file())
    return disk_problems(folder, needed)


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
