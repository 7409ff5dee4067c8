"""Headers of weight files, read with nothing but the standard library: whether a file is whole, and what is in it.

safetensors: https://github.com/huggingface/safetensors#format. GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any

LARGEST_HEADER = 100_000_000  # bytes; safetensors itself takes no more
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # GGUF's types of values
TEXT, ARRAY = 8, 9
# Of GGUF's types of weights: weights a block, and bytes a block.
BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 30: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8)},  # f32, f16, bf16, i8 to i64, f64
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40)},  # q4_0, q4_1, q5_0, q5_1, q8_0, q8_1
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},  # q2_k to q6_k, q8_k
}
SIZES = {  # transformers' names of GGUF's
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}


class Damaged(Exception):
    """A file is not what its name says: starts with the file's name."""


def read_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the weights in a safetensors file. Raises `Damaged` where it is cut or something else."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise Damaged(f"{path.name} is a pointer of Git LFS and not the file itself (run git lfs pull)")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or (2 <= length <= LARGEST_HEADER and 8 + length > size):
            raise Damaged(f"{path.name} is cut within its header, after {size:,} bytes")
        if not 2 <= length <= LARGEST_HEADER:
            raise Damaged(f"{path.name} is no safetensors file")
        try:
            weights = {name: entry for name, entry in json.loads(file.read(length)).items() if name != "__metadata__"}
            end = 8 + length + max((entry["data_offsets"][1] for entry in weights.values()), default=0)
            shapes = {name: tuple(map(int, entry["shape"])) for name, entry in weights.items()}
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:  # no JSON, or other JSON
            raise Damaged(f"{path.name} has a damaged header") from error
    if size != end:
        raise Damaged(f"{path.name} is {'cut: it has' if size < end else 'too long: it has'} {size:,} bytes, of {end:,}")
    return shapes


def read_gguf(path: Path) -> dict[str, Any]:
    """The config of a GGUF file, by transformers' names. Raises `Damaged` where it is cut, has no tokenizer, or is something else."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Damaged(f"{path.name} is no GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                values, end = _Header(data).read()
            except (struct.error, IndexError) as error:  # read beyond the end
                raise Damaged(f"{path.name} is cut within its header, after {size:,} bytes") from error
            except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
                raise Damaged(f"{path.name} has a damaged header") from error
    if size < end:
        raise Damaged(f"{path.name} is cut: it has {size:,} bytes, of {end:,}")
    if not values.get("tokenizer.ggml.tokens"):
        raise Damaged(f"{path.name} has no tokenizer")
    family = values.get("general.architecture")
    sizes = {name: values.get(f"{family}.{theirs}") for name, theirs in SIZES.items()}
    return {"model_type": family, "vocab_size": values["tokenizer.ggml.tokens"], **sizes}


class _Header:
    """Reads a GGUF header from its start to its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4

    def read(self) -> tuple[dict[str, Any], int]:
        """Values by key, of lists only their length; and where the file must end."""
        if self._scalar("I") not in (2, 3):
            raise ValueError("version")
        count, pairs = self._scalar("Q"), self._scalar("Q")
        values = {self._text(): self._value(self._scalar("I")) for _ in range(pairs)}
        ends = []
        for _ in range(count):
            self._text()
            weights = math.prod(self._scalar("Q") for _ in range(self._scalar("I")))
            block, length = BLOCKS.get(self._scalar("I"), (1, 0))  # of a type that is not known only the start is
            ends.append(-(-weights // block) * length + self._scalar("Q"))
        alignment = values.get("general.alignment", 32)
        return values, -(-self._at // alignment) * alignment + max(ends, default=0)

    def _scalar(self, kind: str) -> Any:
        (value,) = struct.unpack_from("<" + kind, self._data, self._at)
        self._at += struct.calcsize("<" + kind)
        return value

    def _text(self) -> str:
        length = self._scalar("Q")
        text = self._data[self._at : self._at + length]
        self._skip(length)
        return text.decode()

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text()
        if kind != ARRAY:
            return self._scalar(SCALARS[kind])
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind == TEXT:
            for _ in range(count):
                self._skip(self._scalar("Q"))
        else:
            self._skip(count * struct.calcsize("<" + SCALARS[kind]))
        return count

    def _skip(self, length: int) -> None:
        if self._at + length > len(self._data):
            raise IndexError(length)
        self._at += length
