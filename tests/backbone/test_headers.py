"""Headers of weight files against the libraries that write them: what is whole is read right, and a file cut anywhere is found out."""

import struct

import gguf
import numpy as np
import pytest
from gguf_file import write_gguf
from safetensors.numpy import save_file

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone import headers
from recbole_prunerec.backbone.headers import BLOCKS, GGUF_TYPES, Damaged, Gguf, read_gguf, read_safetensors, same_bytes
from recbole_prunerec.errors import UserError

TENSORS = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.int8), "none": np.zeros((0, 4), np.float16), "scalar": np.array(1.0)}


def damage(read, path) -> str:
    with pytest.raises(Damaged) as caught:
        read(path)
    return str(caught.value)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_the_shapes_of_a_safetensors_file(weights):
    found, content = read_safetensors(weights), weights.read_bytes()
    assert {name: weight.shape for name, weight in found.items()} == {name: tensor.shape for name, tensor in TENSORS.items()}
    assert {name: weight.dtype for name, weight in found.items()} == {"a": "F32", "b": "I8", "none": "F16", "scalar": "F64"}
    assert {name: content[weight.start : weight.end] for name, weight in found.items()} == {
        name: tensor.tobytes() for name, tensor in TENSORS.items()
    }


def test_weights_are_compared_to_the_last_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "AT_ONCE", 16)
    one = np.arange(21, dtype=np.float32)
    other, twin = one.copy(), one.reshape(3, 7)
    other[-1] += 1
    save_file({"one": one, "half": one.astype(np.float16)}, tmp_path / "a")
    save_file({"before": one[:3], "again": one, "other": other, "twin": twin}, tmp_path / "b")
    first, second = ({name: (path, weight) for name, weight in read_safetensors(path).items()} for path in (tmp_path / "a", tmp_path / "b"))
    assert same_bytes(first["one"], second["again"]) and same_bytes(second["again"], first["one"])
    assert not any(same_bytes(first["one"], part) for part in (second["other"], second["twin"], first["half"]))


def test_a_safetensors_file_cut_anywhere_is_found_out(weights):
    content = weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for size in (0, 5, 8, 20, header - 1, header, header + 1, len(content) - 1):
        weights.write_bytes(content[:size])
        expected = " within its header, after" if size < header else ": it has"
        assert damage(read_safetensors, weights).startswith(f"model.safetensors is cut{expected} {size:,} bytes"), size
    weights.write_bytes(content + b"1")
    assert damage(read_safetensors, weights) == f"model.safetensors is too long: it has {len(content) + 1:,} bytes, of {len(content):,}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", " is a pointer of Git LFS and not the file itself (run git lfs pull)"),
        (b"\x00" * 100, " is no safetensors file"),
        (b"<!DOCTYPE html><html>" * 10, " is no safetensors file"),
        (struct.pack("<Q", 10) + b"not json.." + b"\x00" * 50, " has a damaged header"),
        (struct.pack("<Q", 2) + b"[]", " has a damaged header"),
        (struct.pack("<Q", 7) + b'{"a":1}', " has a damaged header"),
        (struct.pack("<Q", 23) + b'{"a":{"data_offsets":7}', " has a damaged header"),
    ],
)
def test_what_is_no_safetensors_file_says_so(tmp_path, content, expected):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert damage(read_safetensors, path) == f"model.safetensors{expected}"


def test_a_gguf_header_gives_the_config_by_transformers_names(tmp_path):
    path = tmp_path / "model.gguf"
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 56, "num_attention_heads": 6, "num_key_value_heads": 2}
    expected = {"model_type": "llama", "vocab_size": 3, **sizes, "tie_word_embeddings": True}
    write_gguf(path, **{"attention.head_count_kv": 2})
    assert read_gguf(path).config() == expected and read_gguf(path).licence == "mit" and read_gguf(path).unreadable is None
    write_gguf(path, "qwen2")
    assert read_gguf(path).config() == {**expected, "model_type": "qwen2", "num_key_value_heads": None}
    for widths, head_dim in (({"rope.dimension_count": 8}, 8), ({"rope.dimension_count": 4, "attention.key_length": 16}, 16)):
        write_gguf(path, **{"attention.head_count_kv": 2, "vocab_size": 7, **widths})
        assert read_gguf(path).config() == {**expected, "vocab_size": 7, "head_dim": head_dim}


