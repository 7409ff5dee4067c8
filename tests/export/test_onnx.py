"""ONNX: onnxruntime says what the model says, for other numbers of prompts and other lengths than the graph was made from."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from exportable import write_exportable
from served_folder import TITLES, TOKENIZER
from tiny import MODELS, batch, llama, qwen3
from tokenizers import Tokenizer

from recbole_prunerec.errors import UserError
from recbole_prunerec.export.command import export
from recbole_prunerec.export.probe import Probe

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("recbole_prunerec.export.onnx")

SHALLOW = {"num_hidden_layers": 2, "vocab_size": len(TOKENIZER)}
OTHERS = {name: make for name, make in MODELS.items() if name != "qwen2"}
OTHERS |= {"llama biases": partial(llama, attention_bias=True, mlp_bias=True), "qwen3 untied": partial(qwen3, tie_word_embeddings=False)}


def difference(folder, model, inputs) -> float:
    """The largest difference at tokens that are no padding, with the graph run by itself."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    given = {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    (found,) = session.run(None, given)
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(value) for name, value in given.items()}).logits.numpy()
    assert found.shape == expected.shape and found.dtype == np.float32
    return float(np.abs(found - expected)[given["attention_mask"] == 1].max())


def check(tmp_path, make) -> None:
    model = make(0, torch.float32, **SHALLOW)
    write_exportable(tmp_path / "step", model)
    export(str(tmp_path / "step"), "onnx", str(tmp_path / "out"))
    for rows, prompt in ((4, (5, 12)), (1, (3, 4)), (7, (30, 60))):
        assert difference(tmp_path / "out", model, batch(rows, prompt, vocab=len(TOKENIZER))) < 1e-4


def test_onnxruntime_says_what_the_model_says(tmp_path):
    check(tmp_path, MODELS["qwen2"])
    folder = tmp_path / "out"
    assert {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert all(plain.encode(title).ids == TOKENIZER(title).input_ids for title in TITLES)
    assert json.loads((folder / "config.json").read_text())["use_cache"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "step"]


@pytest.mark.slow
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_every_family_does(tmp_path, make):
    check(tmp_path, make)


def test_a_graph_that_says_something_else_is_not_kept(tmp_path, monkeypatch, capfd):
    """As one did whose two inputs were traced as one."""
    write_exportable(tmp_path / "step", MODELS["llama"](0, torch.float32, **{**SHALLOW, "num_hidden_layers": 1}))
    (tmp_path / "step" / "README.md").write_text("---\nlicense: mit\n---\n")
    probe, seen = Probe.of, []

    def other(model, prompts):
        true = probe(model, prompts)
        return Probe(true.ids, true.mask, true.logits + 2e-4 * true.logits.abs().max())

    def licence(path, *_):
        seen.append(onnxruntime.InferenceSession(path / "model.onnx").get_modelmeta().custom_metadata_map["license"])
        return true_read(path, *_)

    true_read = onnx.read
    monkeypatch.setattr(Probe, "of", other)
    monkeypatch.setattr(onnx, "read", licence)
    with pytest.raises(UserError) as raised:
        export(str(tmp_path / "step"), "onnx", str(tmp_path / "out"))
    said = re.search(
        r"differ from the model's by at most (.+), the largest being (.+); that is over 1e-04 of it, and nothing is kept", str(raised.value)
    )
    assert float(said[1]) == pytest.approx(2e-4 * float(said[2]), rel=0.1)
    assert seen == ["mit"] and [path.name for path in tmp_path.iterdir()] == ["step"]
    assert capfd.readouterr().out == ""  # of torch's own talk
