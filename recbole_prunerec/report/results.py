"""What a run measured, as data: the models of results.json, and the versions and device that its figures depend on."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch

PACKAGES = ("recbole", "torch", "transformers", "numpy", "pandas", "recbole-prunerec")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Parameters(_Frozen):
    """Parameter counts (METHOD 6) and their shares of the original model's, 0..1; a share is None where there is no original."""

    non_embedding: int
    total: int
    share_non_embedding: float | None = None
    share_total: float | None = None


class Measured(_Frozen):
    """What ranking test rows gives and costs: `metrics` are means over the rows by RecBole's names (`hit@10`), `note` is what a reader must know."""

    test_rows: int
    metrics: dict[str, float]
    flops_per_user: float | None = None
    seconds_per_user: float
    peak_memory_bytes: int
    note: str | None = None


class Row(Measured):
    """One system, or one step of PruneRec, with what was measured of it.

    `retention` is METHOD 5's share of the teacher, `restored` is None where a step has nothing to restore. `criterion` scored what was cut.
    """

    system: str
    step: int | None = None
    step_name: str | None = None
    criterion: str | None = None
    restored: bool | None = None
    retention: float | None = None
    step_seconds: float | None = None  # of the whole step, ranking included; None where it was cut, too
    training_memory_bytes: int | None = None  # the most while the step trained
    parameters: Parameters


class Comparison(_Frozen):
    """The difference `system` minus `against` in the row mean of a metric, with its interval by a cluster bootstrap over users."""

    system: str
    against: str
    metric: str
    difference: float
    low: float
    high: float
    confidence: float = 0.95
    users: int
    rows: int


class Results(_Frozen):
    """The content of results.json. `worthless` marks a smoke run, whose figures say nothing about quality."""

    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    dataset: dict[str, Any]
    protocol: dict[str, Any]
    versions: dict[str, str]
    device: str
    command: str
    seed: int
    preset: str
    worthless: bool = False


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that figures depend on, read without importing them."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def device_name(device: torch.device | str | None = None) -> str:
    """The GPU's name, or the CPU's and the number of torch's threads; by default of the first GPU where there is one."""
    import torch

    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
