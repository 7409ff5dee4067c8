"""What takes torch or the network to tell, asked before data are read: whether the device is there, a backbone on the hub, and room on the disk.

Only of a run that is not finished: a table that is shown again needs none of it, and `--dry_run` device and attention alone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from transformers.utils import is_flash_attn_2_available

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.files import backbone_config, folder_config
from recbole_prunerec.backbone.hub import hub_folder
from recbole_prunerec.backbone.load import FLASH
from recbole_prunerec.distributed import by_first
from recbole_prunerec.errors import UserError, problems_of
from recbole_prunerec.estimate import disk, sizes_by_step
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.settings import Settings
from recbole_prunerec.validation.fit import misfits
from recbole_prunerec.validation.on_disk import disk_problems

BESIDE_MODELS = 2**26  # bytes: logs, ranks, prepared tokens
VISIBLE = "CUDA_VISIBLE_DEVICES"
VISIBLE_AT_FIRST = os.environ.get(VISIBLE)


def preflight(settings: Settings, path: Path) -> None:
    """Raises `UserError` with all that stands against a run in the folder `path`. What lies there already takes no more room; it need not exist."""
    problems = problems_of(
        lambda: use_device(settings.device),
        lambda: check_attention(settings),
        lambda: by_first(lambda: _check_backbone_and_room(settings, path)),
    )
    if problems:
        raise UserError("\n".join(problems))


@cache
def use_device(name: str) -> None:
    """Let this process see one device alone, since transformers' Trainer takes every GPU that it sees; RecBole's config follows.

    `name` is "cpu", "cuda", "cuda:1", or "auto", the first GPU where there is one. Raises `UserError` where there is no such GPU. Of processes that a
    launcher has started each takes the GPU of its number on this machine, and sees the others. Only before CUDA is first used.
    """
    if "LOCAL_RANK" in os.environ:
        _take_own_gpu(name)
        return
    if VISIBLE_AT_FIRST is None:
        os.environ.pop(VISIBLE, None)
    else:
        os.environ[VISIBLE] = VISIBLE_AT_FIRST
    count, index = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and not count:
        reason = f"torch {torch.__version__} is built without CUDA" if torch.version.cuda is None else f"none is visible ({VISIBLE}, nvidia-smi)"
        raise UserError(f"device={name}: there is no GPU, {reason}; choose device=cpu, or leave it out")
    if name.startswith("cuda") and index >= count:
        raise UserError(f"device={name}: there {'is one GPU' if count == 1 else f'are {count} GPUs'}; choose {_listed(count)}")
    if name == "cpu":
        os.environ[VISIBLE] = ""
    elif count:
        os.environ[VISIBLE] = VISIBLE_AT_FIRST.split(",")[index].strip() if VISIBLE_AT_FIRST else str(index)


def check_attention(settings: Settings) -> None:
    """Raises `UserError` where flash attention is asked for and cannot run here: a GPU and the package flash_attn are needed."""
    if settings.attn_implementation == FLASH and not is_flash_attn_2_available():
        raise UserError(f"attn_implementation={FLASH} needs a GPU and the package flash_attn, of which one is not there; choose sdpa")


def _take_own_gpu(name: str) -> None:
    """What `use_device` does for one of several processes."""
    if ":" in name:
        raise UserError(f"device={name} is one GPU for every process; choose device=cuda, and tell the launcher which are visible: {VISIBLE}=0,1")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return
    count, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > count:
        raise UserError(f"device={name}: {processes} processes on a machine with {_counted(count)}; start one a GPU, or choose device=cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _counted(count: int) -> str:
    return "one GPU" if count == 1 else f"{count} GPUs" if count else "no GPU"


def _listed(count: int) -> str:
    return "device=cuda:0" if count == 1 else f"device=cuda:0 to cuda:{count - 1}"


def _check_backbone_and_room(settings: Settings, path: Path) -> None:
    """A backbone on the hub is put into the local cache and judged as a folder is; every other has been judged already. Then the disk is asked."""
    problems: list[str] = []
    needed = BESIDE_MODELS
    if "PruneRec" in settings.model:
        key, name = settings.start
        config = backbone_config(key, name)
        if config is None:
            config = folder_config(f"{key}={name}", hub_folder(name, key, revision=settings.revision))
            problems += misfits(settings, settings.steps, Shape.of_config(config))
        sizes = sizes_by_step(settings.steps, Sizes.of_config(config, f"{key}={name}"), Shape.of_config(config))
        needed += disk(settings, sizes).peak
    with suppress(OSError):  # a file may go meanwhile
        needed -= sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    problems += disk_problems(settings.checkpoint_dir, needed)
    if problems:
        raise UserError("\n".join(problems))
