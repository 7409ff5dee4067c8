"""MLP importance against counting in plain Python on single, unpadded prompts."""

import pytest
import torch
from naive_importance import VOCABULARY
from tiny import batch, every_model, llama, qwen2

from recbole_prunerec.importance.mlp import mlp_importance
from recbole_prunerec.importance.prunerec import mlp_scores
from recbole_prunerec.prune.plan import choose_intermediate
from recbole_prunerec.settings import Mlp

BATCHES = [batch(3, seed=1), batch(2, seed=2)]


def last_activations(model):
    """[layer][sample][dimension]: |up| at the last token of each prompt, from a pass over the prompt alone."""
    seen = [[] for _ in model.model.layers]
    handles = [
        layer.mlp.up_proj.register_forward_hook(lambda m, i, output, n=n: seen[n].append(output[0, -1].abs().tolist()))
        for n, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        for b in BATCHES:
            for ids, labels in zip(b["input_ids"].tolist(), b["labels"].tolist(), strict=True):
                prompt = next(t for t, label in enumerate(labels) if label != -100)
                model(input_ids=torch.tensor([ids[:prompt]]))
    for handle in handles:
        handle.remove()
    return seen


def quantile(values, q):
    values = sorted(values)
    place = q * (len(values) - 1)
    low = int(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


@pytest.mark.parametrize("tau, q", [(0.8, None), (None, 0.9), (None, 0.5)])
@every_model
def test_share_and_magnitude_equal_counting(make, tau, q):
    model = make(**({"mlp_bias": True} if make is llama else {}))
    share, magnitude = mlp_importance(model, BATCHES, tau) if q is None else mlp_importance(model, BATCHES, None, q)
    for layer, rows in enumerate(last_activations(model)):
        threshold = tau if q is None else quantile([value for row in rows for value in row], q)
        assert share[layer].tolist() == [sum(row[k] > threshold for row in rows) / 5 for k in range(56)]
        assert magnitude[layer].tolist() == pytest.approx([sum(row[k] for row in rows) / 5 for k in range(56)], rel=1e-6)
    assert 0 < share.mean() < 1


def test_an_activation_equal_to_tau_is_not_active():
    model = llama(mlp_bias=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.zero_()
            layer.mlp.up_proj.bias.copy_(torch.arange(56) / 8 - 3)
    share, _ = mlp_importance(model, BATCHES, 2.0)
    assert share.tolist() == [[float(abs(k / 8 - 3) > 2) for k in range(56)]] * 3


def test_scores_choose_by_share_then_magnitude():
    scores, rows = mlp_scores(qwen2(), BATCHES, VOCABULARY, Mlp(do="mlp", intermediate=20), (), None), last_activations(qwen2())
    kept = choose_intermediate(scores.mlp, 20, scores.mlp_ties)
    for layer, samples in enumerate(rows):
        threshold = quantile([value for row in samples for value in row], 0.9)
        key = {k: (sum(row[k] > threshold for row in samples), sum(row[k] for row in samples)) for k in range(56)}
        assert kept[layer] == sorted(sorted(key, key=key.get, reverse=True)[:20])


def test_ties_go_to_the_larger_magnitude_then_to_the_lower_index():
    share = torch.tensor([[0.5, 0.2, 0.5, 0.5, 0.5, 0.9]])
    magnitude = torch.tensor([[1.0, 9.0, 2.0, 1.0, 1.0, 0.0]])
    assert [choose_intermediate(share, keep, magnitude)[0] for keep in range(1, 7)] == [
        [5],
        [2, 5],
        [0, 2, 5],
        [0, 2, 3, 5],
        [0, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]
    assert choose_intermediate(share, 3) == [[0, 2, 5]]
    assert choose_intermediate(share, 4) == [[0, 2, 3, 5]]
