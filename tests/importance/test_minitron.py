"""Minitron against loops over the activations of single samples."""

import numpy as np
import pytest
from entering import entering
from naive_importance import VOCABULARY
from tiny import batch, every_model, qwen2

from recbole_prunerec.importance.layers import layer_order
from recbole_prunerec.importance.minitron import layer_scores, mlp_scores, width_scores
from recbole_prunerec.settings import Depth

BATCHES = [batch(3, prompt=(5, 16), seed=1), batch(2, seed=2)]


def aggregated(samples):
    """The Euclidean norm over samples of each one's mean over its positions; `samples` are (token, part), not negative."""
    return np.sqrt(sum(np.array([sample[:, part].mean() for part in range(sample.shape[1])]) ** 2 for sample in samples))


@every_model
def test_scores_equal_loops(make):
    model = make()
    width = width_scores(model, BATCHES)
    heads = [
        aggregated([np.array([[np.linalg.norm(token[8 * head : 8 * head + 8]) for head in range(6)] for token in sample]) for sample in layer])
        for layer in entering(model, BATCHES, "self_attn.o_proj")
    ]
    np.testing.assert_allclose(width.heads, heads, rtol=1e-5)
    normed = [*entering(model, BATCHES, "self_attn.q_proj"), *entering(model, BATCHES, "mlp.gate_proj")]
    np.testing.assert_allclose(width.hidden, sum(aggregated([abs(sample) for sample in layer]) for layer in normed), rtol=1e-5)
    mlp = [aggregated([abs(sample) for sample in layer]) for layer in entering(model, BATCHES, "mlp.down_proj")]
    np.testing.assert_allclose(mlp_scores(model, BATCHES).mlp, mlp, rtol=1e-5)


def test_layers_go_by_perplexity_measured_once():
    model = qwen2(3, num_hidden_layers=5)
    scores = layer_scores(model, BATCHES, VOCABULARY, Depth(do="depth", layers=2, criterion="minitron"), (0,), None)
    assert scores.search == layer_order(model, BATCHES, VOCABULARY, 2, "oneshot")
    assert scores.search.kept != layer_order(model, BATCHES, VOCABULARY, 2).kept
    assert scores.layers.nonzero()[:, 0].tolist() == scores.search.kept


def test_batching_does_not_change_the_scores():
    single = [{key: value[row : row + 1] for key, value in b.items()} for b in BATCHES for row in range(len(b["input_ids"]))]
    assert width_scores(qwen2(), single).heads.flatten().tolist() == pytest.approx(width_scores(qwen2(), BATCHES).heads.flatten().tolist(), rel=1e-5)
