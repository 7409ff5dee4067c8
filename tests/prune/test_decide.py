"""From scores to plans: what each step's settings decide."""

import pytest
import torch
from naive_importance import VOCABULARY
from pydantic import TypeAdapter
from tiny import batch, llama, qwen2

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.importance.heads import head_importance, normalise_and_recurse
from recbole_prunerec.importance.hidden import hidden_importance, norm_scales
from recbole_prunerec.importance.layers import mean_nll
from recbole_prunerec.importance.mlp import mlp_importance
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.prune.decide import DECISIONS, decide_depth, decide_mlp, decide_width
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.settings import Depth, Mlp, Step, Width

BATCHES = [batch(rows=6, seed=seed) for seed in range(2)]


def best(scores: list[float], keep: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:keep])


@pytest.mark.parametrize("family", [qwen2, llama])
def test_width_keeps_the_best_heads_and_dimensions(family):
    model = family()
    plan, figures, _ = decide_width(model, BATCHES, VOCABULARY, Width(do="width", heads=2, hidden=20, kv_policy="expand", recursion=0.4))
    scores = normalise_and_recurse(head_importance(model, BATCHES, VOCABULARY), 0.4)
    hidden = best(hidden_importance(model, BATCHES, VOCABULARY).tolist(), 20)
    assert plan.query_heads == [best(layer, 2) for layer in scores.tolist()]
    assert plan.kv_heads == [[head // 3 for head in layer] for layer in plan.query_heads]
    assert plan.hidden == hidden and plan.norm_scales == norm_scales(model, BATCHES, hidden)
    assert set(figures) == {"head_divergence", "head_score", "hidden"}
    assert apply(plan, model).config.hidden_size == 20


def test_width_without_rescaling_and_with_another_hidden_score():
    step = Width(do="width", heads=6, hidden=20, hidden_score="embedding", norm_rescale=False)
    plan = decide_width(qwen2(), BATCHES, VOCABULARY, step).plan
    weights = qwen2().get_input_embeddings().weight.detach().abs().mean(0)
    assert plan.norm_scales is None and plan.hidden == best(weights.tolist(), 20)


@pytest.mark.parametrize("recursion", [0.2, 0.7])
def test_greedy_keeps_removed_heads_suppressed_while_later_layers_are_scored(recursion):
    """Of these weights the two ways keep different heads."""
    model = qwen2(seed=3)

    def removed(kl: torch.Tensor) -> list[int]:
        kept = best(normalise_and_recurse(kl, recursion)[-1].tolist(), 2)
        return [head for head in range(6) if head not in kept]

    kl = head_importance(model, BATCHES, VOCABULARY, greedy=removed)
    expected = [best(layer, 2) for layer in normalise_and_recurse(kl, recursion).tolist()]
    step = Width(do="width", heads=2, hidden=48, kv_policy="expand", recursion=recursion, greedy=True)
    assert decide_width(model, BATCHES, VOCABULARY, step).plan.query_heads == expected
    assert decide_width(model, BATCHES, VOCABULARY, step.model_copy(update={"greedy": False})).plan.query_heads != expected


def test_mlp_takes_shares_then_magnitudes():
    model = qwen2()
    share, magnitude = mlp_importance(model, BATCHES, None, 0.8)
    plan = decide_mlp(model, BATCHES, VOCABULARY, Mlp(do="mlp", intermediate=10, quantile=0.8)).plan
    pairs = [list(zip(row.tolist(), ties.tolist(), strict=True)) for row, ties in zip(share, magnitude, strict=True)]
    assert plan.intermediate == [sorted(sorted(range(56), key=lambda i: (-layer[i][0], -layer[i][1], i))[:10]) for layer in pairs]


@pytest.mark.parametrize("recursion", [0.0, 0.7])
def test_a_global_scope_keeps_the_heads_with_the_best_mean_in_all_layers(recursion):
    step = Width(do="width", heads=3, hidden=48, kv_policy="expand", recursion=recursion, scope="global")
    model = qwen2(seed=3)
    layers = normalise_and_recurse(head_importance(model, BATCHES, VOCABULARY), recursion).tolist()
    kept = best([sum(layer[head] for layer in layers) / 3 for head in range(6)], 3)
    plan = decide_width(model, BATCHES, VOCABULARY, step).plan
    assert plan.query_heads == [kept] * 3 and plan.kv_heads == [[head // 3 for head in kept]] * 3
    apart = decide_width(model, BATCHES, VOCABULARY, step.model_copy(update={"scope": "layer"})).plan.query_heads
    assert apart == [best(layer, 3) for layer in layers] and any(layer != kept for layer in apart)


POLICIES = [("expand", 4, None, 4), ("group", 3, None, 1), ("balanced", 4, None, 2), ("merge", 4, 2, 2), ("merge", 4, 1, 1)]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("policy", "heads", "kv_heads", "after"), POLICIES)
def test_key_value_heads_follow_the_policy_under_either_scope(policy, heads, kv_heads, after, scope):
    model = qwen2(seed=3)
    step = Width(do="width", heads=heads, hidden=48, kv_policy=policy, kv_heads=kv_heads, scope=scope)
    plan, scores = decide_width(model, BATCHES, VOCABULARY, step).plan, normalise_and_recurse(head_importance(model, BATCHES, VOCABULARY))
    scores = scores.mean(0).expand(3, 6) if scope == "global" else scores
    for query, kv, layer in zip(plan.query_heads, plan.kv_heads, scores.tolist(), strict=True):
        halves = [layer[:3], layer[3:]]
        if policy == "group":
            expected = [0, 1, 2] if sum(halves[0]) >= sum(halves[1]) else [3, 4, 5]
        elif policy == "balanced":
            expected = [*best(halves[0], 2), *(3 + head for head in best(halves[1], 2))]
        else:
            expected = best(layer, 4)
        assert sorted(query) == expected and len(kv) == after
        assert policy == "merge" or [kv[place * after // heads] for place in range(heads)] == [head // 3 for head in query]
    assert Sizes.of(apply(plan, model)).kv_heads == after


def test_random_heads_are_other_heads_for_other_seeds_and_are_drawn_without_a_score():
    step = Width(do="width", heads=3, hidden=24, kv_policy="expand", criterion="random")
    plan, figures, _ = decide_width(qwen2(), BATCHES, VOCABULARY, step, seed=(1, 2))
    again, other = (decide_width(qwen2(), BATCHES, VOCABULARY, step, seed=seed).plan for seed in ((1, 2), (1, 3)))
    assert plan == again and plan.query_heads != other.query_heads and plan.hidden != other.hidden
    assert plan.criterion == "random" and plan.norm_scales == norm_scales(qwen2(), BATCHES, plan.hidden)
    assert set(figures) == {"head_score", "hidden"}
    one_list = decide_width(qwen2(), BATCHES, VOCABULARY, step.model_copy(update={"scope": "global"}), seed=(1, 2)).plan.query_heads
    assert one_list == [one_list[0]] * 3 and len({tuple(heads) for heads in plan.query_heads}) > 1


def test_random_dimensions_and_layers_are_drawn_by_seed():
    mlp, depth = Mlp(do="mlp", intermediate=20, criterion="random"), Depth(do="depth", layers=5, criterion="random")
    plans = [decide_mlp(qwen2(), [], VOCABULARY, mlp, seed=seed).plan for seed in ((1, 2), (1, 2), (1, 3))]
    assert plans[0] == plans[1] != plans[2] and len({tuple(kept) for kept in plans[0].intermediate}) == 3
    deep = qwen2(num_hidden_layers=10)
    decisions = [decide_depth(deep, [], VOCABULARY, depth, seed=(1, number)) for number in range(20)]
    assert all(decision.figures == {} for decision in decisions) and len({tuple(decision.plan.layers) for decision in decisions}) > 15
    times = [sum(layer in decision.plan.layers for decision in decisions) for layer in range(10)]
    assert sum(times) == 100 and min(times) > 3 and max(times) < 17  # each layer stays with probability one half


@pytest.mark.parametrize("search", ["greedy", "oneshot"])
def test_several_layers_go_one_by_one_or_at_once(search):
    """Of these weights the two searches keep different layers."""
    model, kept = qwen2(4, num_hidden_layers=5), list(range(5))

    def without(layer: int) -> float:
        left = [other for other in kept if other != layer]
        return mean_nll(apply(Plan.of("depth", "prunerec", Sizes.of(model), layers=left), model), BATCHES, VOCABULARY)

    at_once = sorted(sorted(kept, key=without)[3:])
    while len(kept) > 2:
        kept.remove(min(kept, key=without))
    plan, figures, _ = decide_depth(model, BATCHES, VOCABULARY, Depth(do="depth", layers=2, search=search))
    assert plan.layers == {"greedy": kept, "oneshot": at_once}[search] and kept != at_once
    assert len(figures) == {"greedy": 3, "oneshot": 1}[search]


WIDTH, MLP, DEPTH = {"do": "width", "heads": 3, "hidden": 24}, {"do": "mlp", "intermediate": 28}, {"do": "depth", "layers": 3}
SEQUENCES = {  # steps, and the heads, key/value heads, hidden, intermediate size and layers that each leaves
    "the paper's": [(WIDTH, 3, 1, 24, 56, 5), (MLP, 3, 1, 24, 28, 5), (DEPTH, 3, 1, 24, 28, 3)],
    "depth first": [(DEPTH, 6, 2, 48, 56, 3), (WIDTH, 3, 1, 24, 56, 3), (MLP, 3, 1, 24, 28, 3)],
    "mlp first": [(MLP, 6, 2, 48, 28, 5), (DEPTH, 6, 2, 48, 28, 3), (WIDTH, 3, 1, 24, 28, 3)],
    "a part at a time": [
        ({"do": "width", "heads": 4, "hidden": 36, "kv_policy": "balanced"}, 4, 2, 36, 56, 5),
        ({"do": "mlp", "intermediate": 40}, 4, 2, 36, 40, 5),
        ({"do": "depth", "layers": 4}, 4, 2, 36, 40, 4),
        ({"do": "width", "heads": 3, "hidden": 27, "kv_policy": "expand"}, 3, 3, 27, 40, 4),
        ({"do": "mlp", "intermediate": 28, "tau": 0.3}, 3, 3, 27, 28, 4),
        ({"do": "depth", "layers": 3, "search": "oneshot"}, 3, 3, 27, 28, 3),
        ({"do": "width", "heads": 2, "hidden": 20, "kv_policy": "merge", "kv_heads": 1, "greedy": True}, 2, 1, 20, 28, 3),
        ({"do": "mlp", "intermediate": 14, "criterion": "random"}, 2, 1, 20, 14, 3),
        ({"do": "depth", "layers": 1, "criterion": "random"}, 2, 1, 20, 14, 1),
    ],
    "random heads, then scored dimensions": [
        ({"do": "width", "heads": 3, "hidden": 48, "criterion": "random"}, 3, 1, 48, 56, 5),
        (WIDTH, 3, 1, 24, 56, 5),
    ],
    "nothing but depth": [(DEPTH, 6, 2, 48, 56, 3)],
    "nothing but mlp": [(MLP, 6, 2, 48, 28, 5)],
}


@pytest.mark.parametrize("family", [qwen2, llama])
@pytest.mark.parametrize("name", SEQUENCES)
def test_steps_in_any_order_and_number(name, family):
    model = family(num_hidden_layers=5)
    shape = Shape.of_config(model.config.to_dict())
    for number, (settings, *sizes) in enumerate(SEQUENCES[name], 2):
        step = TypeAdapter(Step).validate_python(settings)
        plan = DECISIONS[step.do](model, BATCHES, VOCABULARY, step, None, (2020, number)).plan
        shape, problems = shape.after(step)
        assert problems == [] and plan.sizes_before == Sizes.of(model)
        model = apply(plan, model)
        found = Sizes.of(model)
        assert [found.heads, found.kv_heads, found.hidden, found.intermediate, found.layers] == sizes
        assert shape == Shape.of_config(model.config.to_dict()) and plan.sizes_after == found
        assert sum(parameter.numel() for parameter in model.parameters()) == found.total_parameters
        with torch.no_grad():
            logits = model(input_ids=BATCHES[0]["input_ids"]).logits
        assert logits.isfinite().all() and logits.std() > 1e-3


@pytest.mark.parametrize("search", ["greedy", "oneshot"])
def test_depth_draws_every_round_and_keeps_what_costs_least(search):
    model = llama()
    plan, figures, _ = decide_depth(model, BATCHES, VOCABULARY, Depth(do="depth", layers=2, search=search))
    without = {}
    for layer in range(3):
        kept = [index for index in range(3) if index != layer]
        without[layer] = mean_nll(apply(plan.model_copy(update={"layers": kept}), model), BATCHES, VOCABULARY)
    assert plan.layers == [layer for layer in range(3) if layer != min(without, key=without.__getitem__)]
    assert set(figures) == {"layers_round_1"}
