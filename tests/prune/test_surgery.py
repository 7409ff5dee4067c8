"""Surgery by equivalence: silence a part, then cut it, and the logits stay."""

import math

import pytest
import torch
from tiny import FAMILIES, MODELS, SHAPE, SLIDING, batch, every_family, every_model, llama, qwen2, qwen3, random_model
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from recbole_prunerec.backbone.family import Family, Sizes
from recbole_prunerec.backbone.load import in_own_memory
from recbole_prunerec.errors import UserError
from recbole_prunerec.importance.hidden import norm_scales
from recbole_prunerec.prune.budget import KV_HEADS, Shape
from recbole_prunerec.prune.plan import Plan, choose_heads
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.settings import Width

BATCH = batch(3, seed=1)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # the norms of transformers work in float32
BIASES = {"attention_bias": True, "mlp_bias": True}


@torch.no_grad()
def logits(model):
    return model(input_ids=BATCH["input_ids"], attention_mask=BATCH["attention_mask"]).logits[BATCH["attention_mask"].bool()]


def head_scores():
    return torch.rand(3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def other(kept, size):
    return [index for index in range(size) if index not in kept]


EVERY = [(make, {}) for make in MODELS.values()]
EVERY += [(llama, {**BIASES, "tie_word_embeddings": True}), (qwen3, {"attention_bias": True, "tie_word_embeddings": False})]
every = pytest.mark.parametrize("make, changes", EVERY, ids=[*MODELS, "llama biased, tied", "qwen3 biased, untied"])


@every
@pytest.mark.parametrize("policy, keep", [("expand", 4), ("expand", 3), ("group", 3), ("balanced", 2), ("balanced", 4)])
def test_silent_heads_can_be_cut(make, changes, policy, keep):
    if make is llama and 48 % keep:
        pytest.skip("no Llama of this shape")
    model = make(**changes)
    query, kv = choose_heads(head_scores(), 2, keep, policy)
    before = logits(model)
    with torch.no_grad():
        for layer, kept in enumerate(query):
            for head in other(kept, 6):
                model.model.layers[layer].self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] = 0
    cut = apply(Plan.of("width", "prunerec", Sizes.of(model), (query, kv)), model)
    assert (cut.config.num_attention_heads, cut.config.num_key_value_heads, cut.config.head_dim) == (keep, len(kv[0]), 8)
    assert cut.model.layers[2].self_attn.k_proj.weight.shape == (8 * len(kv[0]), 48)
    torch.testing.assert_close(logits(cut), logits(model), **TOLERANCE)
    assert not torch.allclose(logits(model), before, **TOLERANCE)


@pytest.mark.parametrize("make, changes", [(make, BIASES if make is llama else {}) for make in MODELS.values()], ids=MODELS)
def test_merge_equals_substituting_the_key_value_heads_by_hand(make, changes):
    """Reference: six key/value heads, each kept query head given a copy of the one that it now reads, the others silenced."""
    model = make(**changes)
    query, kv = choose_heads(head_scores(), 2, 4, "merge", 2)
    assert any(head // 3 != kv[layer][place // 2] for layer, kept in enumerate(query) for place, head in enumerate(kept))
    reference = make(**changes, num_key_value_heads=6)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if ".k_proj" not in name and ".v_proj" not in name:
                parameter.copy_(weights[name])
        for layer, kept in enumerate(query):
            mine, theirs = model.model.layers[layer].self_attn, reference.model.layers[layer].self_attn
            for head in range(6):
                rows = slice(head * 8, head * 8 + 8)
                if head not in kept:
                    theirs.o_proj.weight[:, rows] = 0
                    continue
                source = kv[layer][kept.index(head) // 2]
                for part in ("k_proj", "v_proj"):
                    for copied, original in zip(getattr(theirs, part).parameters(), getattr(mine, part).parameters(), strict=True):
                        copied[rows] = original[source * 8 : source * 8 + 8]
    cut = apply(Plan.of("width", "prunerec", Sizes.of(model), (query, kv)), model)
    torch.testing.assert_close(logits(cut), logits(reference), **TOLERANCE)


@every
def test_silent_residual_dimensions_can_be_cut(make, changes):
    """With the dropped dimensions zero, rms over d is sqrt(d'/d) times rms over d': the norm scales make up for it, the rest is eps."""
    model = make(**changes, rms_norm_eps=0.0 if make in (qwen3, SLIDING["qwen3 sliding"]) else 0.05)
    keep = sorted(torch.randperm(48, generator=torch.Generator().manual_seed(0))[:18].tolist())
    drop = other(keep, 48)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, drop] = 0
        for layer in model.model.layers:
            for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
                part.weight[drop] = 0
                if part.bias is not None:
                    part.bias[drop] = 0
    sizes = Sizes.of(model)
    scales = norm_scales(model, [BATCH], keep)
    assert len(scales) == 7 and list(scales.values()) == pytest.approx([math.sqrt(48 / 18)] * 7)
    cut = apply(Plan.of("width", "prunerec", sizes, hidden=keep, norm_scales=scales), model)
    for name in scales:
        cut.get_submodule(name).variance_epsilon *= 48 / 18
    assert Sizes.of(cut).hidden == 18 and Sizes.of(cut).tied == sizes.tied
    torch.testing.assert_close(logits(cut), logits(model), **TOLERANCE)


@every
def test_silent_mlp_dimensions_can_be_cut(make, changes):
    model = make(**changes)
    keep = [[0, 3, 55], [1, 2, 30], [10, 20, 40]]
    with torch.no_grad():
        for layer, kept in zip(model.model.layers, keep, strict=True):
            layer.mlp.down_proj.weight[:, other(kept, 56)] = 0
    cut = apply(Plan.of("mlp", "prunerec", Sizes.of(model), intermediate=keep), model)
    assert cut.config.intermediate_size == 3
    torch.testing.assert_close(logits(cut), logits(model), **TOLERANCE)


@every
def test_silent_layers_can_be_cut(make, changes):
    model = make(**changes)
    with torch.no_grad():
        for part in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
            for parameter in part.parameters():
                parameter.zero_()
    cut = apply(Plan.of("depth", "prunerec", Sizes.of(model), layers=[0, 2]), model)
    assert torch.equal(logits(cut), logits(model))


def test_lists_with_an_entry_a_layer_follow_and_others_of_that_length_do_not():
    model = qwen2(window=3, eos_token_id=[0, 5, 6])
    cut = apply(Plan.of("depth", "prunerec", Sizes.of(model), layers=[0, 2]), model)
    assert cut.config.layer_types == ["full_attention", "sliding_attention"] and cut.config.eos_token_id == [0, 5, 6]
    assert model.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]


