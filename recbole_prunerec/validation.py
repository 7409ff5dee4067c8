"""What is wrong with a tree of settings: unknown keys, wrong values, and what does not fit together, all in one report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.on_disk import backbone_config, dataset_problems
from recbole_prunerec.prune.budget import Shape, shape_problems
from recbole_prunerec.sentences import sentences, show, unknown
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import recbole_data_keys, recbole_defaults, recbole_folder, recbole_models

METRICS = ("Hit", "NDCG", "MRR", "MAP", "Recall", "Precision", "AveragePopularity", "ItemCoverage", "TailPercentage", "ShannonEntropy", "GiniIndex")
TRAINING = {"epochs", "train_batch_size", "learning_rate", "weight_decay", "stopping_step"}  # PruneRec's where it runs, else RecBole's models'
REFUSED = {
    "eval_args": "the split is chosen with split=global_time or split=leave_one_out, and the ranking is always full",
    "repeatable": "sequential recommendation is always repeatable here",
    "save_dataset": "nothing is cached as a pickle; preparing the data takes seconds",
    "dataset_save_path": "nothing is loaded from a pickle",
    "save_dataloaders": "nothing is cached as a pickle; preparing the data takes seconds",
    "dataloaders_save_path": "nothing is loaded from a pickle",
    "load_col": "user, item and time are loaded by USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD, titles by title_field",
}
# RecBole takes these beside the type of its default.
LOOSE = {"gpu_id": int, "train_neg_sample_args": type(None), "user_inter_num_interval": type(None), "item_inter_num_interval": type(None)}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "keys and values"}
# Models that read item features, a knowledge graph or negative histories; only user, item and time are loaded.
NEED_FEATURES = ("DIEN", "FDSA", "GRU4RecF", "GRU4RecKG", "KSR", "S3Rec", "SASRecF")
NEEDED = {"model": "PruneRec", "metrics": "Hit,NDCG", "topk": "10,20"}
SHARED = {"metrics", "topk", "valid_metric", "data_path", "checkpoint_dir"}  # as RecBole's keys of the data: the same for every model of a table


def known_models() -> list[str]:
    """All models that can be named."""
    return ["PruneRec", "Popularity", *(model for model in recbole_models() if model not in NEED_FEATURES)]


def validate(tree: Mapping[str, Any], found: Iterable[str] = ()) -> Settings:
    """`tree` as `Settings`. Raises one `UserError` with every problem, those `found` before first.

    `tree` is what `arguments` builds: `model` is a list of names, and RecBole's keys stand beside ours.
    """
    models, guests = tree["model"], _texts(tree.get("compare"))
    others = [name for name in known_models() if name != "PruneRec"]
    problems = [*found, *_name_problems("model", models, known_models()), *_name_problems("compare", guests, others), *_list_problems(tree)]
    ours = {key: value for key, value in tree.items() if key in Settings.model_fields and key != "recbole"}
    theirs = {key: value for key, value in tree.items() if key not in ours}
    problems += _metric_problems(ours, theirs)
    own = recbole_defaults(models if set(models) <= set(known_models()) else recbole_models())  # of a misspelt model nobody knows the keys
    everyone = own | recbole_defaults(guests)
    problems += [problem for key, value in theirs.items() for problem in _recbole_problems(key, value, own, everyone)]
    baselines = ours.get("baselines", {})
    if isinstance(baselines, dict):
        problems += [problem for key, value in baselines.items() for problem in _baseline_problems(str(key), value, everyone)]
        if "PruneRec" not in models:  # then the top level is theirs
            theirs = {**baselines, **theirs, **{key: ours[key] for key in TRAINING if key in ours}}
            baselines = {}
        ours["baselines"] = _filled(baselines, everyone)
    dataset, data_path = ours.get("dataset", "ml-100k"), ours.get("data_path", "dataset")
    if isinstance(dataset, str) and isinstance(data_path, str):
        problems += dataset_problems(dataset, data_path)
    if "PruneRec" in models:
        problems += _backbone_problems(ours)
    try:
        settings = Settings.model_validate({**ours, "recbole": _filled(theirs, own)})
    except ValidationError as error:
        raise UserError("\n".join(problems + sentences(error))) from error
    if problems:
        raise UserError("\n".join(problems))
    return settings


def _texts(value: Any) -> list[str]:
    """The parts of a list as text; empty for what is no list, which is reported elsewhere."""
    return [str(part) for part in value] if isinstance(value, list) else []


def _name_problems(key: str, models: Iterable[str], known: list[str]) -> list[str]:
    problems = []
    for model in models:
        if model in NEED_FEATURES:
            problems.append(
                f"{key}={model} needs more than user, item and time, which is all that the protocol loads; choose one of {', '.join(known)}"
            )
        elif model not in known and (recbole_folder() / "properties" / "model" / f"{model}.yaml").is_file():
            problems.append(f"{key}={model} is not a sequential model; choose one of {', '.join(known)}")
        elif model not in known:
            problems.append(unknown(f"{key}={model}", model, known))
    return problems


def _list_problems(tree: Mapping[str, Any]) -> list[str]:
    """What is empty but must not be, and what stands in a list twice."""
    problems = [f"{key} is empty; name at least one, such as {key}={example}" for key, example in NEEDED.items() if tree.get(key) == []]
    for key in ("model", "compare", "metrics", "topk"):
        values = _texts(tree.get(key))
        lower = [value.lower() for value in values]
        problems += [f"{key} has {value} twice; leave one out" for place, value in enumerate(values) if value.lower() in lower[:place]]
    return problems


def _metric_problems(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    metrics, lengths, wanted = _texts(ours.get("metrics")), _texts(ours.get("topk")), str(theirs.get("valid_metric"))
    known = [name.lower() for name in METRICS]
    problems = [unknown(f"metrics={name}", name, METRICS) for name in metrics if name.lower() not in known]
    computed = [f"{name}@{length}" for name in metrics for length in lengths]
    if not problems and computed and wanted.lower() not in map(str.lower, computed):
        problems.append(f"valid_metric={wanted} is not measured; choose one of {', '.join(computed)}, or add it to metrics and topk")
    return problems


def _recbole_problems(key: str, value: Any, own: Mapping[str, Any], everyone: Mapping[str, Any]) -> list[str]:
    """What is wrong with a key at the top level that is not ours: `own` are RecBole's for the models named, `everyone` those of `compare` as well."""
    if key in REFUSED:
        return [f"{key} cannot be set: {REFUSED[key]}"]
    if key in own:
        return _type_problems(key, value, own[key])
    if key in everyone:
        return [f"{key}={show(value)} is a key of a model in compare; write --baselines.{key}={value}"]
    return [f"{key} is not a known key{nearest(key, [*Settings.model_fields, *own])}"]


