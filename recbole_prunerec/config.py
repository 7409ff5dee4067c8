"""RecBole's configuration, made from our settings: it parses nothing itself, and its traps are mended here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender

from recbole_prunerec.compared.systems import LOSS_TYPE, OURS, shared_keys
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import model_defaults, recbole_defaults, recbole_models

SPLITS = {
    "global_time": {"split": {"RS": [8, 1, 1]}, "order": "TO", "group_by": "none", "mode": "full"},
    "leave_one_out": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
}
RENAMED_IN_NUMPY = {
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "unicode": np.str_,
}


class RunConfig(Config):
    """RecBole's `Config` for one model of a run. `settings` are the run's, `cache` is where prepared tokens are kept.

    `helpers` are the trained models that the model learns from, by name, which whoever builds it puts there.
    """

    def __init__(self, settings: Settings, model: type[AbstractRecommender], folder: Path, cache: Path) -> None:
        self.settings, self.cache, self.teacher = settings, cache, teacher_folder(settings, folder)
        self.helpers: dict[str, AbstractRecommender] = {}
        values = recbole_values(settings, model.__name__, folder)
        self.binary = values.get("loss_type") == "BCE"
        if self.binary:  # RecBole knows BPR, for which it draws the same negatives
            values["loss_type"] = "BPR"
        super().__init__(model=model, dataset=settings.dataset, config_dict=values)

    def compatibility_settings(self) -> None:
        """RecBole uses names that numpy 2 dropped; only those that are missing are added."""
        for name, kind in RENAMED_IN_NUMPY.items():
            if name not in np.__dict__:
                setattr(np, name, kind)

    def _load_variable_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return dict(config_dict)  # RecBole would eval() every string

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}  # parsed already, by arguments.py

    def _init_device(self) -> None:
        """RecBole would overwrite CUDA_VISIBLE_DEVICES, and `device`; the GPU that `preflight` leaves visible is the first."""
        device = torch.device("cuda" if self.settings.device != "cpu" and torch.cuda.is_available() else "cpu")
        self.final_config_dict |= {"device": device, "use_gpu": device.type == "cuda", "single_spec": True, "local_rank": 0}


def teacher_folder(settings: Settings, folder: Path) -> Path | None:
    """Where the fine-tuned model lies: as given, or where the run in `folder` leaves it, if it does."""
    if settings.teacher:
        return Path(settings.teacher)
    return next((folder / f"{number}-finetune" for number, step in enumerate(settings.steps, 1) if step.do == "finetune"), None)


def recbole_values(settings: Settings, model: str, folder: Path) -> dict[str, Any]:
    """The keys that RecBole reads, for one model of a run.

    In a run with PruneRec the training keys of the top level are PruneRec's, and the other models take theirs from `baselines`, where those under a
    model's name are this model's alone.
    """
    given = dict(settings.recbole)
    if model not in ("PruneRec", "Popularity"):
        given |= shared_keys(settings.baselines, (*OURS, *recbole_models())) | settings.baselines.get(model, {})
    if model in OURS:
        student = {**model_defaults(model), **given}.get("student")
        given = {**model_defaults(model, student), **given, "loss_type": LOSS_TYPE[model]}
    user, item, time = (
        given.get(key, default) for key, default in (("USER_ID_FIELD", "user_id"), ("ITEM_ID_FIELD", "item_id"), ("TIME_FIELD", "timestamp"))
    )
    columns = [user, item, item + "_list"] if given.get("benchmark_filename") else [user, item, time]
    values = {
        **{key: getattr(settings, key) for key in ("data_path", "seed", "split", "title_field", "MAX_ITEM_LIST_LENGTH", "show_progress")},
        "metrics": list(settings.metrics),
        "topk": list(settings.topk),
        "checkpoint_dir": str(folder / "baselines" / model),
        "eval_args": SPLITS[settings.split],
        "load_col": {"inter": columns},
        **given,
    }
    if {**recbole_defaults([model]), **values}.get("loss_type") == "CE":
        values["train_neg_sample_args"] = None  # RecBole refuses cross-entropy with its own default
    return values
