"""YAML that comes with this package and with RecBole: presets, protocol, keys and models, all read without importing RecBole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from recbole_prunerec.compared.systems import OURS, STUDENTS
from recbole_prunerec.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are what people mean: 1e-3 is one, as in RecBole, and 010, 0x10 and 1:30 are not 8, 16 and 90. No key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice; leave one out", node.value[place][0].start_mark)
        return super().construct_mapping(node, deep)


INTEGER, NUMBER = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (INTEGER, NUMBER)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(INTEGER, re.compile(r"[-+]?(0|[1-9][\d_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    NUMBER, re.compile(r"[-+]?((0|[1-9][\d_]*)(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"), list("-+.0123456789")
)


def read_yaml(text: str, name: str) -> Any:
    """Parse YAML. Raises `UserError`, in one line, with the place of a syntax error; `name` says what was read."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{name} is not valid YAML{place}: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # an unprintable character, or a date such as 2020-13-01
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml_file(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file; an empty file has none. Raises `UserError` where it is missing, broken, or holds something else."""
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, got a {type(content).__name__}")
    return content


def properties(*path: str) -> dict[str, Any]:
    """A shipped YAML: `properties("preset", "tiny")` is `properties/preset/tiny.yaml`. Empty where there is none."""
    file = files("recbole_prunerec.properties").joinpath(*path[:-1], f"{path[-1]}.yaml")
    return read_yaml(file.read_text(encoding="utf-8"), str(file)) or {} if file.is_file() else {}


def names(kind: str) -> list[str]:
    """Names of the shipped YAML files of a kind, such as "preset"."""
    folder = files("recbole_prunerec.properties") / kind
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with `above` over it: dictionaries are merged, all else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        merged[key] = merge(merged[key], value) if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) else value
    return merged


def recipe(preset: str, kind: str = "preset") -> dict[str, Any]:
    """A shipped preset, or YAML of another kind, over the one that it extends."""
    content = properties(kind, preset)
    extends = content.pop("extends", None)
    return merge(recipe(extends, kind), content) if extends else content


def dataset_recipe(name: str) -> dict[str, Any]:
    """What is shipped for a dataset: the YAML of its name, or of its release where it is another of Amazon's that RecBole has. Else nothing."""
    if name not in names("dataset") and re.search(r"/Amazon(_ratings|2023)/", recbole_urls().get(name, "")):
        name = "amazon-reviews-18" if name.endswith("-18") else "amazon-reviews"
    return recipe(name, "dataset") if name in names("dataset") else {}


def recbole_folder() -> Path:
    """Where RecBole is installed. Raises `UserError` where it is not."""
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


def recbole_data_keys() -> dict[str, Any]:
    """RecBole's keys that describe the data, with their defaults."""
    return _recbole_yaml(recbole_folder() / "properties" / "dataset" / "sample.yaml")


def recbole_urls() -> dict[str, str]:
    """Where RecBole's datasets lie, each a zip, by name."""
    return _recbole_yaml(recbole_folder() / "properties" / "dataset" / "url.yaml")


def recbole_defaults(models: Iterable[str]) -> dict[str, Any]:
    """RecBole's own keys with their defaults, those of the given models included."""
    root = recbole_folder() / "properties"
    defaults = _recbole_yaml(root / "overall.yaml") | recbole_data_keys() | _recbole_yaml(root / "quick_start_config" / "sequential.yaml")
    for model in models:
        defaults |= model_defaults(model)
    return defaults


def model_defaults(model: str, student: str | None = None) -> dict[str, Any]:
    """The keys of one model, RecBole's or ours, with their defaults; of DLLM2Rec those of its `student`, too, or of all that it can have."""
    if model in OURS:
        theirs = [model_defaults(name) for name in ([student] if student else STUDENTS)] if model == "DLLM2Rec" else []
        inherited = {key: value for keys in theirs for key, value in keys.items() if key != "loss_type"}  # its loss is its own
        return inherited | properties("model", model)
    return _recbole_yaml(recbole_models()[model]) if model in recbole_models() else {}


@cache
def _recbole_yaml(path: Path) -> dict[str, Any]:
    return read_yaml_file(path)