def _baseline_problems(key: str, value: Any, everyone: Mapping[str, Any]) -> list[str]:
    if key in REFUSED:
        return [f"baselines.{key} cannot be set: {REFUSED[key]}"]
    if key in everyone and (key in SHARED or key in recbole_data_keys()):
        return [f"baselines.{key} cannot be set: it is the same for all models of a table; write --{key}={value}"]
    if key in everyone:
        return _type_problems(f"baselines.{key}", value, everyone[key])
    return [f"baselines.{key} is not a key of RecBole's{nearest(key, everyone)}"]


def _type_problems(path: str, value: Any, default: Any) -> list[str]:
    """A problem where a value is not of the type of RecBole's default; a default of null tells no type."""
    if isinstance(value, dict) and isinstance(default, dict):
        inner = [(f"{path}.{key}", str(key), part) for key, part in value.items()]
        known = [problem for place, key, part in inner if key in default for problem in _type_problems(place, part, default[key])]
        return known + [unknown(place, key, default) for place, key, _ in inner if key not in default]
    kinds = (type(default), LOOSE.get(path.rpartition(".")[2]), int if isinstance(default, float) else None)
    if default is None or type(value) in kinds:
        return []
    return [f"{path}={show(value)}: expected {WORDS[type(default)]}, such as {show(default)}"]


def _filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, where a dictionary that is given in part has RecBole's defaults for the rest: RecBole would replace it whole."""
    return {
        key: {**defaults[key], **value} if isinstance(value, dict) and isinstance(defaults.get(key), dict) else value for key, value in values.items()
    }


def _backbone_problems(ours: Mapping[str, Any]) -> list[str]:
    """What can be said about the backbone, and the steps' shapes, before anything heavy is imported."""
    key = "teacher" if ours.get("teacher") else "backbone"
    name = ours.get(key, "tiny")
    if not isinstance(name, str) or not name:
        return []
    try:
        config = backbone_config(key, name)
        judged = Settings.model_validate({part: ours[part] for part in ("steps", "teacher") if part in ours})  # whatever is wrong with the rest
    except UserError as error:
        return [str(error)]
    except ValidationError:  # reported with the rest
        return []
    return shape_problems(judged.steps, Shape.of_config(config)) if config else []
