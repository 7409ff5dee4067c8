"""Which models GGUF can hold so that transformers reads the same model back: told from a config, before anything heavy is imported.

Its keys have no biases, no scaled or sliding attention, and of Qwen no width of a head; what is not there is taken to be the family's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # a Mistral without a window is a Llama
QWEN3_HEAD_DIM = 128  # what transformers takes it to be
INSTEAD = "use --to=onnx"


def gguf_problems(got: str, config: Mapping[str, Any]) -> list[str]:
    """Why the model `got`, whose config.json is `config`, cannot be written as GGUF; empty where nothing is in the way."""
    family, heads, hidden = config["model_type"], config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    reasons = [f"{key}={config[key]}, which GGUF has no key for" for key in ("attention_bias", "mlp_bias") if config.get(key)]
    if config.get("hidden_act", "silu") != "silu":
        reasons.append(f"hidden_act={config['hidden_act']}, and GGUF takes it to be silu")
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        reasons.append(f"rope_type={kind}, which transformers does not read from GGUF")
    if _slides(config):
        reasons.append(f"sliding_window={config['sliding_window']}, which transformers does not read from GGUF")
    if family == "qwen2" and heads * head_dim != hidden:
        reasons.append(f"head_dim={head_dim}, but transformers reads hidden_size / num_attention_heads = {hidden}/{heads} from GGUF")
    if family == "qwen3" and head_dim != QWEN3_HEAD_DIM:
        reasons.append(f"head_dim={head_dim}, but transformers takes it to be {QWEN3_HEAD_DIM} when it reads a Qwen3 from GGUF")
    if family == "mistral" and hidden % heads:
        reasons.append(f"hidden_size={hidden}, no multiple of num_attention_heads={heads}: as GGUF it is a Llama, whose config refuses that")
    return [f"{got} has {reason}; {INSTEAD}" for reason in reasons]


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether some prompt of the model is longer than what a layer attends to."""
    if config.get("sliding_window") is None or config["model_type"] == "llama":
        return False
    if config["model_type"] == "mistral":
        return bool(config["sliding_window"] < config.get("max_position_embeddings", 0))
    return bool(config.get("use_sliding_window")) and "sliding_attention" in config.get("layer_types", ["sliding_attention"])
