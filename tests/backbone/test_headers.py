"""Headers of weight files against the libraries that write them: what is whole is read right, and a file cut anywhere is found out."""

import struct

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone.headers import BLOCKS, Damaged, read_gguf, read_safetensors
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
    assert read_safetensors(weights) == {name: tensor.shape for name, tensor in TENSORS.items()}


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


def write_gguf(path, architecture="llama", tokens=True, tensors=2, **sizes) -> None:
    """A GGUF file with every type of value, by the gguf package."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for number, add in enumerate(
        (writer.add_uint8, writer.add_int8, writer.add_uint16, writer.add_int16, writer.add_uint32, writer.add_int32, writer.add_float32)
    ):
        add(f"test.{number}", 1)
    writer.add_bool("test.bool", True)
    writer.add_uint64("test.u64", 1)
    writer.add_int64("test.i64", -1)
    writer.add_float64("test.f64", 0.5)
    writer.add_array("test.numbers", [1, 2, 3])
    for name, size in {"embedding_length": 48, "block_count": 3, "feed_forward_length": 56, "attention.head_count": 6, **sizes}.items():
        writer.add_uint32(f"{architecture}.{name}", size)
    if tokens:
        writer.add_token_list(["ä", "b", "c"])
    for number in range(tensors):
        writer.add_tensor(f"tensor.{number}", np.zeros((number + 1, 33), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_header_gives_the_config_by_transformers_names(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, **{"attention.head_count_kv": 2})
    expected = {"hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 56, "num_attention_heads": 6, "num_key_value_heads": 2}
    assert read_gguf(path) == {"model_type": "llama", "vocab_size": 3, **expected}
    write_gguf(path, "qwen2")
    assert read_gguf(path) == {"model_type": "qwen2", "vocab_size": 3, **expected, "num_key_value_heads": None}


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
    assert read_gguf(path)["model_type"] == "llama"


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
    path.write_bytes(path.read_bytes()[:100])
    assert mistake() == f"backbone={path}: its model.gguf is cut within its header, after 100 bytes; fetch it again"
