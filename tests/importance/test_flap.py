"""FLAP against loops over the inputs of single samples."""

import numpy as np
import pytest
import torch
from entering import entering, matrices
from tiny import batch, every_model, llama, qwen2, qwen3

from recbole_prunerec.importance.flap import mlp_scores, width_scores

BATCHES = [batch(3, prompt=(5, 16), seed=1), batch(2, seed=2)]
BIASES = {"attention_bias": True, "mlp_bias": True}


def columns(model, part):
    """[layer][column]: the z-score, within the layer, of the variance of an input times the squared norm of its weights."""
    found = []
    for weight, inputs in zip(matrices(model, part), entering(model, BATCHES, part), strict=True):
        tokens = np.concatenate(inputs)
        values = np.array([np.var(tokens[:, column]) * np.linalg.norm(weight[:, column]) ** 2 for column in range(tokens.shape[1])])
        found.append((values - values.mean()) / values.std())
    return np.array(found)


@every_model
def test_scores_equal_loops(make):
    model = make()
    heads, mlp = width_scores(model, BATCHES), mlp_scores(model, BATCHES)
    by_column = columns(model, "self_attn.o_proj")
    np.testing.assert_allclose(heads.heads, [[np.mean(layer[8 * head : 8 * head + 8]) for head in range(6)] for layer in by_column], atol=1e-5)
    np.testing.assert_allclose(mlp.mlp, columns(model, "mlp.down_proj"), atol=1e-5)
    assert heads.hidden is None and (heads.update, mlp.update) == (None, None)  # no bias to fold a constant into


@pytest.mark.parametrize(("score", "part", "size"), [(width_scores, "self_attn.o_proj", 8), (mlp_scores, "mlp.down_proj", 1)])
def test_the_mean_output_of_what_goes_is_added_to_a_bias(score, part, size):
    model, kept = llama(**BIASES), [[0, 2, 5], [1, 2, 3], [5, 4, 0]]
    update = score(model, BATCHES).update(kept)
    for layer, inputs in enumerate(entering(model, BATCHES, part)):
        module = model.model.layers[layer].get_submodule(part)
        tokens = np.concatenate(inputs)
        wanted = module.bias.detach().numpy().copy()
        for column in range(tokens.shape[1]):
            if column // size not in kept[layer]:
                wanted += module.weight.detach().numpy()[:, column] * tokens[:, column].mean()
        np.testing.assert_allclose(update[f"model.layers.{layer}.{part}.bias"], wanted, atol=1e-6)


def test_a_constant_head_goes_for_nothing():
    """A head that gives a constant scores least, and without it, with the new bias, the layer says the same."""
    model = llama(**BIASES)
    attention = model.model.layers[0].self_attn
    attention.v_proj.weight.data[8:16] = 0  # of heads 3, 4 and 5
    scores = width_scores(model, BATCHES)
    assert sorted(scores.heads[0].argsort()[:3].tolist()) == [3, 4, 5]
    bias = scores.update([[0, 1, 2]] * 3)["model.layers.0.self_attn.o_proj.bias"]
    with torch.no_grad():
        before = model(BATCHES[0]["input_ids"]).logits
        attention.o_proj.weight[:, 24:] = 0
        attention.o_proj.bias.copy_(bias)
        torch.testing.assert_close(model(BATCHES[0]["input_ids"]).logits, before, rtol=1e-5, atol=1e-5)


def test_a_layer_whose_columns_are_equal_scores_zero():
    model = qwen2()
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    assert (mlp_scores(model, BATCHES).mlp[1] == 0).all()


def test_only_biases_that_there_are_change():
    assert width_scores(qwen3(attention_bias=True), BATCHES).update is not None and mlp_scores(qwen3(attention_bias=True), BATCHES).update is None
