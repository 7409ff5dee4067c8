"""What a backbone's files tell before anything heavy is imported: its family and sizes, and whether tokenizer and weights are there and whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from os.path import isdir, isfile  # unlike those of Path, False for a name that no file can have
from pathlib import Path
from typing import Any

from recbole_prunerec.backbone.headers import Damaged, read_gguf, read_json
from recbole_prunerec.backbone.weights import weight_problems
from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.prune.budget import FAMILY_NAMES
from recbole_prunerec.shipped import names, properties

SIZES = ("num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
HUB_NAME = re.compile(r"(?!.*(--|\.\.))(?=.{1,96}$)\w[\w.-]*/\w([\w.-]*\w)?", re.ASCII)
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))  # any of these, whole
ADDED = ("tokenizer_config.json", "added_tokens.json")  # beside them, where tokens were added


def backbone_config(key: str, name: str) -> Mapping[str, Any] | None:
    """The config of the model `name`, given as `key` ("backbone" or "teacher"). None for a name on the hub.

    Raises `UserError` where there is no such file or folder, or it holds no whole decoder that can be pruned.
    """
    config, problems = judge_backbone(key, name)
    if problems:
        raise UserError("\n".join(problems))
    return config


def folder_config(got: str, folder: Path, parts: Sequence[str] = ("tokenizer", "weights")) -> Mapping[str, Any]:
    """The config of the Hugging Face model in `folder`, which was given as `got` and needs these `parts` beside.

    Raises `UserError` with all that is wrong with its files.
    """
    config, problems = _judge_folder(got, folder, parts)
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
            return _judge_folder(got, path, tuple(PARTS))
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


def _judge_folder(got: str, folder: Path, parts: Sequence[str]) -> tuple[Mapping[str, Any], list[str]]:
    """Raises `UserError` where there is no config to go by."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{got} is a folder without config.json, so it holds no Hugging Face model")
    try:
        config = read_json(folder / "config.json")
    except Damaged as error:
        raise UserError(f"{got}: its {error}; fetch or save the model again") from error
    _check_config(got, "config.json", config)
    problems = []
    for part in parts:
        try:
            problems += PARTS[part](folder, config)
        except Damaged as error:
            problems.append(f": its {error}; fetch or save the model again")
    return config, [got + problem for problem in problems]


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
    content = {name: read_json(folder / name) for name in (*there, *ADDED) if name.endswith(".json") and (folder / name).is_file()}
    if any(not isinstance(value, dict) for value in content.values()) or "model" not in content.get("tokenizer.json", {"model": None}):
        return [f": its {' or '.join(content)} holds no tokenizer; fetch or save the model again"]
    if "auto_map" in content.get("tokenizer_config.json", {}):
        return [" wants to run code of its own (auto_map in its tokenizer_config.json), which is never run; choose a stock tokenizer"]
    return [f": its {problem}" for problem in unembedded(_highest_id(content), config["vocab_size"])]


PARTS: dict[str, Callable[[Path, Mapping[str, Any]], list[str]]] = {"tokenizer": _tokenizer_problems, "weights": weight_problems}


def _highest_id(content: Mapping[str, Any]) -> int:
    """The highest token id in the JSON of a tokenizer's files, by name; -1 where they have none, or what has the form of none."""
    whole = content.get("tokenizer.json", {})
    model = whole["model"] if isinstance(whole.get("model"), dict) else {}
    added = whole.get("added_tokens")
    vocabularies = (model.get("vocab"), content.get("vocab.json"), content.get("added_tokens.json"))
    later = content.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    found = [
        *(index for vocabulary in vocabularies if isinstance(vocabulary, dict) for index in vocabulary.values()),
        *(len(vocabulary) - 1 for vocabulary in vocabularies if isinstance(vocabulary, list)),  # of a Unigram model
        *(token.get("id") for token in (added if isinstance(added, list) else ()) if isinstance(token, dict)),
        *(int(index) for index in (later if isinstance(later, dict) else ()) if index.isdecimal()),
    ]
    return max((index for index in found if type(index) is int), default=-1)


def unembedded(highest: int, rows: int) -> list[str]:
    """What is wrong where the `highest` id of a tokenizer lies beyond the `rows` of the embedding. More rows than tokens are fine."""
    if highest < rows:
        return []
    return [
        f"tokenizer has ids up to {highest:,}, but the embedding has {rows:,} rows; fetch the tokenizer that belongs to the model, "
        "or save both again after model.resize_token_embeddings"
    ]


def _gguf_config(got: str, path: Path) -> Mapping[str, Any]:
    if not isfile(path):
        raise UserError(f"{got} does not exist; give the path of a .gguf file")
    if find_spec("gguf") is None:
        raise UserError(f"{got} needs the package gguf to be read; run: pip install -c constraints.txt -e '.[gguf]'")
    try:
        header = read_gguf(path)
    except Damaged as error:
        raise UserError(f"{got}: its {error}; fetch it again") from error
    config = header.config()
    _check_config(got, "header", config)
    if header.unreadable:
        raise UserError(f"{got} has weights in a form that cannot be read, such as {header.unreadable}; choose a file in F16, Q8_0 or Q4_K_M")
    (_, rows), *_ = [shape for name, (_, shape) in header.tensors.items() if name == "token_embd.weight"] or [(0, config["vocab_size"])]
    if rows != config["vocab_size"]:
        raise UserError(f"{got} has {config['vocab_size']:,} tokens, but its embedding has {rows:,} rows; fetch it again")
    return config
