"""From the command line and YAML to validated `Settings`: layers, known keys, and one report of every mistake.

Nothing here imports torch, transformers or RecBole: a mistake is answered in a fraction of a second. RecBole's keys and models are read from its files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.settings import Settings

OUR_MODELS = ("PruneRec", "Popularity")
METRICS = ("Hit", "NDCG", "MRR", "MAP", "Recall", "Precision", "AveragePopularity", "ItemCoverage", "TailPercentage", "ShannonEntropy", "GiniIndex")
FLAGS = ("fresh", "help")
REFUSED = {
    "eval_args": "the split is chosen with split=global_time or split=leave_one_out, and the ranking is always full",
    "repeatable": "sequential recommendation is always repeatable here",
    "save_dataset": "nothing is cached as a pickle; preparing the data takes seconds",
    "dataset_save_path": "nothing is loaded from a pickle",
    "save_dataloaders": "nothing is cached as a pickle; preparing the data takes seconds",
    "dataloaders_save_path": "nothing is loaded from a pickle",
    "load_col": "user, item and time are loaded by USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD, titles by title_field",
}


USAGE = """python run_recbole.py --model=PruneRec [--key=value ...]

  --model=PruneRec            or Popularity, SASRec, GRU4Rec, Caser, any RecBole sequential model; several with commas are one table
  --dataset=ml-100k           or a folder <data_path>/<dataset>/ with RecBole's atomic files
  --backbone=tiny             or a Hugging Face name (Qwen/Qwen2-0.5B), a folder, a .gguf file
  --preset=tiny               or quick (a smoke run in seconds), paper
  --teacher=<folder>          a fine-tuned model instead of the finetune step (leave it out of --steps)
  --config_files="a.yaml b.yaml"
  --steps.2.heads=1           any setting by its path; steps count from 1
  --fresh                     start a run anew that would go on, or is finished

Settings: recbole_prunerec/settings.py; recipes: properties/preset/; RecBole's own keys keep their names.
"""


class Arguments(NamedTuple):
    """What the command line asks for."""

    settings: Settings
    fresh: bool  # start the run anew


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as RecBole reads it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"), list("-+0123456789.")
)
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:float"] + [pair for pair in pairs if pair[0] == "tag:yaml.org,2002:float"][-1:]
    for first, pairs in _Loader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str, name: str) -> Any:
    """Parse YAML. Raises `UserError` with the place of a syntax error."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {error}") from error


def properties(kind: str, name: str) -> dict[str, Any]:
    """A shipped YAML, `properties/<kind>/<name>.yaml`; empty where there is none."""
    path = files("recbole_prunerec.properties").joinpath(kind, f"{name}.yaml") if kind else files("recbole_prunerec.properties") / f"{name}.yaml"
    return read_yaml(path.read_text(encoding="utf-8"), str(path)) or {} if path.is_file() else {}


def names(kind: str) -> list[str]:
    """Names of the shipped YAML files of a kind."""
    return sorted(path.name.removesuffix(".yaml") for path in (files("recbole_prunerec.properties") / kind).iterdir() if path.name.endswith(".yaml"))


def recbole_folder() -> Path:
    """Where RecBole is installed, without importing it."""
    spec = find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("RecBole is not installed; run: pip install recbole==1.2.1")
    return Path(spec.submodule_search_locations[0])


@cache
def recbole_models() -> dict[str, Path]:
    """RecBole's sequential models by name, with the YAML of each."""
    root = recbole_folder()
    modules = {path.stem for path in (root / "model" / "sequential_recommender").glob("*.py")}
    return {path.stem: path for path in sorted((root / "properties" / "model").glob("*.yaml")) if path.stem.lower() in modules}


