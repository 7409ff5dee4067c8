"""Rows of models that another run has trained: the same settings, data and machine would give the same again, so what that run left is taken.

A file a row in `<checkpoint_dir>/cache/rows/`: the weights, with the row, its ranks and the run's folder beside them, under a checksum.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from recbole_prunerec import __version__
from recbole_prunerec.checked import read_checked, write_checked
from recbole_prunerec.compared.systems import NEEDS, OURS, READERS, TAUGHT
from recbole_prunerec.config import recbole_values
from recbole_prunerec.identity import data_hashes, model_hashes
from recbole_prunerec.report.results import Row, device_name
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import model_defaults, recbole_defaults
from recbole_prunerec.storage import hash_of

# What the figures of other models do not depend on: PruneRec's own settings, and those that say what else is in the table.
PRUNEREC_ALONE = (
    *("model", "preset", "compare", "worthless", "step_test_rows", "valid_rows"),
    *("backbone", "revision", "teacher", "softmax", "template", "max_prompt_tokens", "max_title_tokens", "title_tokens", "short_titles"),
    *("packing", "packing_titles", "packing_stride"),
    *("epochs", "learning_rate", "schedule", "warmup_steps", "train_batch_size", "weight_decay", "adam_betas", "clip", "stopping_step", "precision"),
    *("calibration_samples", "steps", "restore", "ranking", "tutor"),
)
THROUGH_RECBOLE = ("baselines", "recbole")  # settings that a model is given as RecBole's keys
NO_FIGURE = ("data_path", "checkpoint_dir", "show_progress")  # RecBole's keys on which no figure depends

logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What the training of a model has left."""

    row: Row
    ranks: str  # the content of its file in ranks/
    weights: dict[str, Tensor]  # on the CPU, contiguous
    run: Path  # the folder of the run that trained it


def shared_file(cache: Path, settings: Settings, name: str) -> Path | None:
    """Where runs share the row of the model called `name`. None: they do not, since it is taught by the run's own model, or nothing is trained."""
    return None if name in ("PruneRec", "Popularity", *TAUGHT) else cache / "rows" / f"{name}-{_key(settings, name)[:16]}.safetensors"


def _key(settings: Settings, name: str) -> str:
    """A hash of all that the row depends on."""
    known = recbole_defaults([name])
    others = {key for other in OURS for key in model_defaults(other)} - set(known)
    values = {**known, **recbole_values(settings, name, Path())}
    common = {key: value for key, value in settings.identity().items() if key not in (*PRUNEREC_ALONE, *THROUGH_RECBOLE)}
    source = settings.teacher or settings.backbone
    language = [model_hashes(source) or source, settings.model_dump(include={"revision", "restore"}, mode="json")]  # what READERS start from
    return hash_of(
        [
            name,
            {key: repr(value) for key, value in values.items() if key not in (*NO_FIGURE, *others)},
            common,
            data_hashes(settings),
            [_key(settings, helper) for helper in NEEDS.get(name, ())],
            language if name in READERS else None,
            device_name(),
            __version__,
        ]
    )


def shared(path: Path | None, fresh: bool, logs: Path, train: Callable[[], Trained]) -> Trained:
    """The row at `path`, with the TensorBoard logs of its training in `logs`; where there is none, or with `fresh`, `train` makes it.

    Without a `path` it is made for this run alone.
    """
    if path is None:
        return train()
    found = None if fresh else read_checked(path)
    if found is None:
        trained = train()
        write_checked(path, trained.weights, {"row": trained.row.model_dump_json(), "ranks": trained.ranks, "run": str(trained.run.resolve())})
        return trained
    weights, texts = found
    trained = Trained(Row.model_validate_json(texts["row"]), texts["ranks"], weights, Path(texts["run"]))
    logger.info("%s: as %s trained it, with the same settings and data (--fresh trains it again)", trained.row.system, trained.run)
    theirs = trained.run / logs.parent.name / logs.name
    if theirs.is_dir() and theirs != logs.resolve():  # of a run that is gone on with they are there
        shutil.copytree(theirs, logs, dirs_exist_ok=True)
    return trained
