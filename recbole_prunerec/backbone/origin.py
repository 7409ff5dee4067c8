"""What a backbone's files tell of where it comes from: commit, licence, and the types of its weights. Nothing is fetched, and torch is not needed."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recbole_prunerec.backbone.headers import GGUF_TYPES, read_gguf, read_safetensors
from recbole_prunerec.backbone.weights import BESIDE

CARD = re.compile(r"---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)  # the YAML header of a model card
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Origin:
    """Where a backbone comes from; None stands for what is not known."""

    licence: str | None = None  # as its card has it, such as apache-2.0
    commit: str | None = None  # of a model in the local cache of the hub
    types: str | None = None  # of its weights in their files, the most frequent first, such as bf16


def origin_of(source: Path) -> Origin:
    """The origin of the model in a folder or a .gguf file whose files have been judged whole."""
    types = _gguf_types(source) if source.suffix == ".gguf" else _folder_types(source)
    commit = source.name if source.parent.name == "snapshots" and COMMIT.fullmatch(source.name) else None
    return Origin(licence_of(source), commit, types)


def licence_of(source: Path) -> str | None:
    """The licence that a folder's model card (README.md) or a .gguf file's header names."""
    if source.suffix == ".gguf":
        return read_gguf(source).licence
    header: Any = None
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # no card, or one that nobody can read
        found = CARD.match((source / "README.md").read_text(encoding="utf-8"))
        header = yaml.safe_load(found[1]) if found else None
    names = header.get("license") if isinstance(header, dict) else None
    if names == "other":  # then its own name stands beside
        names = header.get("license_name") or names
    texts = [str(name) for name in (names if isinstance(names, list) else [names]) if name]
    return ", ".join(texts) or None


def _folder_types(folder: Path) -> str | None:
    """By the weights' own headers where they are there, else as the config says."""
    parts = [read_safetensors(path) for path in sorted(folder.glob("*.safetensors")) if path.name not in BESIDE]
    if parts:
        return _by_count(Counter(weight.dtype.lower() for part in parts for weight in part.values()))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("dtype", config.get("torch_dtype"))


def _gguf_types(path: Path) -> str:
    return _by_count(Counter(GGUF_TYPES.get(kind, f"type {kind}") for kind, _ in read_gguf(path).tensors.values()))


def _by_count(types: Counter[str]) -> str:
    return ", ".join(name for name, _ in types.most_common())