def recbole_defaults(models: Iterable[str]) -> dict[str, Any]:
    """RecBole's own keys with their defaults, those of the given models included."""
    root = recbole_folder() / "properties"
    paths = [root / "overall.yaml", root / "dataset" / "sample.yaml", root / "quick_start_config" / "sequential.yaml"]
    paths += [recbole_models()[model] for model in models if model in recbole_models()]
    return {key: value for path in paths for key, value in (read_yaml(path.read_text(encoding="utf-8"), str(path)) or {}).items()}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with `above` over it: dictionaries are merged, all else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        merged[key] = merge(merged[key], value) if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) else value
    return merged


def parse(argv: Sequence[str]) -> dict[str, str]:
    """`--key=value`, `--key value` and bare flags, as strings by key. Raises `UserError` for anything else, all at once."""
    given: dict[str, str] = {}
    problems = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            problems.append(f"unexpected argument {word!r}; arguments look like --key=value")
            continue
        key, equals, value = word[2:].partition("=")
        if key in FLAGS:
            value = value or "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                problems.append(f"--{key} has no value; write --{key}=<value>")
                continue
            value = rest.pop(0)
        if given.get(key, value) != value:
            problems.append(f"--{key} is given twice, as {given[key]} and as {value}")
        given[key] = value
    if problems:
        raise UserError("\n".join(problems))
    return given


def _value(key: str, text: str) -> Any:
    """The value of an argument: YAML; a list may also be written with commas."""
    field = Settings.model_fields.get(key)
    if field is not None and str(field.annotation).startswith("tuple") and not text.lstrip().startswith(("[", "{")):
        return [read_yaml(part, f"--{key}") for part in text.split(",")]
    return read_yaml(text, f"--{key}={text}")


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a leaf by its dotted path; numbers index lists from 1. Raises `UserError` where the path leads nowhere."""
    keys, node = path.split("."), tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or not 1 <= int(key) <= len(node):
                raise UserError(f"--{path}: {'.'.join(keys[:depth])} has places 1 to {len(node)}, got {key!r}")
            index: Any = int(key) - 1
        elif isinstance(node, dict):
            index = key
            if not last:
                node.setdefault(key, {})
        else:
            raise UserError(f"--{path}: {'.'.join(keys[:depth])} is {node!r}, which has no parts")
        if last:
            node[index] = value
        else:
            node[index] = list(node[index]) if isinstance(node[index], list) else dict(node[index]) if isinstance(node[index], dict) else node[index]
            node = node[index]


def _preset(name: str) -> dict[str, Any]:
    """A shipped recipe with what it extends."""
    if name not in names("preset"):
        raise UserError(f"preset={name} is unknown; there are {', '.join(names('preset'))}{nearest(name, names('preset'))}")
    content = properties("preset", name)
    extends = content.pop("extends", None)
    return merge(_preset(extends), content) if extends else content


def _config_files(value: str) -> dict[str, Any]:
    """RecBole's `config_files`: YAML files separated by spaces, later ones over earlier ones."""
    merged: dict[str, Any] = {}
    for name in value.split():
        path = Path(name)
        if not path.is_file():
            raise UserError(f"--config_files: {name} does not exist")
        content = read_yaml(path.read_text(encoding="utf-8"), name) or {}
        if not isinstance(content, dict):
            raise UserError(f"--config_files: {name} must hold keys and values, got a {type(content).__name__}")
        merged = merge(merged, content)
    return merged


