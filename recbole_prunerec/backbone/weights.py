"""Whether a folder's weights are there, whole, safe to read, and those that its config describes: told from their headers, without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_prunerec.backbone.headers import Damaged, Weight, read_json, read_safetensors, same_bytes

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
UPDATE = "plan.safetensors"  # new weights that a step's plan names
BESIDE = ("probe.safetensors", "trie.safetensors", UPDATE)  # in a step's folder, and no weights
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"

Found = Mapping[str, tuple[Path, Weight]]  # by name, with the file that each lies in


def weight_problems(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the weights in `folder`, each problem to stand behind its name. Raises `Damaged` where a file is none of its kind."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if WEIGHTS in names or INDEX in names:
        lacking, weights = _read(folder, names)
        return lacking or _misfits(config, weights) or _head_problems(config, weights)
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return [
            f" has its weights as a pickle only ({', '.join(pickles)}), which can run code when it is read; "
            "choose a model with safetensors, or save it as such where you trust it"
        ]
    others = [name for name in names if name.endswith(".safetensors") and name not in BESIDE]
    return [f" has no weights ({WEIGHTS})" + (f"; it has {', '.join(others)}, which nothing looks for under that name" if others else "")]


def _read(folder: Path, names: list[str]) -> tuple[list[str], Found]:
    """What files are lacking, and all weights, of one file or of several with an index."""
    if WEIGHTS in names:
        return [], {name: (folder / WEIGHTS, weight) for name, weight in read_safetensors(folder / WEIGHTS).items()}
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) and Path(file).name == file for file in places.values()):
        raise Damaged(f"{INDEX} does not say where the weights are")
    files = sorted(set(places.values()))
    lacking = [file for file in files if file not in names]
    if lacking:
        return [f" lacks {', '.join(lacking)}, named in its {INDEX}; fetch the model again"], {}
    parts = {file: read_safetensors(folder / file) for file in files}
    absent = [name for name, file in places.items() if name not in parts[file]]
    if absent:
        raise Damaged(f"{INDEX} names {absent[0]}, which is not in {places[absent[0]]}")
    return [], {name: (folder / file, weight) for file, part in parts.items() for name, weight in part.items()}


def _misfits(config: Mapping[str, Any], weights: Found) -> list[str]:
    """Where the weights are others than the config says: transformers would draw what is missing at random."""
    layers = 1 + max((int(match[1]) for name in weights if (match := re.search(r"layers\.(\d+)\.", name))), default=-1)
    if layers != config["num_hidden_layers"]:
        return [f" has weights of {layers} layers, but its config.json says num_hidden_layers={config['num_hidden_layers']}; fetch the model again"]
    embedding = _ending(weights, EMBEDDING)
    expected = (config["vocab_size"], config["hidden_size"])
    if embedding is None or embedding[1].shape != expected:
        got = f"an embedding of shape {list(embedding[1].shape)}" if embedding else "no embedding"
        return [f" has {got}, but its config.json says vocab_size={expected[0]}, hidden_size={expected[1]}; fetch the model again"]
    return []


def _head_problems(config: Mapping[str, Any], weights: Found) -> list[str]:
    """Where output head and embedding are not as tied as the config says: transformers would draw a head, or leave one untied that it calls tied."""
    embedding, head = _ending(weights, EMBEDDING), _ending(weights, HEAD)
    if not config.get("tie_word_embeddings", False):  # transformers' default in every family
        return [] if head else [f" lacks {HEAD}; fetch the model again, or set tie_word_embeddings=true in its config.json where the head is tied"]
    if head and embedding and not same_bytes(head, embedding):
        return [f" has a {HEAD} other than its embedding, but its config.json ties the two; set tie_word_embeddings=false there to keep both"]
    return []


def _ending(weights: Found, end: str) -> tuple[Path, Weight] | None:
    return next((weight for name, weight in weights.items() if name.endswith(end)), None)
