"""Write docs/configuration.md from the settings: `python docs/configuration.py`.

Types and defaults are read from the classes, descriptions from the comments behind their fields.
"""

import ast
import inspect
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recbole_prunerec.settings import LARGEST, Group, PruningStep, Settings
from recbole_prunerec.shipped import properties, recbole_data_keys, recbole_defaults, recipe
from recbole_prunerec.storage import write_text
from recbole_prunerec.validation.recbole_keys import REFUSED
from recbole_prunerec.validation.sentences import GROUPS, STEPS

PAGE = Path(__file__).parent / "configuration.md"
PRESETS = ("tiny", "paper")
TYPES = {str: "text", bool: "true or false", int: "whole number", float: "number", dict: "keys and values", NoneType: "null"}
WIDTH = 150  # of a line

HEAD = """# Configuration

<!-- made by docs/configuration.py -->

Every key: its type, its default, what the presets `tiny` and `paper` say, and what it is for. Later layers win: `properties/protocol.yaml`,
`properties/model/PruneRec.yaml`, `properties/dataset/<name>.yaml`, the preset, `--config_files="a.yaml b.yaml"`, the command line.

- A key below another has a path: `--restore.kd_weight=0.5`. Steps count from 1, like their folders: `--steps.2.heads=1`.
- Values are YAML: `--topk=10,20`, `--teacher=null`, `--steps="[{do: finetune}, {do: depth, layers: 2}]"`.
- What is wrong with keys and values is said before anything is loaded, all of it at once.
- A run's `config.yaml` holds every setting, and `--config_files` reads it back. What is no setting, such as `--fresh`: `run_recbole.py --help`.
"""
OWN = """Of the keys above, {shared} are RecBole's own. Those of training are PruneRec's where it runs, and the other models take theirs from
`baselines.<key>`; in a run without PruneRec they are the models', with RecBole's defaults. `valid_metric` is what RecBole's models stop on; PruneRec
stops on its validation loss. `gpu_id` and `use_gpu` end up in `device`."""
DATA = """These are of the data, for every model, with RecBole's meaning as far as they concern users, items and times, all that is loaded;
defaults are RecBole's or those of `properties/protocol.yaml`: {}."""
TRAINING = """These are of the models that RecBole trains: {}. So are the keys of each of RecBole's sequential models, where it is named, and those of
ours: [compared.md](compared.md)."""


def described(group: type[BaseModel]) -> list[tuple[str, str, str]]:
    """For each field that a class itself has: the heading it stands under, its name, and the comment behind it."""
    source = inspect.getsource(group)
    lines = source.splitlines()
    comments = {
        token.start[0]: re.sub(r"^type: ignore\S*\s*#?\s*", "", token.string.lstrip("# "))
        for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
        if token.type == tokenize.COMMENT
    }
    headings = {line: text for line, text in comments.items() if lines[line - 1].lstrip().startswith("#")}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = []
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = [text for line, text in headings.items() if line < node.lineno]
            found.append((above[-1] if above else "", node.target.id, comments.get(node.end_lineno or 0, "")))
    return found


