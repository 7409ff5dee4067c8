"""What GGUF cannot hold: said from the config, and true, since what is refused is not read back as it was."""

from functools import partial

import pytest
from exportable import write_exportable
from served_folder import TOKENIZER
from tiny import MODELS, llama, mistral, qwen2, qwen3

from recbole_prunerec.errors import UserError
from recbole_prunerec.export import command
from recbole_prunerec.export.limits import gguf_problems

SCALED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED["original_max_position_embeddings"] = 32
REFUSED = {
    "llama biases": (partial(llama, attention_bias=True), "attention_bias=True, which GGUF has no key for"),
    "llama MLP biases": (partial(llama, mlp_bias=True), "mlp_bias=True, which GGUF has no key for"),
    "qwen3 biases": (partial(qwen3, head_dim=128, attention_bias=True), "attention_bias=True, which GGUF has no key for"),
    "activation": (partial(llama, hidden_act="gelu"), "hidden_act=gelu, and GGUF takes it to be silu"),
    "scaled positions": (partial(llama, rope_parameters=SCALED), "rope_type=llama3, which transformers does not read from GGUF"),
    "qwen2 heads": (
        partial(qwen2, head_dim=16),
        "head_dim=16, but transformers reads hidden_size / num_attention_heads = 48/6 from GGUF",
    ),
    "qwen3 heads": (qwen3, "head_dim=8, but transformers takes it to be 128 when it reads a Qwen3 from GGUF"),
    "mistral hidden": (
        partial(mistral, hidden_size=40),
        "hidden_size=40, no multiple of num_attention_heads=6: as GGUF it is a Llama, whose config refuses that",
    ),
    "qwen2 window": (MODELS["qwen2 sliding"], "sliding_window=4, which transformers does not read from GGUF"),
    "qwen3 window": (partial(MODELS["qwen3 sliding"], head_dim=128), "sliding_window=4, which transformers does not read from GGUF"),
    "mistral window": (MODELS["mistral sliding"], "sliding_window=4, which transformers does not read from GGUF"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_would_not_come_back(tmp_path, monkeypatch, make, reason):
    pytest.importorskip("gguf")
    write_exportable(tmp_path / "step", make(0, vocab_size=len(TOKENIZER)))
    name = str(tmp_path / "step")
    with pytest.raises(UserError) as raised:
        command.export(name, "gguf", str(tmp_path / "a.gguf"))
    assert str(raised.value) == f"model={name} has {reason}; use --to=onnx"
    monkeypatch.setattr(command, "gguf_problems", lambda *_: [])
    with pytest.raises(UserError, match=r"its logits differ|could not be loaded"):
        command.export(name, "gguf", str(tmp_path / "a.gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_all_is_said_at_once_and_older_configs_are_understood():
    config = {"model_type": "llama", "num_attention_heads": 6, "hidden_size": 48, "attention_bias": True, "hidden_act": "relu"}
    config |= {"rope_scaling": {"type": "linear", "factor": 2.0}, "sliding_window": 4}
    assert [problem.split(" has ")[1].split("=")[0] for problem in gguf_problems("model=x", config)] == ["attention_bias", "hidden_act", "rope_type"]
    assert not gguf_problems("model=x", {"model_type": "qwen2", "num_attention_heads": 6, "hidden_size": 48, "rope_scaling": None})
    window = {"model_type": "qwen2", "num_attention_heads": 6, "hidden_size": 48, "sliding_window": 4}
    assert not gguf_problems("model=x", {**window, "use_sliding_window": False})
    assert not gguf_problems("model=x", {**window, "use_sliding_window": True, "layer_types": ["full_attention"]})
    assert len(gguf_problems("model=x", {**window, "use_sliding_window": True})) == 1
