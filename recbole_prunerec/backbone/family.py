"""Where a model family keeps its parts, and what sizes a model has.

Everything that reads or cuts weights goes through a `Family`, by parameter name, so that no module attribute that comes and goes between
transformers releases is relied on. Adding a family is one value in `FAMILIES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.storage import hash_of

PROVENANCE = ("_name_or_path", "architectures", "dtype", "transformers_version")  # keys of a config that loading and saving change
HALVES_KEY = "layer_halves"  # in a model's config: what is left of each of its layers, where that is not all

Left = Literal["both", "attention", "mlp"]  # of a layer: the weights of the other half are zero


@dataclass(frozen=True)
class Family:
    """Parameter and module names of one family of decoder-only models; `{}` stands for the layer's index."""

    model_type: str
    layers: str = "model.layers"
    layer: str = "model.layers.{}."
    embedding: str = "model.embed_tokens"
    head: str = "lm_head"
    final_norm: str = "model.norm"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"

    def module(self, model: nn.Module, part: str, layer: int) -> nn.Module:
        """The module of `part` (one of this family's names, such as `family.q`) in `layer`."""
        return model.get_submodule(self.layer.format(layer) + part)

    def residual_norms(self, layers: int) -> list[str]:
        """Names of all norms on the residual stream: two a layer, then the final one."""
        return [self.layer.format(index) + norm for index in range(layers) for norm in self.norms] + [self.final_norm]


FAMILIES: dict[str, Family] = {
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "llama": Family("llama"),
    "mistral": Family("mistral"),
}


def family_of(config: PretrainedConfig) -> Family:
    """The `Family` of a transformers config. Raises `UserError` for one we do not know."""
    if config.model_type not in FAMILIES:
        raise UserError(
            f"backbone family {config.model_type!r} is not supported; supported are {', '.join(FAMILIES)}{nearest(config.model_type, FAMILIES)}"
        )
    return FAMILIES[config.model_type]


@dataclass(frozen=True)
class Sizes:
    """A decoder's sizes: METHOD symbols d, L, h, g, d_k, m, V, whether the output head is tied, and which parts have biases or norms."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    halves: tuple[Left, ...] = ()  # what is left of each layer; empty: both halves of all

    @classmethod
    def of(cls, model: PreTrainedModel) -> Sizes:
        """Read the sizes from a model's config and the names of its weights."""
        family, config = family_of(model.config), model.config
        names = dict(model.named_parameters())
        first = family.layer.format(0)
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            intermediate=config.intermediate_size,
            vocab=names[family.embedding + ".weight"].shape[0],
            tied=family.head + ".weight" not in names,
            qkv_bias=first + family.q + ".bias" in names,
            o_bias=first + family.o + ".bias" in names,
            mlp_bias=first + family.up + ".bias" in names,
            qk_norm=first + family.q_norm + ".weight" in names,
            halves=tuple(getattr(config, HALVES_KEY, ())),
        )

    @classmethod
    def of_config(cls, config: Mapping[str, Any], got: str = "the config") -> Sizes:
        """Of the model that a transformers config as a dictionary (config.json) describes: its class is built, without weights.

        Raises `UserError`, which begins with what was `got`, where it cannot be built.
        """
        try:
            with torch.device("meta"):
                return cls.of(AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)))
        except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
            raise UserError(f"{got} could not be loaded: {' '.join(str(error).split())}") from error

    @property
    def embedding_parameters(self) -> int:
        """V * d, twice if the output head is not tied (METHOD 6)."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def non_embedding_parameters(self) -> int:
        """METHOD 6: L (h k (d+b) + 2 g k (d+b) + h k d + 3 d m + 2 d + 2 k n) + d, and the biases of o_proj and MLP where a config has them.

        A half of a layer that is zero does not count, nor does its norm.
        """
        d, h, g, k, m = self.hidden, self.heads, self.kv_heads, self.head_dim, self.intermediate
        attention = (h + 2 * g) * k * (d + self.qkv_bias) + h * k * d + d + 2 * k * self.qk_norm + d * self.o_bias
        mlp = 3 * d * m + d + (2 * m + d) * self.mlp_bias
        return (self.layers - self.halves.count("mlp")) * attention + (self.layers - self.halves.count("attention")) * mlp + d

    @property
    def halves_by_layer(self) -> tuple[Left, ...]:
        """What is left of each layer."""
        whole: Left = "both"
        return self.halves or (whole,) * self.layers

    @property
    def total_parameters(self) -> int:
        """All parameters, embeddings included."""
        return self.embedding_parameters + self.non_embedding_parameters

    def dict(self) -> Mapping[str, Any]:
        """The sizes as a plain dictionary, for JSON; `halves` only where not all are there."""
        return {name: value for name, value in asdict(self).items() if value != ()}


def state_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A detached copy-free view of the weights by name; a tied output head does not appear."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def model_hash(model: PreTrainedModel) -> str:
    """SHA-256 of a model's weights and config: the same before and after it is saved and loaded."""
    config = {key: value for key, value in json.loads(model.config.to_json_string(use_diff=False)).items() if key not in PROVENANCE}
    weights = {name: hashlib.sha256(weight.contiguous().cpu().view(torch.uint8).numpy().data).hexdigest() for name, weight in state_of(model).items()}
    return hash_of([config, weights])
