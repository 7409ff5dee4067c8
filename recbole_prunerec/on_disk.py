"""What the files on disk tell about a dataset and a backbone, before anything heavy is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.prune.budget import FAMILY_NAMES
from recbole_prunerec.shipped import properties

SIZES = ("num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size")


def dataset_problems(dataset: str, data_path: str) -> list[str]:
    """Whether the data are there: ml-100k comes with RecBole."""
    if dataset == "ml-100k":
        return []
    path = Path(dataset)
    if path.name != dataset:
        return [f"dataset={dataset} is a path; write --data_path={path.parent} --dataset={path.name}"]
    if any(file.name.startswith(f"{dataset}.") for file in (Path(data_path) / dataset).glob("*.inter")):  # one, or benchmark_filename's parts
        return []
    there = sorted({"ml-100k", *(file.parent.name for file in Path(data_path).glob("*/*.inter"))})
    wanted = f"{data_path.rstrip('/')}/{dataset}/{dataset}.inter"
    hint = f"found {', '.join(there)}{nearest(dataset, there)}"
    return [f"dataset={dataset} is not there: expected {wanted} and .item (RecBole's atomic files); {hint}"]


def backbone_config(key: str, name: str) -> Mapping[str, Any] | None:
    """The config of the backbone `name`, given as `key`: tiny's, or a folder's. None for a GGUF file or a hub name, which take transformers to read.

    Raises `UserError` where there is no such file or folder, or it holds no decoder that can be pruned.
    """
    got, path = f"{key}={name}", Path(name)
    if name == "tiny" and key == "backbone":
        return properties("backbone", "tiny")
    if name.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"{got} does not exist; give the path of a .gguf file")
        if find_spec("gguf") is None:
            raise UserError(f"{got} needs the package gguf to be read; run: pip install -c constraints.txt -e '.[gguf]'")
        return None
    if not path.is_dir():
        if key == "teacher" or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"{got} is not a folder; give the path of one with a Hugging Face model")
        return None
    path /= "config.json"
    if not path.is_file():
        raise UserError(f"{got} is a folder without config.json, so it holds no Hugging Face model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{got}: its config.json is damaged ({error}); fetch or save the model again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{got}: its config.json has no model_type, so it holds no Hugging Face model")
    if config["model_type"] not in FAMILY_NAMES:
        raise UserError(f"{got} is of the family {config['model_type']}, which is not supported; choose a model of {' or '.join(FAMILY_NAMES)}")
    missing = [size for size in SIZES if type(config.get(size)) is not int]
    if missing:
        raise UserError(f"{got}: its config.json lacks {', '.join(missing)}, so it is not a decoder that can be pruned")
    return config
