"""A small GGUF file whose header is whole, written by the gguf package."""

import gguf
import numpy as np


def write_gguf(path, architecture="llama", tokens=True, tensors=2, embedding=3, odd=None, **sizes) -> None:
    """A GGUF file with every type of value, by the gguf package; `embedding` is the number of its rows, `odd` the type of one more tensor."""
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
    writer.add_license("mit")
    if embedding:
        writer.add_tensor("token_embd.weight", np.zeros((embedding, 48), np.float32))
    if odd is not None:  # bytes of a type of weights
        writer.add_tensor("odd", np.zeros((1, sum(gguf.GGML_QUANT_SIZES[odd])), np.uint8)[:, : gguf.GGML_QUANT_SIZES[odd][1]], raw_dtype=odd)
    for number in range(tensors):
        writer.add_tensor(f"tensor.{number}", np.zeros((number + 1, 33), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
