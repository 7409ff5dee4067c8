"""What a backbone's files tell before anything heavy is imported: its family and sizes, and whether tokenizer and weights are there and whole."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from os.path import isdir, isfile  # unlike those of Path, False for a name that no file can have
from pathlib import Path
from typing import Any

from recbole_prunerec.backbone.headers import Damaged, read_gguf, read_safetensors
from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.prune.budget import FAMILY_NAMES
from recbole_prunerec.shipped import names, properties

SIZES = ("num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
HUB_NAME = re.compile(r"(?!.*(--|\.\.))(?=.{1,96}$)\w[\w.-]*/\w([\w.-]*\w)?", re.ASCII)
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))  # any of these, whole
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = ("probe.safetensors", "trie.safetensors")  # in a step's folder, and no weights
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def backbone_config(key: str, name: str) -> Mapping[str, Any] | None:
    """The config of the model `name`, given as `key` ("backbone" or "teacher"). None for a name on the hub.

    Raises `UserError` where there is no such file or folder, or it holds no whole decoder that can be pruned.
    """
    config, problems = judge_backbone(key, name)
    if problems:
        raise UserError("\n".join(problems))
    return config


def folder_config(got: str, folder: Path) -> Mapping[str, Any]:
    """The config of the Hugging Face model in `folder`, which was given as `got`. Raises `UserError` with all that is wrong with its files."""
    config, problems = _judge_folder(got, folder)
    if problems:
        raise UserError("\n".join(problems))
    return config


def judge_backbone(key: str, name: str) -> tuple[Mapping[str, Any] | None, list[str]]:
    """As `backbone_config`, but problems are returned; the config is None where they leave none to read."""
    got, path = f"{key}={name}", Path(name)
    try:
        if name == "tiny" and key == "backbone":
            return properties("backbone", "tiny"), []
        if name.endswith(".gguf"):
            return _gguf_config(got, path), []
        if isdir(name):
            return _judge_folder(got, path)
    except UserError as error:
        return None, [str(error)]
    if isfile(name):
        return None, [f"{got} is a file; give the folder it lies in, or a file in GGUF whose name ends in .gguf"]
    if key == "teacher" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        hint = " (the shell leaves ~ as it is behind an equals sign; write $HOME)" if name.startswith("~") else ""
        return None, [f"{got} is not a folder; give the path of one with a Hugging Face model{hint}"]
    if not HUB_NAME.fullmatch(name):
        hint = nearest(name, names("backbone"))
        return None, [f"{got} is neither tiny, nor a folder, nor a name on the Hugging Face hub such as Qwen/Qwen2-0.5B{hint}"]
    return None, []


def _judge_folder(got: str, folder: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Raises `UserError` where there is no config to go by."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{got} is a folder without config.json, so it holds no Hugging Face model")
    try:
        config = _json(folder / "config.json")
    except Damaged as error:
        raise UserError(f"{got}: its {error}; fetch or save the model again") from error
    _check_config(got, "config.json", config)
    problems = []
    for check in (_tokenizer_problems, _weight_problems):
        try:
            problems += check(folder, config)
        except Damaged as error:
            problems.append(f": its {error}; fetch or save the model again")
    return config, [got + problem for problem in problems]


def _json(path: Path) -> Any:
    """Raises `Damaged` where it is no JSON."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("version https://git-lfs"):
            raise Damaged(f"{path.name} is a pointer of Git LFS and not the file itself (run git lfs pull)")
        return json.loads(text)
    except ValueError as error:  # not JSON, or not UTF-8
        raise Damaged(f"{path.name} is damaged ({error})") from error