def words(annotation: Any, bounds: Iterable[Any] = ()) -> str:
    """A type in plain words, with its range or choices."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind, *more = parts
        inner = [bound for part in more for bound in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return words(kind, [*bounds, *inner])
    if origin is Literal:
        return either([f"`{choice}`" for choice in parts])
    if origin in (Union, UnionType):
        kinds = [part for part in parts if part is not NoneType]
        if all(isinstance(part, type) and issubclass(part, Group) for part in kinds) and len(kinds) > 1:
            return "step"
        return ", or ".join(words(part, bounds) for part in [*kinds, *([NoneType] if NoneType in parts else [])])
    if origin is tuple:
        return f"list{'' if parts[1] is Ellipsis else f' of {len(parts)}'}; each: {words(parts[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Group):
        return "keys and values"
    return TYPES[origin or annotation] + limits(bounds)


def limits(bounds: Iterable[Any]) -> str:
    """What bounds of annotated_types say; the largest whole number goes without saying."""
    found = {name: getattr(bound, name) for bound in bounds for name in ("ge", "gt", "le", "lt") if hasattr(bound, name)}
    if found.get("le") == LARGEST:
        del found["le"]
    if found.keys() == {"ge", "le"}:
        return f" from {found['ge']:g} to {found['le']:g}"
    texts = {"ge": "at least", "gt": "above", "lt": "below"}
    return "".join(f", {texts[name]} {limit:g}" for name, limit in found.items())


def either(choices: list[str]) -> str:
    """`a`, `b` or `c`."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def show(value: Any) -> str:
    """A value as YAML has it on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, (tuple, list)):
        value = [part.model_dump(mode="json", exclude_unset=True) if isinstance(part, BaseModel) else part for part in value]
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()
    return f"`{text}`"


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(group: type[Group], keys: list[tuple[str, str]], said: list[dict[str, Any]]) -> str:
    """A table of `keys` (name, description) of `group`; `said` is what each preset says of them."""
    lines = [row("Key", "Type", "Default", *(f"`{preset}`" for preset in PRESETS), "Description"), row(*["---"] * (4 + len(PRESETS)))]
    for key, description in keys:
        field = group.model_fields[key]
        default = "(needed)" if field.is_required() else show(field.default)
        values = (show(part[key]) if key in part else "" for part in said)
        lines.append(row(f"`{key}`", words(field.rebuild_annotation()), default, *values, description.replace("None", "null")))
    return "\n".join(lines)


def section(title: str, group: type[Group], said: list[dict[str, Any]]) -> list[str]:
    """The keys that a class itself has, below the first line of its docstring."""
    about = (inspect.getdoc(group) or "").splitlines()[0]
    return [title, about, table(group, [(key, text) for _, key, text in described(group)], said)]


def listed(values: dict[str, Any]) -> str:
    """Keys with their defaults, in a sentence."""
    return ", ".join(f"`{key}` ({show(value)})" for key, value in values.items())


def page() -> str:
    """The whole page."""
    recipes = [recipe(preset) for preset in PRESETS]
    fields = described(Settings)
    parts = [HEAD.rstrip()]
    for heading in dict.fromkeys(above for above, _, _ in fields):
        title = heading.partition(";")[0]
        parts += [f"## {title}", table(Settings, [(key, text) for above, key, text in fields if above == heading], recipes)]
    parts += ["## Steps", "`steps` is a list of these, told apart by `do`."]
    parts += section("### Every pruning step", PruningStep, [{}] * len(PRESETS))
    for name in STEPS:
        said = [next((step for step in content["steps"] if step["do"] == name), {}) for content in recipes]
        parts += section(f"### {name}", GROUPS[name], said)
    for name in (name for name in GROUPS if name not in STEPS):
        parts += section(f"## {name}", GROUPS[name], [content.get(name, {}) for content in recipes])
    return "\n\n".join([*parts, *recbole()]) + "\n"


def recbole() -> list[str]:
    """What becomes of RecBole's keys."""
    defaults = recbole_defaults(())
    shared = either([f"`{key}`" for key in Settings.model_fields if key in defaults]).replace(" or ", " and ")
    hidden = (*Settings.model_fields, *REFUSED, "gpu_id", "use_gpu")
    theirs = {key: properties("protocol").get(key, value) for key, value in defaults.items() if key not in hidden}
    data = {key: value for key, value in theirs.items() if key in recbole_data_keys()}
    training = {key: value for key, value in theirs.items() if key not in data}
    texts = (OWN.format(shared=shared), DATA.format(listed(data)), TRAINING.format(listed(training)))
    refused = [row("Key", "Why"), row("---", "---"), *(row(f"`{key}`", reason) for key, reason in REFUSED.items())]
    return ["## RecBole's keys", *(textwrap.fill(text, WIDTH, break_on_hyphens=False) for text in texts), "### Refused", "\n".join(refused)]


if __name__ == "__main__":
    write_text(PAGE, page())
    sys.stdout.write(f"{PAGE}\n")