def load_arguments(argv: Sequence[str]) -> Arguments:
    """Everything from `argv`, validated. Raises one `UserError` with every problem found."""
    given = parse(argv)
    fresh = given.pop("fresh", "false") == "true"
    user = _config_files(given.pop("config_files", ""))
    plain = {key: _value(key, text) for key, text in given.items() if "." not in key}
    user = merge(user, plain)
    models = user.get("model", ["PruneRec"])
    models = tuple(_redirect(str(model)) for model in (models.split(",") if isinstance(models, str) else models))
    ours = "PruneRec" in models
    preset = user.get("preset") or ("tiny" if user.get("backbone", "tiny") == "tiny" else "paper")
    layers = [properties("", "protocol"), properties("model", "PruneRec") if ours else {}, properties("dataset", str(user.get("dataset", "ml-100k")))]
    recipe = _preset(str(preset))
    layers.append(recipe if ours else {key: recipe[key] for key in ("test_rows", "worthless", "baselines") if key in recipe and "preset" in user})
    tree: dict[str, Any] = {}
    for layer in [*layers, user, {"model": models, "preset": str(preset)}]:
        tree = merge(tree, layer)
    for path in (key for key in given if "." in key):
        _set(tree, path, read_yaml(given[path], f"--{path}"))
    asked = set(user) | {path.split(".")[0] for path in given}
    return Arguments(validate(tree, asked), fresh)


def _redirect(model: str) -> str:
    """RecBole's Pop ranks one row a user, not samples; ours ranks the samples that all other systems rank."""
    return "Popularity" if model == "Pop" else model


def validate(tree: dict[str, Any], asked: set[str]) -> Settings:
    """`tree` as `Settings`; keys in `asked` came from the user. Raises one `UserError` with every problem."""
    problems = []
    models = tuple(tree["model"])
    known_models = [*OUR_MODELS, *recbole_models()]
    problems += [f"model={model} is unknown{nearest(model, known_models)}; there are {', '.join(known_models)}" for model in models if model not in known_models]
    defaults = recbole_defaults([*models, *map(str, tree.get("compare") or ())])
    ours = {key for key in Settings.model_fields if key != "recbole"}
    recbole = {}
    for key in [key for key in tree if key not in ours]:
        value = tree.pop(key)
        if key not in defaults:
            problems.append(f"{key} is not a known key{nearest(key, [*ours, *defaults])}")
        elif key in REFUSED:
            problems.append(f"{key} cannot be set: {REFUSED[key]}")
        else:
            problems += _wrong_type(key, value, defaults[key])
            recbole[key] = value
    baselines = tree.get("baselines") or {}
    for key, value in baselines.items() if isinstance(baselines, dict) else ():
        problems += _wrong_type(f"baselines.{key}", value, defaults[key]) if key in defaults else [f"baselines.{key} is not a key of RecBole's{nearest(key, defaults)}"]
    if "PruneRec" not in models:  # then RecBole's models take their training keys from the top level
        recbole |= {key: tree[key] for key in asked & set(defaults) & ours if key in tree}
    problems += [f"metrics: {name} is not one of {', '.join(METRICS)}{nearest(name, METRICS)}" for name in map(str, tree.get("metrics") or ()) if name.lower() not in map(str.lower, METRICS)]
    problems += _dataset_problems(str(tree.get("dataset", "ml-100k")), str(tree.get("data_path", "dataset")))
    settings = None
    try:
        settings = Settings.model_validate({**tree, "recbole": recbole})
    except ValidationError as error:
        problems += _readable(error)
    if settings is not None and "PruneRec" in models:
        problems += _backbone_problems(settings)
    if problems or settings is None:
        raise UserError("\n".join(problems))
    return settings


def _wrong_type(key: str, value: Any, default: Any) -> list[str]:
    """A problem where a value is not of its RecBole default's type."""
    if default is None or value is None or isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool):
        return []
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return []
    if isinstance(default, (list, dict, str)) and key.split(".")[-1] in ("train_neg_sample_args", "gpu_id", "metrics", "topk"):
        return []
    return [f"{key}={value!r} is a {type(value).__name__}, expected a {type(default).__name__} such as {default!r}"]


