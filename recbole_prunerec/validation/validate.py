"""What is wrong with a tree of settings: unknown keys, wrong values, and what does not fit together, all in one report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from os.path import isfile  # unlike that of Path, False for a name that no file can have
from typing import Any, cast

from pydantic import ValidationError

from recbole_prunerec.amazon.engine import NO_DUCKDB
from recbole_prunerec.backbone.files import judge_backbone
from recbole_prunerec.compared.systems import OURS, READERS, TAUGHT, shared_keys, with_helpers
from recbole_prunerec.errors import Broken, UserError
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.settings import Finetune, Group, Settings, Step
from recbole_prunerec.shipped import recbole_defaults, recbole_folder, recbole_models
from recbole_prunerec.validation.compared import key_problems, teacher_problems
from recbole_prunerec.validation.conflicts import conflicts
from recbole_prunerec.validation.fit import misfits
from recbole_prunerec.validation.on_disk import dataset_problems, disk_problems
from recbole_prunerec.validation.partial import Partial
from recbole_prunerec.validation.recbole_keys import baseline_problems, column_problems, own_problems, read_device
from recbole_prunerec.validation.sentences import sentences, unknown

METRICS = ("Hit", "NDCG", "MRR", "MAP", "Recall", "Precision", "AveragePopularity", "ItemCoverage", "TailPercentage", "ShannonEntropy", "GiniIndex")
TRAINING = {"epochs", "train_batch_size", "learning_rate", "weight_decay", "stopping_step"}  # PruneRec's where it runs, else RecBole's models'
# Models that read item features, a knowledge graph or negative histories; only user, item and time are loaded.
NEED_FEATURES = ("DIEN", "FDSA", "GRU4RecF", "GRU4RecKG", "KSR", "S3Rec", "SASRecF")
ITEM_BY_ITEM = ("DIN",)  # models that score items one at a time, and so would take far too long to assist
NEEDED = {"model": "PruneRec", "metrics": "Hit,NDCG", "topk": "10,20"}


def known_models() -> list[str]:
    """All models that can be named."""
    return ["PruneRec", "Popularity", *OURS, *(model for model in recbole_models() if model not in NEED_FEATURES)]


def validate(tree: Mapping[str, Any], found: Iterable[str] = ()) -> Settings:
    """`tree` as `Settings`. Raises one `UserError` with every problem, those `found` before first.

    `tree` is what `arguments` builds: `model` is a list of names, and RecBole's keys stand beside ours.
    """
    tree = dict(tree)
    models, guests, assistants = tree["model"], _texts(tree.get("compare")), _one(tree, "ranking", "assistant")
    tutors = _one(tree, "tutor", "model")
    others = [name for name in known_models() if name != "PruneRec"]
    problems = [*found, *_name_problems("model", models, known_models()), *_name_problems("compare", guests, others), *_list_problems(tree)]
    sequential = [name for name in others if name not in ("Popularity", *OURS, *ITEM_BY_ITEM)]
    problems += [*_name_problems("ranking.assistant", assistants, sequential), *_name_problems("tutor.model", tutors, sequential)]
    problems += read_device(tree)
    ours = {key: value for key, value in tree.items() if key in Settings.model_fields and key != "recbole"}
    theirs = {key: value for key, value in tree.items() if key not in ours}
    problems += _metric_problems(ours, theirs)
    named_right = set(models) <= set(known_models())  # of a misspelt model nobody knows the keys
    own = recbole_defaults(with_helpers(models) if named_right else [*OURS, *recbole_models()])
    problems += column_problems(theirs, own)
    everyone = own | recbole_defaults(with_helpers([*guests, *assistants, *tutors]))
    problems += [problem for key, value in theirs.items() for problem in own_problems(str(key), value, own, everyone)]
    baselines = ours.get("baselines", {})
    if isinstance(baselines, dict):
        named = with_helpers([*models, *guests, *assistants, *tutors])
        problems += _baselines_problems(baselines, named, everyone)
        if "PruneRec" not in models:  # then the top level is theirs
            theirs = {**shared_keys(baselines, named), **theirs, **{key: ours[key] for key in TRAINING if key in ours}}
            baselines = {key: value for key, value in baselines.items() if key in named}
        ours["baselines"] = _filled(baselines, everyone)
    given = cast(Settings, Partial(Settings, ours))
    with suppress(Broken):
        problems += dataset_problems(given.dataset, given.data_path)
    with suppress(Broken):
        problems += [NO_DUCKDB] if given.rules is not None and find_spec("duckdb") is None else []
    everything = with_helpers([*models, *guests])
    config, wrong = _backbone_problems(given) if {"PruneRec", *TAUGHT, *READERS} & set(everything) else (None, [])
    problems += wrong
    with suppress(Broken):
        problems += teacher_problems(everything, given.teacher)
    with suppress(Broken):
        problems += key_problems(everything, {**theirs, **given.baselines}, None if config is None else Shape.of_config(config).layers)
    with suppress(Broken):
        problems += disk_problems(given.checkpoint_dir, 0)  # whether it can be written to; how much a run needs is told when it starts
    try:
        settings = Settings.model_validate({**ours, "recbole": _filled(theirs, own)})
    except ValidationError as error:
        problems += sentences(error)
        if any(part["loc"] for part in error.errors()):  # otherwise these are conflicts
            problems += conflicts(given)
        raise UserError("\n".join(problems)) from error
    if problems:
        raise UserError("\n".join(problems))
    return settings


def _texts(value: Any) -> list[str]:
    """The parts of a list as text; empty for what is no list, which is reported elsewhere."""
    return [str(part) for part in value] if isinstance(value, list) else []


def _one(tree: Mapping[str, Any], group: str, key: str) -> list[str]:
    """The model that a key of a group names, alone in a list, where there is one."""
    name = tree[group].get(key) if isinstance(tree.get(group), dict) else None
    return [name] if isinstance(name, str) and name.strip() else []


def _name_problems(key: str, models: Iterable[str], known: list[str]) -> list[str]:
    problems = []
    for model in models:
        if model in NEED_FEATURES:
            problems.append(
                f"{key}={model} needs more than user, item and time, which is all that the protocol loads; choose one of {', '.join(known)}"
            )
        elif model in ITEM_BY_ITEM and model not in known:
            problems.append(f"{key}={model} scores items one at a time, not the catalogue at once; choose one of {', '.join(known)}")
        elif model not in known and isfile(recbole_folder() / "properties" / "model" / f"{model}.yaml"):
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


def _baselines_problems(baselines: Mapping[str, Any], named: Sequence[str], everyone: Mapping[str, Any]) -> list[str]:
    """What is wrong with `baselines`: keys of RecBole's models, or, under the name of one of those `named`, keys of it alone."""
    problems: list[str] = []
    for key, value in baselines.items():
        if key in named and isinstance(value, dict):
            own = recbole_defaults([key])
            problems += [problem for name, part in value.items() for problem in baseline_problems(str(name), part, own, f"baselines.{key}")]
        else:
            problems += baseline_problems(str(key), value, everyone)
    return problems


