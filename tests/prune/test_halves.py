"""Halves of layers that become zero: the model says the same as without them, keeps them so, and does not count them."""

import pytest
import torch
from pydantic import ValidationError
from tiny import batch, every_family, llama, qwen2
from transformers import AutoModelForCausalLM

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import in_own_memory
from recbole_prunerec.errors import UserError
from recbole_prunerec.importance.hooks import bypassed, silent
from recbole_prunerec.prune.plan import Plan, choose_halves
from recbole_prunerec.prune.surgery import apply

BATCH = batch(3, seed=1)
LAYERS, HALVES = [0, 2, 3], ["attention", "both", "mlp"]  # of four layers, the second gone


@torch.no_grad()
def logits(model):
    return model(BATCH["input_ids"]).logits


def halved(model):
    return apply(Plan.of("depth", "blockpruner", Sizes.of(model), layers=LAYERS, halves=HALVES), model)


@every_family
def test_a_halved_model_is_the_model_with_those_halves_silent(make, tmp_path):
    model = make(num_hidden_layers=4)
    cut = halved(model)
    with bypassed(model, [1]), silent(model, "mlp", [0]), silent(model, "attention", [3]):
        assert torch.equal(logits(cut), logits(model))
    assert not torch.allclose(logits(cut), logits(model))
    cut.save_pretrained(tmp_path)
    loaded = in_own_memory(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert torch.equal(logits(loaded), logits(cut)) and Sizes.of(loaded).halves == ("attention", "both", "mlp")


@pytest.mark.parametrize("biases", [False, True])
def test_what_is_zero_does_not_count(biases):
    model = llama(num_hidden_layers=4, attention_bias=biases, mlp_bias=biases)
    sizes, layers = Sizes.of(halved(model)), model.model.layers
    gone = [*layers[1].parameters(), *layers[0].mlp.parameters(), *layers[0].post_attention_layernorm.parameters()]
    gone += [*layers[3].self_attn.parameters(), *layers[3].input_layernorm.parameters()]
    assert sizes.total_parameters == model.num_parameters() - sum(parameter.numel() for parameter in gone)
    assert sizes.dict()["halves"] == ("attention", "both", "mlp") and "halves" not in Sizes.of(model).dict()


@every_family
def test_training_leaves_zero_what_is_zero(make):
    model = halved(make(num_hidden_layers=4)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        model(BATCH["input_ids"], labels=BATCH["input_ids"]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    said = logits(model)
    with silent(model, "mlp", [0]), silent(model, "attention", [2]):
        assert torch.equal(logits(model), said)
    with silent(model, "mlp", [1]):
        assert not torch.allclose(logits(model), said)


def test_later_steps_know_of_the_halves():
    cut = halved(qwen2(num_hidden_layers=4))
    later = apply(Plan.of("depth", "prunerec", Sizes.of(cut), layers=[1, 2]), cut)
    assert Sizes.of(later).halves == ("both", "mlp")
    narrow = apply(Plan.of("mlp", "prunerec", Sizes.of(later), intermediate=[[1, 2, 3]] * 2), later)
    assert Sizes.of(narrow).halves == ("both", "mlp") and narrow.model.layers[1].self_attn.o_proj.weight.count_nonzero() == 0
    whole = apply(Plan.of("depth", "prunerec", Sizes.of(narrow), layers=[0]), narrow)
    assert Sizes.of(whole).halves == () and "layer_halves" not in whole.config.to_dict()
    with pytest.raises(UserError, match=r"made for another model, with layers 3 \(this model: 2\), halves"):
        apply(Plan.of("mlp", "prunerec", Sizes.of(cut), intermediate=[[1]] * 3), later)


def test_a_plan_says_what_is_left_and_its_note():
    layers, halves = choose_halves(torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    assert (layers, halves) == (LAYERS, HALVES)
    plan = Plan.of("depth", "blockpruner", Sizes.of(qwen2(num_hidden_layers=4)), layers=layers, halves=halves)
    assert plan.note == "parameters without zeroed halves of layers: 1 attention, 1 MLP"
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert Plan.of("mlp", "prunerec", plan.sizes_after, intermediate=[[0]] * 3).note == plan.note  # the halves are still there
    with pytest.raises(UserError, match=r"halves must be one for each layer that stays; got 2"):
        Plan.of("depth", "blockpruner", Sizes.of(qwen2()), layers=[0], halves=["both", "mlp"])
    with pytest.raises(ValidationError):
        Plan.of("depth", "blockpruner", Sizes.of(qwen2()), layers=[0], halves=["none"])
