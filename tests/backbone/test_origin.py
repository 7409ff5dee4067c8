"""Licence, commit and types of weights, as a model's files tell them."""

import json

import numpy as np
import pytest
from gguf_file import write_gguf
from hf_folder import write_folder
from safetensors.numpy import save_file

from recbole_prunerec.backbone.origin import Origin, licence_of, origin_of


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (None, None),
        ("", None),
        ("# A model\n\nlicense: mit\n", None),
        ("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n---\nlicense: mit\n---\n", "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: [mit, cc-by-4.0]\n---\n", "mit, cc-by-4.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlanguage: en\n---\n", None),
        ("---\n- a\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: mit\n", None),
        (b"\xff\xfe", None),
    ],
)
def test_the_licence_is_that_of_the_cards_header(tmp_path, card, expected):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert licence_of(tmp_path) == expected


def test_the_commit_is_that_of_the_hubs_cache_alone(tmp_path):
    for folder, expected in (("snapshots/" + "a1" * 20, "a1" * 20), ("snapshots/main", None), ("models/" + "a1" * 20, None)):
        assert origin_of(write_folder(tmp_path / folder)) == Origin(None, expected, "f32")


def test_types_are_those_of_the_weights_and_without_weights_those_of_the_config(tmp_path):
    folder = write_folder(tmp_path, torch_dtype="bfloat16")
    save_file({"a": np.zeros(1, np.float16), "b": np.zeros(2, np.float16), "c": np.zeros(3, np.float32)}, folder / "model.safetensors")
    save_file({"a": np.zeros(9, np.int8)}, folder / "probe.safetensors")
    assert origin_of(folder).types == "f16, f32"
    (folder / "model.safetensors").unlink()
    assert origin_of(folder).types == "bfloat16"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    assert origin_of(folder).types == "float16"


def test_a_gguf_files_origin(tmp_path):
    write_gguf(tmp_path / "model.gguf")
    assert origin_of(tmp_path / "model.gguf") == Origin("mit", None, "f32")
