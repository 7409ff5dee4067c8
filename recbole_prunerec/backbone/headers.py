"""JSON and headers of weight files, read with nothing but the standard library: whether a file is whole, and what is in it.

safetensors: https://github.com/huggingface/safetensors#format. GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

LARGEST_HEADER = 100_000_000  # bytes; safetensors itself takes no more
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # GGUF's types of values
TEXT, ARRAY = 8, 9
# Of GGUF's types of weights: weights a block, and bytes a block.
BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 30: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8)},  # f32, f16, bf16, i8 to i64, f64
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40)},  # q4_0, q4_1, q5_0, q5_1, q8_0, q8_1
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},  # q2_k to q6_k, q8_k
}
GGUF_TYPES = {0: "f32", 1: "f16", 30: "bf16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0"}  # names of the common ones
GGUF_TYPES |= {10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k"}
NOT_DEQUANTIZED = (9, 15, 24, 25, 26, 27, 28)  # q8_1, q8_k, i8 to i64, f64: types that the gguf package does not turn into floats
LATEST = 40  # of its types that it does
AT_ONCE = 2**20  # bytes that are compared
SIZES = {  # transformers' names of GGUF's
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}


class Damaged(Exception):
    """A file is not what its name says: starts with the file's name."""


def read_json(path: Path) -> Any:
    """Raises `Damaged` where it is no JSON."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("version https://git-lfs"):
            raise Damaged(f"{path.name} is a pointer of Git LFS and not the file itself (run git lfs pull)")
        return json.loads(text)
    except ValueError as error:  # not JSON, or not UTF-8
        raise Damaged(f"{path.name} is damaged ({error})") from error


class Weight(NamedTuple):
    """What a safetensors header says of a weight."""

    dtype: str  # such as BF16
    shape: tuple[int, ...]
    start: int  # its bytes in the file
    end: int


def read_safetensors(path: Path) -> dict[str, Weight]:
    """The weights in a safetensors file by name. Raises `Damaged` where it is cut or something else."""
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
            weights = {
                name: Weight(str(entry["dtype"]), tuple(map(int, entry["shape"])), *(8 + length + int(place) for place in entry["data_offsets"]))
                for name, entry in json.loads(file.read(length)).items()
                if name != "__metadata__"
            }
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:  # no JSON, or other JSON
            raise Damaged(f"{path.name} has a damaged header") from error
    end = max((weight.end for weight in weights.values()), default=8 + length)
    if size != end:
        raise Damaged(f"{path.name} is {'cut: it has' if size < end else 'too long: it has'} {size:,} bytes, of {end:,}")
    return weights


def same_bytes(one: tuple[Path, Weight], other: tuple[Path, Weight]) -> bool:
    """Whether two weights, each with the safetensors file it lies in, are the same to the bit; read no further than to the first difference."""
    (path, first), (path_of_other, second) = one, other
    if first[:2] != second[:2]:
        return False
    with path.open("rb") as file, path_of_other.open("rb") as other_file:
        file.seek(first.start)
        other_file.seek(second.start)
        steps = [min(AT_ONCE, first.end - place) for place in range(first.start, first.end, AT_ONCE)]
        return all(file.read(step) == other_file.read(step) for step in steps)


@dataclass(frozen=True)
class Gguf:
    """The header of a GGUF file: `values` by key, of lists only their length, and of each of its `tensors` the type and the shape, rows last."""

    values: dict[str, Any]
    tensors: dict[str, tuple[int, tuple[int, ...]]]

    @property
    def licence(self) -> str | None:
        """As the header has it, such as apache-2.0."""
        licence = self.values.get("general.license")
        return licence if isinstance(licence, str) and licence.strip() else None

    @property
    def unreadable(self) -> str | None:
        """The first tensor of a type that cannot be turned into floats, with its type; None where there is none."""
        odd = [f"{name} (type {kind})" for name, (kind, _) in self.tensors.items() if kind in NOT_DEQUANTIZED or kind > LATEST]
        return odd[0] if odd else None

    def config(self) -> dict[str, Any]:
        """The model's config, by transformers' names. The output head is tied where it has no weights of its own."""
        family = self.values.get("general.architecture")
        sizes = {name: self.values.get(f"{family}.{theirs}") for name, theirs in SIZES.items()}
        widths = (self.values.get(f"{family}.{key}") for key in ("attention.key_length", "rope.dimension_count"))
        head_dim = next((width for width in widths if width), None)  # without, it is what the family's config takes it to be
        return {
            "model_type": family,
            "vocab_size": self.values.get(f"{family}.vocab_size") or self.values["tokenizer.ggml.tokens"],
            **sizes,
            **({"head_dim": head_dim} if head_dim else {}),
            "tie_word_embeddings": "output.weight" not in self.tensors,
        }


def read_gguf(path: Path) -> Gguf:
    """The header of a GGUF file. Raises `Damaged` where it is cut, has no tokenizer, or is something else."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Damaged(f"{path.name} is no GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header, end = _Header(data).read()
            except (struct.error, IndexError) as error:  # read beyond the end
                raise Damaged(f"{path.name} is cut within its header, after {size:,} bytes") from error
            except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
                raise Damaged(f"{path.name} has a damaged header") from error
    if size < end:
        raise Damaged(f"{path.name} is cut: it has {size:,} bytes, of {end:,}")
    if not header.values.get("tokenizer.ggml.tokens"):
        raise Damaged(f"{path.name} has no tokenizer")
    return header


class _Header:
    """Reads a GGUF header from its start to its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4

    def read(self) -> tuple[Gguf, int]:
        """The header, and where the file must end."""
        if self._scalar("I") not in (2, 3):
            raise ValueError("version")
        count, pairs = self._scalar("Q"), self._scalar("Q")
        values = {self._text(): self._value(self._scalar("I")) for _ in range(pairs)}
        ends, tensors = [], {}
        for _ in range(count):
            name, shape = self._text(), tuple(self._scalar("Q") for _ in range(self._scalar("I")))
            kind = self._scalar("I")
            block, length = BLOCKS.get(kind, (1, 0))  # of a type that is not known only the start is
            ends.append(-(-math.prod(shape) // block) * length + self._scalar("Q"))
            tensors[name] = kind, shape
        alignment = values.get("general.alignment", 32)
        return Gguf(values, tensors), -(-self._at // alignment) * alignment + max(ends, default=0)

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
