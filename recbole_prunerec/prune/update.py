"""The file of new weights that a plan may name, beside it: written with its hash, and read only where that is right."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from recbole_prunerec.backbone.weights import UPDATE
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.plan import Plan, WeightFile


def with_update(plan: Plan, weights: Mapping[str, Tensor]) -> tuple[Plan, bytes]:
    """`plan` with the name and hash of a file of `weights`, and that file's content."""
    data = save({name: weight.contiguous().cpu() for name, weight in weights.items()})
    return plan.model_copy(update={"update": WeightFile(name=UPDATE, sha256=hashlib.sha256(data).hexdigest())}), data


def read_update(plan: Plan, folder: Path) -> dict[str, Tensor]:
    """The new weights of a plan that lies in `folder`; none where it names no file. Raises `UserError` where that is missing or damaged."""
    if plan.update is None:
        return {}
    path = folder / plan.update.name
    try:
        data = path.read_bytes()
    except OSError:
        raise UserError(f"{path} is missing: the plan beside it changes weights by it; put it back, or make the plan anew") from None
    if hashlib.sha256(data).hexdigest() != plan.update.sha256:
        raise UserError(f"{path} is damaged: its SHA-256 is not the plan's {plan.update.sha256[:16]}...; put it back, or make the plan anew")
    return load(data)