def test_a_gguf_file_cut_anywhere_is_found_out(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path)
    content = path.read_bytes()
    end = max(int(tensor.data_offset) + int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)  # behind it stands padding
    for size in (*range(4, end - 400, 7), end - 1):
        path.write_bytes(content[:size])
        assert damage(read_gguf, path).startswith("model.gguf is cut"), size
    assert damage(read_gguf, path) == f"model.gguf is cut: it has {end - 1:,} bytes, of {end:,}"
    path.write_bytes(content[:end])
    assert read_gguf(path).config()["model_type"] == "llama"


def test_what_is_no_gguf_file_says_so(tmp_path):
    path = tmp_path / "model.gguf"
    for content, expected in (
        (b"", " is no GGUF file"),
        (b"GGML" + b"\x00" * 40, " is no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), " has a damaged header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77), " has a damaged header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1), " has a damaged header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), " is cut within its header, after 24 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + b"\x00" * 8, " has no tokenizer"),
    ):
        path.write_bytes(content)
        assert damage(read_gguf, path) == f"model.gguf{expected}"


def test_the_sizes_of_ggufs_types_are_those_of_the_gguf_package():
    theirs = {kind.value: tuple(size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: size for kind, size in theirs.items() if kind in BLOCKS} == BLOCKS
    common = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")
    assert {kind.value for kind in gguf.GGMLQuantizationType if kind.name in common} <= set(BLOCKS)


@pytest.mark.parametrize("kind", gguf.GGMLQuantizationType, ids=lambda kind: kind.name)
def test_types_that_the_gguf_package_does_not_dequantize_are_those_that_are_refused(kind):
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8).view(np.float16 if kind.name == "F16" else np.uint8), kind)
        readable = True
    except NotImplementedError:
        readable = kind.name in ("F32", "F16")
    except (ValueError, TypeError):  # of zeros, but of a type that it knows
        readable = True
    unreadable = Gguf({}, {"a": (0, (1,)), "b": (int(kind), (1,))}).unreadable
    assert unreadable == (None if readable else f"b (type {int(kind)})")
    assert GGUF_TYPES.get(int(kind), kind.name.lower()) == kind.name.lower()


@pytest.mark.parametrize("architecture", ["phi3", "gemma2", "gpt2", "qwen2moe"])
def test_a_gguf_file_of_another_architecture_is_refused(tmp_path, architecture):
    write_gguf(tmp_path / "model.gguf", architecture)
    with pytest.raises(UserError, match=f"is of the family {architecture}, which is not supported; choose a model of one of the families qwen2, "):
        load_arguments([f"--backbone={tmp_path / 'model.gguf'}"])


def test_a_gguf_file_is_judged_as_a_folder_is(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, "phi3")
    argv = [f"--backbone={path}", "--steps=[{do: finetune}, {do: width, heads: 9, hidden: 24}]"]

    def mistake() -> str:
        with pytest.raises(UserError) as caught:
            load_arguments(argv)
        return str(caught.value)

    assert mistake().startswith(f"backbone={path} is of the family phi3, which is not supported; choose a model of one of the families qwen2, ")
    write_gguf(path, **{"attention.head_count": 0})
    assert mistake() == f"backbone={path}: its header lacks num_attention_heads, so it is not a decoder that can be pruned"
    write_gguf(path)
    assert mistake() == "steps.2.heads=9 is more than the model's 6"
    write_gguf(path, embedding=2)
    assert mistake() == f"backbone={path} has 3 tokens, but its embedding has 2 rows; fetch it again"
    write_gguf(path, odd=gguf.GGMLQuantizationType.Q8_K)
    assert mistake() == f"backbone={path} has weights in a form that cannot be read, such as odd (type 15); choose a file in F16, Q8_0 or Q4_K_M"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:100])
    assert mistake() == f"backbone={path}: its model.gguf is cut within its header, after 100 bytes; fetch it again"