KINDS = {"f": "full_attention", "s": "sliding_attention"}


@pytest.mark.parametrize("kinds, from_layer", [("fffss", 3), ("sssss", 0), ("fffff", 5), ("fsfsf", 28)])
@pytest.mark.parametrize("layers", [[1, 2, 3], [0, 1, 2], [3, 4], [4], [1, 3, 4]])
@pytest.mark.parametrize("make", [qwen2, qwen3])
def test_each_layer_keeps_its_kind_of_attention(make, layers, kinds, from_layer, tmp_path):
    """Reference: the kept layers one by one, silent ones for the others. Afterwards: what a reader that knows no layer_types makes of the folder."""
    types = [KINDS[kind] for kind in kinds]
    follows_rule = types == [KINDS["f"]] * from_layer + [KINDS["s"]] * (5 - from_layer)
    model = make(window=3, num_hidden_layers=5, max_window_layers=from_layer, **({} if follows_rule else {"layer_types": types}))
    assert model.config.layer_types == types
    cut = apply(Plan.of("depth", "prunerec", Sizes.of(model), layers=layers), model)
    with torch.no_grad():
        for layer in other(layers, 5):
            for parameter in (*model.model.layers[layer].self_attn.o_proj.parameters(), *model.model.layers[layer].mlp.down_proj.parameters()):
                parameter.zero_()
    assert torch.equal(logits(cut), logits(model))
    assert cut.config.layer_types == [types[layer] for layer in layers]
    cut.save_pretrained(tmp_path)
    loaded = in_own_memory(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert loaded.config.layer_types == cut.config.layer_types and torch.equal(logits(loaded), logits(cut))
    if follows_rule:
        old = {key: value for key, value in cut.config.to_dict().items() if key != "layer_types"}
        assert type(cut.config).from_dict(old).layer_types == cut.config.layer_types


def test_the_head_width_is_written_out_where_the_config_had_none():
    config = Qwen2Config(**SHAPE, tie_word_embeddings=True)
    assert getattr(config, "head_dim", None) is None
    model = random_model(config)
    cut = apply(Plan.of("width", "prunerec", Sizes.of(model), choose_heads(head_scores(), 2, 3, "group"), hidden=list(range(30))), model)
    assert cut.config.head_dim == 8 and cut.model.layers[0].self_attn.q_proj.weight.shape == (24, 30)


@every_model
def test_a_cut_model_generates_with_its_cache(make):
    cut = apply(Plan.of("depth", "prunerec", Sizes.of(make()), layers=[0, 2]), make())
    ids = BATCH["input_ids"][:1, :5]
    with torch.no_grad():
        cached = cut(input_ids=ids[:, 4:], past_key_values=cut(input_ids=ids[:, :4], use_cache=True).past_key_values).logits
        torch.testing.assert_close(cached[:, -1], cut(input_ids=ids).logits[:, -1], **TOLERANCE)


WHOLE = ([list(range(6))] * 3, [[0, 1]] * 3)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeping_everything_is_bit_equal(make, changes, dtype):
    model = make(**changes).to(dtype)
    sizes, everything = Sizes.of(model), list(range(48))
    plans = [
        Plan.of("width", "prunerec", sizes, WHOLE, everything, norm_scales=dict.fromkeys(Family("").residual_norms(3), 1.0)),
        Plan.of("mlp", "prunerec", sizes, intermediate=[list(range(56))] * 3),
        Plan.of("depth", "prunerec", sizes, layers=[0, 1, 2]),
    ]
    for plan in plans:
        cut = apply(plan, model)
        assert cut.dtype == dtype and not cut.training and Sizes.of(cut) == sizes and type(cut) is type(model)
        for (name, weight), (cut_name, cut_weight) in zip(model.named_parameters(), cut.named_parameters(), strict=True):
            assert name == cut_name and torch.equal(weight, cut_weight) and weight.data_ptr() != cut_weight.data_ptr()
        if dtype != torch.bfloat16:  # .to(bfloat16) also rounds the rotary frequencies, which a new model has in float32
            assert torch.equal(logits(cut), logits(model))


@every
def test_every_part_at_once_saved_and_loaded_by_transformers_is_bit_equal(make, changes, tmp_path):
    model = make(**changes)
    model.generation_config.max_new_tokens = 7
    plan = Plan.of(
        "width",
        "prunerec",
        Sizes.of(model),
        choose_heads(head_scores(), 2, 3, "group"),
        hidden=sorted(range(0, 48, 2)),
        intermediate=[list(range(layer, 56, 4))[:13] for layer in range(3)],
        layers=[0, 2],
        norm_scales=dict.fromkeys(Family("").residual_norms(3), 1.25),
    )
    cut = apply(plan, model)
    assert Sizes.of(cut) == plan.sizes_after
    assert sum(parameter.numel() for parameter in cut.parameters()) == plan.sizes_after.total_parameters
    cut.save_pretrained(tmp_path)
    loaded = in_own_memory(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert type(loaded) is type(model) and torch.equal(logits(loaded), logits(cut))
    assert loaded.generation_config.max_new_tokens == 7 and cut.generation_config is not model.generation_config


def test_the_order_of_parts_does_not_matter():
    """One combined plan equals one cut after another."""
    model = qwen2()
    heads, hidden, inner = choose_heads(head_scores(), 2, 2, "balanced"), list(range(5, 48, 3)), [list(range(layer, 50, 3)) for layer in (0, 0, 0)]
    together = apply(Plan.of("width", "prunerec", Sizes.of(model), heads, hidden, inner, [0, 2]), model)
    one = apply(Plan.of("depth", "prunerec", Sizes.of(model), layers=[0, 2]), model)
    one = apply(Plan.of("mlp", "prunerec", Sizes.of(one), intermediate=[inner[0], inner[2]]), one)
    one = apply(Plan.of("width", "prunerec", Sizes.of(one), ([heads[0][0], heads[0][2]], [heads[1][0], heads[1][2]]), hidden), one)
    assert torch.equal(logits(together), logits(one))


def test_the_old_model_and_the_random_state_do_not_change():
    model, plan = qwen2(), Plan.of("width", "prunerec", Sizes.of(qwen2()), hidden=[1, 2, 3], norm_scales={"model.norm": 2.0})
    state, config = torch.get_rng_state(), model.config.to_dict()
    cut = apply(plan, model.train())
    assert cut.training and torch.equal(torch.get_rng_state(), state) and model.config.to_dict() == config
    assert torch.equal(cut.model.norm.weight, 2 * model.model.norm.weight[[1, 2, 3]])
    for mine, fresh in zip(model.parameters(), qwen2().parameters(), strict=True):
        assert torch.equal(mine, fresh)


def test_a_plan_for_another_model_is_refused():
    plan = Plan.of("depth", "prunerec", Sizes.of(qwen2(num_hidden_layers=4)), layers=[0])
    with pytest.raises(UserError, match=r"layers 4 \(this model: 3\)"):
        apply(plan, qwen2())


@every_family
@pytest.mark.parametrize("heads, hidden", [(6, 48), (6, 42), (6, 40), (4, 44), (4, 42), (5, 20), (5, 24), (3, 7), (2, 1)])
def test_a_shape_is_judged_as_the_stock_class_does(make, heads, hidden, tmp_path):
    """Whatever `budget` lets pass loads again and computes the same; what it refuses cannot be made at all."""
    model = make(dtype=torch.float64)
    step = Width(do="width", heads=heads, hidden=hidden, kv_policy="expand")
    _, problems = Shape.of_config(model.config.to_dict()).after(step)
    plan = Plan.of("width", "prunerec", Sizes.of(model), choose_heads(head_scores(), 2, heads, "expand"), list(range(hidden)))
    if problems:
        with pytest.raises(Exception, match="is not a multiple of the number of attention"):
            apply(plan, model)
        return
    cut = apply(plan, model)
    cut.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(cut), rtol=1e-6, atol=1e-6)


@every_family
def test_a_config_without_key_value_heads_means_what_its_class_says(make):
    name = next(name for name, maker in FAMILIES.items() if maker is make)
    expected = AutoConfig.for_model(name, num_attention_heads=64, hidden_size=512).num_key_value_heads
    config = {"model_type": name, "num_attention_heads": 64, "hidden_size": 512, "num_hidden_layers": 1, "intermediate_size": 8}
    assert Shape.of_config(config).kv_heads == expected == KV_HEADS.get(name, 64)
