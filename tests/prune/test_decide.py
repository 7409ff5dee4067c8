"""From scores to plans: what each step's settings decide."""

import pytest
import torch
from tiny import batch, llama, qwen2

from recbole_prunerec.importance.heads import head_importance, normalise_and_recurse
from recbole_prunerec.importance.hidden import hidden_importance, norm_scales
from recbole_prunerec.importance.layers import mean_nll
from recbole_prunerec.importance.mlp import mlp_importance
from recbole_prunerec.prune.decide import decide_depth, decide_mlp, decide_width
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.settings import Depth, Mlp, Width

BATCHES = [batch(rows=6, seed=seed) for seed in range(2)]


def best(scores: list[float], keep: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:keep])


@pytest.mark.parametrize("family", [qwen2, llama])
def test_width_keeps_the_best_heads_and_dimensions(family):
    model = family()
    plan, figures = decide_width(model, BATCHES, Width(do="width", heads=2, hidden=20, kv_policy="expand", recursion=0.4))
    scores = normalise_and_recurse(head_importance(model, BATCHES), 0.4)
    hidden = best(hidden_importance(model, BATCHES).tolist(), 20)
    assert plan.query_heads == [best(layer, 2) for layer in scores.tolist()]
    assert plan.kv_heads == [[head // 3 for head in layer] for layer in plan.query_heads]
    assert plan.hidden == hidden and plan.norm_scales == norm_scales(model, BATCHES, hidden)
    assert set(figures) == {"head_divergence", "head_score", "hidden"}
    assert apply(plan, model).config.hidden_size == 20


def test_width_without_rescaling_and_with_another_hidden_score():
    step = Width(do="width", heads=6, hidden=20, hidden_score="embedding", norm_rescale=False)
    plan = decide_width(qwen2(), BATCHES, step).plan
    weights = qwen2().get_input_embeddings().weight.detach().abs().mean(0)
    assert plan.norm_scales is None and plan.hidden == best(weights.tolist(), 20)


def test_greedy_keeps_removed_heads_suppressed_while_later_layers_are_scored():
    model = qwen2(seed=5)
    kl = head_importance(model, BATCHES, greedy=lambda kl: sorted(set(range(6)) - set(best(normalise_and_recurse(kl, 0.7)[-1].tolist(), 2))))
    expected = [best(layer, 2) for layer in normalise_and_recurse(kl, 0.7).tolist()]
    step = Width(do="width", heads=2, hidden=48, kv_policy="expand", greedy=True)
    assert decide_width(model, BATCHES, step).plan.query_heads == expected
    assert not torch.equal(kl, head_importance(model, BATCHES))


def test_mlp_takes_shares_then_magnitudes():
    model = qwen2()
    share, magnitude = mlp_importance(model, BATCHES, None, 0.8)
    plan = decide_mlp(model, BATCHES, Mlp(do="mlp", intermediate=10, quantile=0.8)).plan
    pairs = [list(zip(row.tolist(), ties.tolist(), strict=True)) for row, ties in zip(share, magnitude, strict=True)]
    assert plan.intermediate == [sorted(sorted(range(56), key=lambda i: (-layer[i][0], -layer[i][1], i))[:10]) for layer in pairs]


@pytest.mark.parametrize("search", ["greedy", "oneshot"])
def test_depth_draws_every_round_and_keeps_what_costs_least(search):
    model = llama()
    plan, figures = decide_depth(model, BATCHES, Depth(do="depth", layers=2, search=search))
    without = {}
    for layer in range(3):
        kept = [index for index in range(3) if index != layer]
        without[layer] = mean_nll(apply(plan.model_copy(update={"layers": kept}), model), BATCHES)
    assert plan.layers == [layer for layer in range(3) if layer != min(without, key=without.__getitem__)]
    assert set(figures) == {"layers_round_1"}
