"""RecBole's own keys: which of them can be set here, and what their values must be. RecBole itself takes anything, and fails late or not at all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from recbole_prunerec.compared.systems import STUDENTS
from recbole_prunerec.errors import nearest
from recbole_prunerec.settings import LARGEST, Settings
from recbole_prunerec.shipped import recbole_data_keys
from recbole_prunerec.validation.sentences import GROUPS, STEPS, show, unknown

REFUSED = {
    "eval_args": "the split is chosen with split=global_time or split=leave_one_out, and the ranking is always full",
    "repeatable": "exclude_seen says whether the items of a history leave its ranking",
    "save_dataset": "nothing is cached as a pickle; preparing the data takes seconds",
    "dataset_save_path": "nothing is loaded from a pickle",
    "save_dataloaders": "nothing is cached as a pickle; preparing the data takes seconds",
    "dataloaders_save_path": "nothing is loaded from a pickle",
    "numerical_features": "only user, item and time are loaded",
    "preload_weight": "only user, item and time are loaded",
    "load_col": "user, item and time are loaded by USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD, titles by title_field",
}
# As RecBole's keys of the data: the same for every model of a table.
SHARED = {"metrics", "topk", "valid_metric", "data_path", "checkpoint_dir", "gpu_id", "use_gpu", "show_progress"}
# RecBole takes null beside the type of its default; and where its default is null, these.
NULL_TOO = {"train_neg_sample_args", "user_inter_num_interval", "item_inter_num_interval"}
DEFAULT_IS_NULL: dict[str, type[Any]] = {
    **dict.fromkeys(("seq_len", "threshold", "unload_col", "unused_col", "val_interval", "preload_weight", "discretization", "clip_grad_norm"), dict),
    **dict.fromkeys(("additional_feat_suffix", "normalize_field", "benchmark_filename"), list),
    **dict.fromkeys((f"alias_of_{kind}_id" for kind in ("user", "item", "entity", "relation")), list),
    **dict.fromkeys(("rm_dup_inter", "transform"), str),
    "normalize_all": bool,
    "student_layers": int,
}
CHOICES = {
    "learner": ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    "state": ("debug", "info", "warning", "error", "critical"),
    "distribution": ("uniform", "popularity"),
    "loss_type": ("BPR", "CE", "BCE"),
    "hidden_act": ("gelu", "relu", "swish", "tanh", "sigmoid"),
    "rm_dup_inter": ("first", "last"),
    "student": STUDENTS,
    "loss": ("slmrec", "prunerec"),
}
LEAST = {"list_length": 10, "teacher_samples": 1}  # where that is not 0, or 1 for a COUNT
COLUMNS = ("val_interval", "threshold", "normalize_field", "discretization")  # keys whose value names columns
REPLACING = ("threshold", "discretization")  # those that put something else in the place of a column
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "keys and values"}
FRACTION = re.compile(r"(_prob|_ratio|_dropout)$")  # may have a point where RecBole's default is written without
COUNT = re.compile(r"(_size|_layers|_heads|^sample_num)$")
INTERVAL = re.compile(r"(([\[(]\s*\d+(\.\d+)?\s*,\s*(\d+(\.\d+)?|inf)\s*[\])])(;(?!$)|$))+")


def read_device(tree: dict[str, Any]) -> list[str]:
    """Put what RecBole's `gpu_id` and `use_gpu` in `tree` ask for into `device`. Returns what is wrong with them.

    RecBole itself does nothing with `use_gpu`, overwrites `device`, and falls back to the CPU without a word.
    """
    device, problems = tree.get("device", "auto"), []
    asked = {f"device={device}": device} if isinstance(device, str) and device != "auto" else {}
    use_gpu = tree.pop("use_gpu", True)
    if use_gpu is False:
        asked["use_gpu=false"] = "cpu"
    elif use_gpu is not True:
        problems.append(f"use_gpu={show(use_gpu)}: expected true or false, such as true")
    if "gpu_id" in tree:
        gpu = tree.pop("gpu_id")
        if gpu in (None, ""):
            asked["gpu_id="] = "cpu"
        elif type(gpu) in (int, str) and str(gpu).isdecimal():
            asked[f"gpu_id={gpu}"] = f"cuda:{gpu}"
        else:
            problems.append(f"gpu_id={show(gpu)}: expected the number of one GPU, such as 0, or nothing for the CPU; a run uses one device")
    devices = {name for name in asked.values() if name != "cuda" or not any(other.startswith("cuda:") for other in asked.values())}
    if len(devices) > 1:
        problems.append(f"{' and '.join(asked)} contradict each other; leave one out")
    elif devices:
        tree["device"] = devices.pop()
    return problems


def own_problems(key: str, value: Any, own: Mapping[str, Any], everyone: Mapping[str, Any]) -> list[str]:
    """What is wrong with a key at the top level that is not ours: `own` are RecBole's for the models named, `everyone` those of `compare` as well."""
    if key in REFUSED:
        return [f"{key} cannot be set: {REFUSED[key]}"]
    if key in own:
        return _value_problems(key, value, own[key])
    if key in everyone:
        return [f"{key}={show(value)} is a key of a model in compare; write --baselines.{key}={value}"]
    for group, where in (*((name, name) for name in GROUPS if name not in STEPS), *((step, "steps.<number>") for step in STEPS)):
        if key in GROUPS[group].model_fields:
            return [f"{key}={show(value)} is a key of {group}; write --{where}.{key}={value}"]
    if "." in key:
        return [f"{key} is a path, which the command line takes; in a file write one key inside the other, or --{key}={value} outside"]
    return [f"{key} is not a known key{nearest(key, [*Settings.model_fields, *own])}"]


