"""Pure cuts: a `Plan` and a model give a new, smaller stock model (METHOD 2-4, 8). Nothing is decided here, and the old model does not change."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from recbole_prunerec.backbone.family import HALVES_KEY, Family, Sizes, family_of, state_of
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.plan import Plan

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")  # keys of a config that name tokens

Cut = tuple[Tensor | None, Tensor | None]  # rows and columns of a weight; None keeps all


def apply(plan: Plan, model: PreTrainedModel, update: Mapping[str, Tensor] = NOTHING) -> PreTrainedModel:
    """The model that `plan` describes, of the same class, dtype, device and mode as `model`. `update` are the weights of the plan's file, if any.

    Raises `UserError` where the plan was made for other sizes, or `update` is not what it needs.
    """
    sizes, family = Sizes.of(model), family_of(model.config)
    if sizes != plan.sizes_before:
        wanted, found = asdict(plan.sizes_before), asdict(sizes)
        differing = ", ".join(f"{name} {wanted[name]} (this model: {found[name]})" for name in wanted if wanted[name] != found[name])
        raise UserError(f"the plan was made for another model, with {differing}; replay it on the model that it was made for")
    weights = _updated(state_of(model), plan, update)
    with no_init_weights():
        cut: PreTrainedModel = AutoModelForCausalLM.from_config(
            _cut_config(model.config, plan), dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    cut.tie_weights()
    cut.to(model.device).train(model.training)  # type: ignore[arg-type]
    cut.generation_config = copy.deepcopy(model.generation_config)
    if cut.generation_config is not None:
        cut.generation_config.update(**_renumbered(cut.generation_config.to_dict(), plan))
    weights = _cut_weights(weights, plan, family)
    with torch.no_grad():
        for name, parameter in cut.named_parameters():
            parameter.copy_(weights[name])
    return cut


def _updated(weights: dict[str, Tensor], plan: Plan, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights before the cut, those of `update` in place of the model's."""
    if (plan.update is not None) != bool(update):
        need = "no new weights" if plan.update is None else f"the weights of {plan.update.name}, which lies beside it"
        raise UserError(f"the plan needs {need}, got {len(update)} of them; read them with prune.update.read_update")
    wrong = [name for name, new in update.items() if name not in weights or new.shape != weights[name].shape]
    if wrong:
        raise UserError(f"{wrong[0]} is no weight of this model, or of another shape; replay the plan on the model that it was made for")
    return weights | {name: new.to(weights[name]) for name, new in update.items()}


def _cut_config(config: PretrainedConfig, plan: Plan) -> PretrainedConfig:
    """The old config with the new sizes. head_dim is explicit, since hidden no longer tells it."""
    old, after = config.to_dict(), plan.sizes_after
    old.pop(HALVES_KEY, None)
    changes: dict[str, Any] = {
        "hidden_size": after.hidden,
        "num_attention_heads": after.heads,
        "num_key_value_heads": after.kv_heads,
        "head_dim": after.head_dim,
        "intermediate_size": after.intermediate,
        "num_hidden_layers": after.layers,
        "vocab_size": after.vocab,
        **_renumbered(old, plan),
    }
    if plan.layers is not None:
        for key, value in old.items():
            if "layer" in key and isinstance(value, list) and len(value) == plan.sizes_before.layers:
                changes[key] = [value[index] for index in plan.layers]
        if "max_window_layers" in old:  # the layers before it see everything: for readers that know no layer_types
            changes["max_window_layers"] = sum(index < old["max_window_layers"] for index in plan.layers)
    if after.halves:
        changes[HALVES_KEY] = list(after.halves)
    return type(config).from_dict({**old, **changes})


def _renumbered(values: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The ids of special tokens in a config, as they are in the cut model; None for what is gone."""
    if plan.tokens is None:
        return {}
    place = {old: new for new, old in enumerate(plan.tokens)}
    found: dict[str, Any] = {}
    for key in SPECIAL:
        ids = values.get(key)
        if isinstance(ids, list):
            found[key] = [place[number] for number in ids if number in place] or None
        elif ids is not None:
            found[key] = place.get(ids)
    return found


def _cut_weights(weights: dict[str, Tensor], plan: Plan, family: Family) -> dict[str, Tensor]:
    """The kept weights under their new names."""
    for name, scale in (plan.norm_scales or {}).items():
        weights[name + ".weight"] = weights[name + ".weight"] * scale
    hidden, tokens = _tensor(plan.hidden), _tensor(plan.tokens)
    cut = {}
    for part, rows_columns in {family.embedding: (tokens, hidden), family.final_norm: (hidden, None), family.head: (tokens, hidden)}.items():
        if part + ".weight" in weights:  # a tied output head has none
            cut[part + ".weight"] = _take(weights[part + ".weight"], rows_columns)
    layers = range(plan.sizes_before.layers) if plan.layers is None else plan.layers
    for new, old in enumerate(layers):
        cuts, prefix = _layer_cuts(plan, family, old, hidden), family.layer.format(old)
        for name in weights:
            if name.startswith(prefix):
                part = name.removeprefix(prefix)
                taken = _take(weights[name], cuts.get(part.rpartition(".")[0], (None, None)))
                cut[family.layer.format(new) + part] = torch.zeros_like(taken) if part.rpartition(".")[0] in _silenced(plan, family, new) else taken
    return cut


def _silenced(plan: Plan, family: Family, layer: int) -> tuple[str, ...]:
    """The parts of a layer of the cut model that become zero. With both ends of a half at zero no gradient reaches it, and it stays so."""
    left = "both" if plan.halves is None else plan.halves[layer]
    return {"both": (), "attention": (family.up, family.down), "mlp": (family.v, family.o)}[left]


def _layer_cuts(plan: Plan, family: Family, layer: int, hidden: Tensor | None) -> dict[str, Cut]:
    """Rows and columns of each part of one layer; a bias lies on the side of the rows. Parts not named (q_norm, k_norm) are kept whole."""
    query = _head_rows(plan.query_heads, layer, plan.sizes_before.head_dim)
    kv = _head_rows(plan.kv_heads, layer, plan.sizes_before.head_dim)
    inner = None if plan.intermediate is None else _tensor(plan.intermediate[layer])
    return {
        family.q: (query, hidden),
        family.k: (kv, hidden),
        family.v: (kv, hidden),
        family.o: (hidden, query),
        family.gate: (inner, hidden),
        family.up: (inner, hidden),
        family.down: (hidden, inner),
        **dict.fromkeys(family.norms, (hidden, None)),
    }


def _tensor(indices: list[int] | None) -> Tensor | None:
    return None if indices is None else torch.tensor(indices)


def _head_rows(heads: list[list[int]] | None, layer: int, head_dim: int) -> Tensor | None:
    """The projection rows of the heads of one layer, head after head."""
    if heads is None:
        return None
    return (torch.tensor(heads[layer])[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _take(weight: Tensor, cut: Cut) -> Tensor:
    """Rows, and columns where the weight is a matrix (a bias is a vector)."""
    rows, columns = cut
    if rows is not None:
        weight = weight[rows.to(weight.device)]
    if columns is not None and weight.ndim == 2:
        weight = weight[:, columns.to(weight.device)]
    return weight