def _metric_problems(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What is wrong with the names of metrics; values of another type are reported with the rest."""
    metrics, lengths, wanted = ours.get("metrics"), _texts(ours.get("topk")), theirs.get("valid_metric")
    if not isinstance(metrics, list) or not all(isinstance(name, str) for name in metrics):
        return []
    known = [name.lower() for name in METRICS]
    problems = [unknown(f"metrics={name}", name, METRICS) for name in metrics if name.lower() not in known]
    computed = [f"{name}@{length}" for name in metrics for length in lengths]
    if not problems and computed and isinstance(wanted, str) and wanted and wanted.lower() not in map(str.lower, computed):
        problems.append(f"valid_metric={wanted} is not measured; choose one of {', '.join(computed)}, or add it to metrics and topk")
    return problems


def _filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, where a dictionary that is given in part has RecBole's defaults for the rest: RecBole would replace it whole."""
    return {
        key: {**defaults[key], **value} if isinstance(value, dict) and isinstance(defaults.get(key), dict) else value for key, value in values.items()
    }


def _backbone_problems(given: Settings) -> tuple[Mapping[str, Any] | None, list[str]]:
    """The backbone's config, and what is wrong with it, and with the steps on it; both are left for later where it takes the network to read.

    In the place of a broken step, which is reported with the rest, stands one that changes no shape.
    """
    problems: list[str] = []
    steps: list[Step] = []
    config = None
    with suppress(Broken):
        steps = [step if isinstance(step, Group) else Finetune(do="finetune") for step in given.steps]
    with suppress(Broken):
        config, problems = judge_backbone("teacher", given.teacher) if given.teacher else judge_backbone("backbone", given.backbone)
    with suppress(Broken):
        local = f"teacher={given.teacher}" if given.teacher else f"backbone={given.backbone}" if config is not None else None
        if given.revision is not None and local:
            problems.append(f"revision={given.revision} is of a backbone on the Hugging Face hub, got {local}; leave it out")
    with suppress(Broken):
        if given.attn_implementation == "flash_attention_2" and find_spec("flash_attn") is None:
            problems.append("attn_implementation=flash_attention_2 needs the package flash_attn, which is not installed; choose sdpa")
    return config, problems if config is None else [*problems, *misfits(given, steps, Shape.of_config(config))]
