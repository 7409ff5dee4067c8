"""Files of tensors, with text beside them, under a checksum: what is kept to spare work, and may be made again where it is damaged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from recbole_prunerec.storage import hash_of, write_bytes

CHECKSUM = "sha256"

logger = logging.getLogger(__name__)


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and texts as `write_checked` left them. None where there is no file, or with a word in the log where it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  # not a dictionary
    except SafetensorError:
        tensors, texts = {}, {}
    if texts.pop(CHECKSUM, None) == _checksum(tensors, texts):
        return tensors, texts
    logger.warning("%s is damaged; it is made again", path)
    return None


def write_checked(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str] | None = None) -> None:
    """Write `tensors`, which are contiguous, on the CPU and share no memory, and `texts`, atomically."""
    texts = dict(texts or {})
    write_bytes(path, save(dict(tensors), {**texts, CHECKSUM: _checksum(tensors, texts)}))


def _checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    content = {name: hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy().data).hexdigest() for name, value in tensors.items()}
    shapes = {name: [str(value.dtype), *value.shape] for name, value in tensors.items()}
    return hash_of([content, shapes, dict(texts)])