def column_problems(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What is wrong with the columns that RecBole's keys `theirs` name; `own` are the defaults.

    Only user, item and time are loaded, and of files that are split already no time.
    """
    fields = ("USER_ID_FIELD", "ITEM_ID_FIELD") if theirs.get("benchmark_filename") else ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")
    loaded = [str(theirs.get(field, own[field])) for field in fields]
    problems = []
    for key in COLUMNS:
        value = theirs.get(key)
        for name in value if isinstance(value, DEFAULT_IS_NULL[key]) else ():
            if isinstance(name, str) and name not in loaded:
                problems.append(f"{key} names the column {name!r}, which is not loaded; there are {', '.join(loaded)}{nearest(name, loaded)}")
            elif isinstance(name, str) and key in REPLACING:
                problems.append(f"{key} replaces the column {name!r}, of which samples are made; leave it out")
    return problems


def baseline_problems(key: str, value: Any, everyone: Mapping[str, Any], where: str = "baselines") -> list[str]:
    """What is wrong with a key of `baselines`, or of one model in it, of all that the models there have, `everyone`."""
    path = f"{where}.{key}"
    if key in REFUSED:
        return [f"{path} cannot be set: {REFUSED[key]}"]
    if key in everyone and (key in SHARED or key in recbole_data_keys()):
        return [f"{path} cannot be set: it is the same for all models of a table; write --{key}={value}"]
    if key in everyone:
        return _value_problems(path, value, everyone[key])
    return [f"{path} is not a key of RecBole's{nearest(key, everyone)}"]


def _value_problems(path: str, value: Any, default: Any) -> list[str]:
    """A problem where a value is not of the type of RecBole's default, or out of any sensible range."""
    key = path.rpartition(".")[2]
    if isinstance(value, dict) and isinstance(default, dict):
        inner = [(f"{path}.{name}", str(name), part) for name, part in value.items()]
        known = [problem for place, name, part in inner if name in default for problem in _value_problems(place, part, default[name])]
        return known + [unknown(place, name, default) for place, name, _ in inner if name not in default]
    if value is None and (default is None or key in NULL_TOO):
        return []
    kind = DEFAULT_IS_NULL.get(key, object) if default is None else float if FRACTION.search(key) and type(default) is int else type(default)
    if kind is object:  # RecBole has no default that would tell
        return []
    if type(value) not in ((int, float) if kind is float else (kind,)):
        example = "" if default in (None, "") else f", such as {show(default)}"
        return [f"{path}={show(value)}: expected {WORDS[kind]}{example}"]
    if key == "benchmark_filename" and (len(value) != 3 or not all(isinstance(part, str) for part in value)):
        return [f"{path}={show(value)}: expected three names, such as train,valid,test for the files <dataset>.train.inter and so on"]
    if kind is list:  # where RecBole's is empty, of names
        return [problem for place, part in enumerate(value, 1) for problem in _value_problems(f"{path}.{place}", part, (default or [""])[0])]
    problem = _number_problem(key, value, default) if kind in (int, float) else _text_problem(key, value, default) if kind is str else None
    return [f"{path}={show(value)}: {problem}"] if problem else []


def _number_problem(key: str, value: float, default: Any) -> str | None:
    if abs(value) > LARGEST or not math.isfinite(value):
        return f"expected a finite number, at most {LARGEST}"
    least = None if default is not None and default < 0 else LEAST[key] if key in LEAST else 1 if COUNT.search(key) and type(value) is int else 0
    if least is not None and value < least:
        return f"expected at least {least}"
    if re.search(r"(_prob|_dropout|^budget)$", key) and value > 1:
        return "expected at most 1"
    return None


def _text_problem(key: str, value: str, default: Any) -> str | None:
    known = CHOICES.get(key, ())
    if not value and default and not known:
        return f"expected text that is not empty, such as {show(default)}"
    if known and value not in known and not (key in ("learner", "state") and value.lower() in known):
        return f"expected one of {', '.join(known)}{nearest(value, known)}"
    if key.endswith("_num_interval") and not INTERVAL.fullmatch(value):
        return "expected an interval, such as [5,inf) or [5,100]"
    return None