def _check_config(got: str, source: str, config: Any) -> None:
    """Raises `UserError` where a config, read from `source`, is not one of a decoder that can be pruned."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{got}: its {source} has no model_type, so it holds no Hugging Face model")
    family, choice = config["model_type"], f"choose a model of one of the families {', '.join(FAMILY_NAMES)}"
    if "auto_map" in config:
        raise UserError(f"{got} wants to run code of its own (auto_map in its {source}), which is never run; {choice}")
    if family not in FAMILY_NAMES:
        raise UserError(f"{got} is of the family {family}, which is not supported; {choice}")
    missing = [size for size in SIZES if type(config.get(size)) is not int or config[size] < 1]
    if missing:
        raise UserError(f"{got}: its {source} lacks {', '.join(missing)}, so it is not a decoder that can be pruned")
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    if kv_heads is not None and (type(kv_heads) is not int or kv_heads < 1 or heads % kv_heads):
        raise UserError(f"{got}: its {source} has num_key_value_heads={kv_heads}, which does not divide num_attention_heads={heads}")
    if "quantization_config" in config:
        raise UserError(
            f"{got} is quantized (quantization_config in its {source}), and such weights cannot be cut; choose the model in full precision"
        )


def _tokenizer_problems(folder: Path, config: Mapping[str, Any]) -> list[str]:
    there = next((files for files in TOKENIZERS if all((folder / file).is_file() for file in files)), None)
    if there is None:
        return [" has no tokenizer (tokenizer.json, or vocab.json and merges.txt); save the model's tokenizer in the same folder"]
    if there == ("tokenizer.model",) and find_spec("sentencepiece") is None:
        return [" has its tokenizer as tokenizer.model only, which needs the package sentencepiece; run: pip install sentencepiece"]
    content = {name: _json(folder / name) for name in (*there, "tokenizer_config.json") if name.endswith(".json") and (folder / name).is_file()}
    if any(not isinstance(value, dict) for value in content.values()) or "model" not in content.get("tokenizer.json", {"model": None}):
        return [f": its {' or '.join(content)} holds no tokenizer; fetch or save the model again"]
    if "auto_map" in content.get("tokenizer_config.json", {}):
        return [" wants to run code of its own (auto_map in its tokenizer_config.json), which is never run; choose a stock tokenizer"]
    return []


def _weight_problems(folder: Path, config: Mapping[str, Any]) -> list[str]:
    found = sorted(path.name for path in folder.iterdir() if path.is_file())
    if WEIGHTS in found:
        return _misfits(config, read_safetensors(folder / WEIGHTS))
    if INDEX in found:
        index = _json(folder / INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not all(isinstance(file, str) and Path(file).name == file for file in places.values()):
            raise Damaged(f"{INDEX} does not say where the weights are")
        lacking = sorted(set(places.values()) - set(found))
        if lacking:
            return [f" lacks {', '.join(lacking)}, named in its {INDEX}; fetch the model again"]
        shapes = {file: read_safetensors(folder / file) for file in sorted(set(places.values()))}
        absent = [name for name, file in places.items() if name not in shapes[file]]
        if absent:
            raise Damaged(f"{INDEX} names {absent[0]}, which is not in {places[absent[0]]}")
        return _misfits(config, {name: shape for part in shapes.values() for name, shape in part.items()})
    pickles = [name for name in found if name.endswith(PICKLES)]
    if pickles:
        return [
            f" has its weights as a pickle only ({', '.join(pickles)}), which can run code when it is read; "
            "choose a model with safetensors, or save it as such where you trust it"
        ]
    others = [name for name in found if name.endswith(".safetensors") and name not in BESIDE]
    return [f" has no weights ({WEIGHTS})" + (f"; it has {', '.join(others)}, which nothing looks for under that name" if others else "")]


def _misfits(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Where the weights are others than the config says: transformers would draw what is missing at random."""
    layers = 1 + max((int(match[1]) for name in shapes if (match := re.search(r"layers\.(\d+)\.", name))), default=-1)
    if layers != config["num_hidden_layers"]:
        return [f" has weights of {layers} layers, but its config.json says num_hidden_layers={config['num_hidden_layers']}; fetch the model again"]
    embedding = next((shape for name, shape in shapes.items() if name.endswith("embed_tokens.weight")), ())
    expected = (config.get("vocab_size"), config["hidden_size"])
    if embedding != expected:
        got = f"an embedding of shape {list(embedding)}" if embedding else "no embedding"
        return [f" has {got}, but its config.json says vocab_size={expected[0]}, hidden_size={expected[1]}; fetch the model again"]
    return []


def _gguf_config(got: str, path: Path) -> Mapping[str, Any]:
    if not isfile(path):
        raise UserError(f"{got} does not exist; give the path of a .gguf file")
    if find_spec("gguf") is None:
        raise UserError(f"{got} needs the package gguf to be read; run: pip install -c constraints.txt -e '.[gguf]'")
    try:
        config = read_gguf(path)
    except Damaged as error:
        raise UserError(f"{got}: its {error}; fetch it again") from error
    _check_config(got, "header", config)
    return config
