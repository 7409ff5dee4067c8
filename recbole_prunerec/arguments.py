"""From the command line and YAML to one tree of settings, layer over layer; `validation` judges it.

Nothing here imports torch, transformers or RecBole: a mistake is answered in a fraction of a second.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import dataset_recipe, merge, names, properties, read_yaml, read_yaml_file, recbole_defaults, recipe
from recbole_prunerec.validation.sentences import show, unknown
from recbole_prunerec.validation.validate import known_models, validate

USAGE = """python run_recbole.py --model=PruneRec [--key=value ...]

  --model=PruneRec            or Popularity, SASRec, GRU4Rec, Caser, DLLM2Rec, SLMRec, any RecBole sequential model; several with commas are one table
  --dataset=ml-100k           or a folder <data_path>/<dataset>/ with RecBole's atomic files, or one of RecBole's by name (amazon-video-games-18),
                              which is fetched where it is not there
  --backbone=tiny             or a Hugging Face name (Qwen/Qwen2-0.5B), a folder, a .gguf file
  --preset=tiny               or quick (a smoke run in seconds), paper, paper-16, smollm2; by default the one that names the backbone
  --teacher=<folder>          a fine-tuned model instead of the finetune step (leave it out of --steps)
  --config_files="a.yaml b.yaml"
  --device=cpu                or cuda, cuda:1 (RecBole's gpu_id and use_gpu are understood); a GPU is taken where there is one
  --steps.2.hidden=96         any setting by its path; steps count from 1
  --baselines.epochs=300      RecBole's settings of the other models, in a run with PruneRec; in a run without it: --epochs=300
  --fresh                     start a run anew that would go on, or is finished
  --yes                       to a download of more than 1 GiB, which is otherwise asked about, or refused where nobody can answer
  --dry_run                   show the data, the model's shape after each step, and what time, memory and disk a run takes; then stop

Settings: recbole_prunerec/settings.py; recipes: properties/preset/; RecBole's own keys keep their names.
"""
FOR_EVERY_MODEL = ("training_rows", "test_rows", "worthless", "baselines")  # what a run without PruneRec takes from a preset
WORDS = ("fresh", "dry_run", "yes")  # may stand without a value

logger = logging.getLogger(__name__)


class Arguments(NamedTuple):
    """What the command line asks for."""

    settings: Settings
    fresh: bool  # start the run anew
    dry_run: bool = False  # say what the run would take, and stop
    yes: bool = False  # to a large download


def load_arguments(argv: Sequence[str], below: Mapping[str, Any] | None = None, fixed: Mapping[str, Any] | None = None) -> Arguments:
    """Everything from `argv`, validated. Raises one `UserError` with every problem found, one a line.

    The layers, each over the one before: protocol.yaml, model/PruneRec.yaml (where PruneRec runs), dataset/<name>.yaml, the preset, `config_files` in
    their order, the command line. The preset is the first that names the backbone, or paper where none does. A command may put a layer `below` the
    files, and `fixed` values over all, whose keys cannot be given.
    """
    problems: list[str] = []
    below, fixed = below or {}, fixed or {}
    given = parse(argv, problems)
    refused = [key for key in given if key.partition(".")[0] in fixed]
    problems += [f"--{key}={given.pop(key)}: this command decides on that itself; leave it out" for key in refused]
    files = _config_files(given.pop("config_files", None), problems)
    values = {key: value for key, text in given.items() for value in _read(key, text, problems)}
    words = {word: values.pop(word, False) for word in WORDS}
    problems += [f"{word}={show(value)}: expected true, false, or the bare --{word}" for word, value in words.items() if not isinstance(value, bool)]
    paths = {key: values.pop(key) for key in list(values) if "." in key}
    user = {**merge(merge(below, files), values), **fixed}
    user |= {key: _listed(key, user[key], problems) for key in user if isinstance(_defaults().get(key), (list, tuple))}
    tree = _layers(user, problems)
    for path, value in paths.items():
        if not path.startswith("steps.") or "steps" in tree:
            _set(tree, path, value, problems)
        elif "PruneRec" not in tree["model"]:  # otherwise the preset is unknown, which is reported already
            problems.append(f"{path}={show(value)} is for PruneRec, which is not in model={','.join(tree['model'])}; leave it out")
    settings = validate(tree, problems)
    if "preset" not in user and settings.steps:
        _say_where_made_for_another(settings)
    return Arguments(settings, **words)


def _layers(user: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The tree: what is shipped for the model, dataset and preset that the user's layer names, and that layer over it."""
    names_of = {key: [_redirect(str(model)) for model in user[key]] for key in ("model", "compare") if key in user}
    models = names_of.setdefault("model", ["PruneRec"])
    ours = "PruneRec" in models or not set(models) <= set(known_models())  # whatever a misspelt model is, its keys are judged as PruneRec's
    preset = user["preset"] if "preset" in user else preset_of(user.get("backbone", "tiny")) if ours else "tiny"
    content = {}
    if preset in names("preset"):
        content = recipe(preset)
    else:
        got = preset if isinstance(preset, str) and preset.strip() else show(preset)
        problems.append(unknown(f"preset={got}", got, names("preset")))
        preset = "tiny"  # whatever; there is no run
    dataset = user.get("dataset", "ml-100k")
    shipped = [
        properties("protocol"),
        properties("model", "PruneRec") if ours else {},
        dataset_recipe(dataset) if isinstance(dataset, str) else {},
        content if ours else {key: content[key] for key in FOR_EVERY_MODEL if key in content},
    ]
    tree: dict[str, Any] = reduce(merge, [*shipped, user, names_of, {"preset": preset}], {})
    if "valid_metric" not in user and tree["metrics"] and tree["topk"]:  # then it follows what is measured
        name, _, length = tree["valid_metric"].lower().partition("@")
        metric = next((metric for metric in tree["metrics"] if str(metric).lower() == name), tree["metrics"][0])
        tree["valid_metric"] = f"{metric}@{length if length in map(str, tree['topk']) else tree['topk'][0]}"
    return tree


def preset_of(backbone: Any) -> str:
    """The preset for a backbone: the first that names it, tiny before its smoke run, else the paper's."""
    found = [preset for preset in ("tiny", *names("preset")) if recipe(preset).get("backbone") == backbone]
    return [*found, "paper"][0]


def _say_where_made_for_another(settings: Settings) -> None:
    made_for = recipe(settings.preset)["backbone"]
    if "PruneRec" in settings.model and settings.backbone != made_for:
        told = (settings.backbone, settings.preset, made_for)
        logger.warning("backbone=%s has no preset of its own: preset=%s is taken, which was made for %s", *told)


def parse(argv: Sequence[str], problems: list[str]) -> dict[str, str]:
    """`--key=value`, `--key value` and bare words such as `--fresh`, as text by key; what is none of these is added to `problems`."""
    given: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        argument = re.fullmatch(r"--([\w-]+(?:\.[\w-]+)*)(=)?(.*)", word, re.DOTALL)
        if argument is None or (argument[3] and not argument[2]):
            example = f"--{word.lstrip('-')}" if re.match(r"-?\w[\w.]*=", word) else "--key=value"
            problems.append(f"unexpected argument {word!r}; arguments look like {example}")
            continue
        key, equals, value = argument[1].replace("-", "_"), argument[2], argument[3]
        if key in WORDS:
            value = value or "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                problems.append(f"--{key} has no value; write --{key}=<value>")
                continue
            value = rest.pop(0)
        if given.get(key, value) != value:
            problems.append(f"--{key} is given twice, as {given[key]} and as {value}; leave one out")
        given[key] = value
    return given


def _defaults() -> dict[str, Any]:
    """Defaults by key, whose types say how a value is read."""
    return {**recbole_defaults(()), **{key: field.default for key, field in Settings.model_fields.items()}, "benchmark_filename": []}


def _read(key: str, text: str, problems: list[str]) -> list[Any]:
    """The value of one argument, alone in a list: text as it stands where the key holds text, else YAML. Empty where that is broken."""
    if isinstance(_defaults().get(key), str) or key in ("teacher", "revision"):  # a commit may look like a number
        return [None if text in ("", "null", "~") else text]
    return _parsed(key, text, problems)


def _parsed(key: str, text: str, problems: list[str]) -> list[Any]:
    try:
        return [read_yaml(text, f"--{key}={text}")]
    except UserError as error:
        problems.append(str(error))
        return []


def _listed(key: str, value: Any, problems: list[str]) -> list[Any]:
    """A list, from one or from what stands for one: a single value, values with commas between them, or nothing."""
    if isinstance(value, str):
        return [part for text in value.split(",") if text.strip() for part in _parsed(key, text.strip(), problems)]
    return value if isinstance(value, list) else [] if value is None else [value]


def _redirect(model: str) -> str:
    """RecBole's Pop ranks one row a user; ours ranks the samples that all other systems rank."""
    if model != "Pop":
        return model
    logger.warning("model=Pop: Popularity takes its place, which ranks the same rows as every other system; RecBole's Pop ranks one row a user")
    return "Popularity"


def _config_files(paths: str | None, problems: list[str]) -> dict[str, Any]:
    """RecBole's `config_files`: YAML files separated by spaces, later ones over earlier ones."""
    merged: dict[str, Any] = {}
    if paths is not None and not paths.split():
        problems.append("--config_files is empty; name YAML files, or leave it out")
    for path in (paths or "").split():
        try:
            merged = merge(merged, read_yaml_file(Path(path)))
        except UserError as error:
            problems.append(f"--config_files: {error}")
    return merged


def _set(tree: dict[str, Any], path: str, value: Any, problems: list[str]) -> None:
    """Set a leaf by its dotted path; numbers index lists from 1. A path that leads nowhere is added to `problems`."""
    node: Any = tree
    *parents, leaf = path.split(".")
    for depth, key in enumerate([*parents, leaf]):
        above = ".".join(parents[:depth])
        place: int | str = key
        if isinstance(node, list):
            if not key.isdecimal() or not 1 <= int(key) <= len(node):
                problems.append(f"{path}={show(value)}: {above} has places 1 to {len(node)}, got {key}")
                return
            place = int(key) - 1
        elif not isinstance(node, dict):
            problems.append(f"{path}={show(value)}: {above} is {show(node)}, which has no parts; set {above} itself")
            return
        if depth == len(parents):
            node[place] = value
        else:
            node = node.setdefault(place, {}) if isinstance(node, dict) else node[place]