def _readable(error: ValidationError) -> list[str]:
    """Pydantic's errors as sentences, with paths as the command line writes them."""
    problems = []
    for item in error.errors():
        path, group = _path(item["loc"])
        got = f"{path}={item['input']!r}" if not isinstance(item["input"], dict) else path
        match item["type"]:
            case "extra_forbidden":
                problems.append(f"{path} is not a known key{nearest(path.split('.')[-1], group)}; {path.rpartition('.')[0] or 'known'} has {', '.join(group)}")
            case "union_tag_invalid" | "union_tag_not_found":
                tag = item["input"].get("do") if isinstance(item["input"], dict) else item["input"]
                known = [name.strip("' ") for name in item.get("ctx", {}).get("expected_tags", "'finetune', 'width', 'mlp', 'depth'").split(",")]
                problems.append(f"{path}.do={tag!r} is not a step; steps are {', '.join(known)}{nearest(str(tag), known)}")
            case "value_error":
                problems += str(item["ctx"]["error"]).splitlines()
            case "literal_error":
                known = re.findall(r"'([^']*)'", item["ctx"]["expected"])
                problems.append(f"{got} is not one of {', '.join(known)}{nearest(str(item['input']), known)}")
            case "missing":
                problems.append(f"{path} is missing; every {path.rpartition('.')[0] or 'run'} needs it")
            case _:
                problems.append(f"{got}: {item['msg'][0].lower()}{item['msg'][1:]}")
    return problems


def _path(location: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """A pydantic location as a dotted path counted from 1, and the keys of the group that its last part belongs to."""
    parts: list[str] = []
    group: type[BaseModel] | None = Settings
    steps = {"finetune": "Finetune", "width": "Width", "mlp": "Mlp", "depth": "Depth"}
    keys = list(Settings.model_fields)
    import recbole_prunerec.settings as module

    for index, part in enumerate(location):
        if isinstance(part, int):
            parts.append(str(part + 1))
        elif part in steps and index and isinstance(location[index - 1], int):
            group = getattr(module, steps[part])
            keys = list(group.model_fields)
        else:
            parts.append(part)
            field = group.model_fields.get(part) if group is not None else None
            inner = field.annotation if field is not None else None
            if isinstance(inner, type) and issubclass(inner, BaseModel) and index + 1 < len(location):
                group, keys = inner, list(inner.model_fields)
    return ".".join(parts), keys


def _dataset_problems(dataset: str, data_path: str) -> list[str]:
    """A problem where the dataset's files are not there; ml-100k comes with RecBole."""
    if dataset == "ml-100k" or (Path(data_path) / dataset / f"{dataset}.inter").is_file() or list((Path(data_path) / dataset).glob(f"{dataset}.*.inter")):
        return []
    there = sorted({"ml-100k", *(path.parent.name for path in Path(data_path).glob("*/*.inter"))})
    return [f"dataset={dataset} is not there: expected {data_path}/{dataset}/{dataset}.inter and .item (RecBole's atomic files); found {', '.join(there)}{nearest(dataset, there)}"]


def backbone_config(settings: Settings) -> Mapping[str, Any] | None:
    """The backbone's config where it can be read without transformers: the tiny one's, a folder's; None otherwise."""
    name = settings.teacher or settings.backbone
    if name == "tiny":
        return properties("backbone", "tiny")
    path = Path(name) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _backbone_problems(settings: Settings) -> list[str]:
    """What can be said about the backbone and the steps' shapes before anything heavy is imported."""
    key = "teacher" if settings.teacher else "backbone"
    name = settings.teacher or settings.backbone
    if name.endswith(".gguf"):
        return [] if Path(name).is_file() else [f"{key}={name} does not exist"]
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        return [f"{key}={name} is a folder without config.json, so it holds no Hugging Face model"]
    if not Path(name).is_dir() and (key == "teacher" or name.startswith((".", "/", "~")) or name.count("/") > 1):
        return [f"{key}={name} is not a folder"]
    config = backbone_config(settings)
    if config is None:
        return []
    missing = [field for field in ("model_type", "num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size") if field not in config]
    if missing:
        return [f"{key}={name}: its config.json lacks {', '.join(missing)}, so it is not a decoder that can be pruned"]
    return settings.shape_problems(Shape.of_config(config))
