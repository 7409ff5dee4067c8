"""What the paper's first figures show, against loops over a tiny model."""

import math

import pytest
import torch
from tiny import FAMILIES, batch

from recbole_prunerec.backbone.family import family_of
from recbole_prunerec.study.activations import carried, input_norms, magnitudes, mask_weights

LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def entering(model, batches, part, layer):
    """What a plain forward pass gives to one module, padding left out. Shape (token, width)."""
    seen = []
    module = model.get_submodule(f"model.layers.{layer}.{part}")
    hook = module.register_forward_hook(lambda _, args, output: seen.append(args[0].detach()))
    with torch.no_grad():
        for each in batches:
            model(input_ids=each["input_ids"], attention_mask=each["attention_mask"])
    hook.remove()
    return torch.cat([values[each["attention_mask"].bool()] for values, each in zip(seen, batches, strict=True)])


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def model(request):
    return FAMILIES[request.param](0).eval()


@pytest.fixture(scope="module")
def batches():
    return [batch(seed=seed) for seed in (0, 1)]


@pytest.mark.parametrize("part", ["down", "o"])
def test_magnitudes_are_means_over_all_tokens(model, batches, part):
    name = getattr(family_of(model.config), part)
    found = magnitudes(model, batches, name)
    for layer, row in enumerate(found):
        torch.testing.assert_close(row, entering(model, batches, name, layer).double().abs().mean(0), rtol=1e-9, atol=1e-12)


def test_shares_that_the_top_dimensions_carry_by_hand():
    values = torch.tensor([[1.0, 4.0, 3.0, 2.0], [5.0, 0.0, 0.0, 5.0]])
    torch.testing.assert_close(carried(values, [1, 25, 50, 75, 100]), torch.tensor([[0.4, 0.4, 0.7, 0.9, 1.0], [0.5, 0.5, 1.0, 1.0, 1.0]]))


def test_norms_are_those_of_what_enters(model, batches):
    norms = input_norms(model, batches)
    for layer in (0, len(norms) - 1):
        for part in LINEAR:
            expected = entering(model, batches, part, layer).double().square().sum(0).sqrt()
            torch.testing.assert_close(norms[layer][part], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_the_least_products_of_every_row_go(batches, share):
    model, whole = FAMILIES["qwen2"](0).eval(), FAMILIES["qwen2"](0)
    norms = input_norms(model, batches)
    mask_weights(model, norms, share)
    kept = dict(model.named_parameters())
    changed = [name for name, weight in whole.named_parameters() if not torch.equal(weight, kept[name])]
    assert changed == ([] if share == 0 else [f"model.layers.{layer}.{part}.weight" for layer in range(len(norms)) for part in LINEAR])
    for layer, part in ((0, LINEAR[0]), (1, LINEAR[6])):
        before, after = (m.get_submodule(f"model.layers.{layer}.{part}").weight.detach() for m in (whole, model))
        for row_before, row_after in zip(before, after, strict=True):
            products = [abs(float(w)) * float(x) for w, x in zip(row_before, norms[layer][part], strict=True)]
            gone = sorted(range(len(products)), key=lambda j, products=products: (products[j], j))[: math.floor(share * len(products))]
            expected = row_before.clone()
            expected[gone] = 0.0
            assert torch.equal(row_after, expected)


def test_random_masks_take_as_many_of_every_row_and_follow_the_seed():
    models = []
    for seed in (1, 1, 2):
        model = FAMILIES["llama"](0)
        mask_weights(model, None, 0.4, seed)
        models.append(model.model.layers[0].mlp.down_proj.weight.detach())
    assert ((models[0] == 0).sum(1) == int(0.4 * models[0].shape[1])).all()
    assert torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])
