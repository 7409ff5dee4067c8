"""What takes torch or the network to tell, asked before any data are read: whether the device is there, and a backbone on the hub."""

from __future__ import annotations

import os
from functools import cache

import torch

from recbole_prunerec.backbone.files import backbone_config, folder_config
from recbole_prunerec.backbone.hub import hub_folder
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.budget import Shape, shape_problems
from recbole_prunerec.settings import Settings
from recbole_prunerec.validation.on_disk import room_problems

VISIBLE = "CUDA_VISIBLE_DEVICES"
VISIBLE_AT_FIRST = os.environ.get(VISIBLE)


def preflight(settings: Settings) -> None:
    """Raises `UserError` with all that stands against a run."""
    problems: list[str] = []
    for check in (lambda: use_device(settings.device), lambda: _fetch_backbone(settings)):
        try:
            check()
        except UserError as error:
            problems += str(error).splitlines()
    if problems:
        raise UserError("\n".join(problems))


def check_catalogue(settings: Settings, items: int) -> None:
    """Raises `UserError` where the settings ask for more items than the data have, which is known once they are read."""
    asked = {"topk": max(settings.topk)} | ({"ranking.beams": settings.ranking.beams} if "PruneRec" in settings.model else {})
    problems = [
        f"{key}={count} is more than the {items:,} items that dataset={settings.dataset} has after filtering; choose at most {items}"
        for key, count in asked.items()
        if count > items
    ]
    if problems:
        raise UserError("\n".join(problems))


@cache
def use_device(name: str) -> None:
    """Let this process see one device alone, since transformers' Trainer takes every GPU that it sees; RecBole's config follows.

    `name` is "cpu", "cuda", "cuda:1", or "auto", the first GPU where there is one. Raises `UserError` where there is no such GPU. A launcher, which
    gives every process its own, is left to do so. Only before CUDA is first used.
    """
    if "LOCAL_RANK" in os.environ:
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


def _listed(count: int) -> str:
    return "device=cuda:0" if count == 1 else f"device=cuda:0 to cuda:{count - 1}"


def _fetch_backbone(settings: Settings) -> None:
    """A backbone on the hub is put into the local cache and judged as a folder is; every other has been judged already."""
    key, name = ("teacher", settings.teacher) if settings.teacher else ("backbone", settings.backbone)
    if "PruneRec" not in settings.model or backbone_config(key, name) is not None:
        return
    config = folder_config(f"{key}={name}", hub_folder(name, key))
    problems = shape_problems(settings.steps, Shape.of_config(config))
    problems += room_problems(settings.checkpoint_dir, settings.model, settings.dataset, config, len(settings.steps))
    if problems:
        raise UserError("\n".join(problems))
