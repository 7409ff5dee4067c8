"""Structured WANDA against loops over the weights and inputs of single samples."""

import numpy as np
from entering import entering, matrices
from tiny import batch, every_model, llama

from recbole_prunerec.importance.wanda import mlp_scores, width_scores

BATCHES = [batch(3, prompt=(5, 16), seed=1), batch(2, seed=2)]


def columns(model, part):
    """[layer][column]: mean over rows of |W_ij| * ||X_j||."""
    found = []
    for weight, inputs in zip(matrices(model, part), entering(model, BATCHES, part), strict=True):
        tokens = np.concatenate(inputs)
        norms = [np.sqrt(sum(token[column] ** 2 for token in tokens)) for column in range(tokens.shape[1])]
        found.append([np.mean([abs(row[column]) * norms[column] for row in weight]) for column in range(len(norms))])
    return np.array(found)


@every_model
def test_heads_dimensions_and_mlp_equal_loops(make):
    model = make()
    width = width_scores(model, BATCHES)
    heads = columns(model, "self_attn.o_proj")
    wanted = [[heads[layer][8 * head : 8 * head + 8].sum() for head in range(6)] for layer in range(3)]
    np.testing.assert_allclose(width.heads, wanted, rtol=1e-6)
    readers = [*(f"self_attn.{part}_proj" for part in "qkv"), "mlp.gate_proj", "mlp.up_proj"]
    np.testing.assert_allclose(width.hidden, sum(columns(model, part).sum(0) for part in readers), rtol=1e-6)
    np.testing.assert_allclose(mlp_scores(model, BATCHES).mlp, columns(model, "mlp.down_proj"), rtol=1e-6)


def test_a_dimension_that_is_never_active_scores_nothing():
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[7] = 0
    assert mlp_scores(model, BATCHES).mlp[1].argmin() == 7 and mlp_scores(model, BATCHES).mlp[1, 7] == 0
