"""The choosing functions against brute force and by hand, and what a plan refuses."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from pydantic import ValidationError
from tiny import qwen2

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.plan import Plan, choose_heads, choose_hidden, choose_intermediate
from recbole_prunerec.prune.shapes import kv_heads_after

SIZES = Sizes(hidden=48, layers=3, heads=6, kv_heads=2, head_dim=8, intermediate=56, vocab=97, tied=True, qkv_bias=True)


def random_scores(layers, heads, seed=0):
    return torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best(candidates, scores):
    return list(max(candidates, key=lambda heads: sum(scores[head] for head in heads)))


@pytest.mark.parametrize(
    "heads, kv_heads, keep, policy, after",
    [
        (14, 2, 7, "expand", 7),
        (14, 2, 5, "expand", 5),
        (14, 2, 7, "group", 1),
        (9, 3, 3, "group", 1),
        (9, 3, 6, "group", 2),
        (14, 2, 14, "group", 2),
        (14, 2, 6, "balanced", 2),
        (14, 2, 8, "balanced", 2),
        (14, 2, 14, "balanced", 2),
        (6, 6, 4, "group", 4),
    ],
)
def test_exact_policies_keep_the_best_heads_that_they_can_and_each_reads_its_own_key_value_head(heads, kv_heads, keep, policy, after):
    scores, size = random_scores(4, heads), heads // kv_heads
    query, kv = choose_heads(scores, kv_heads, keep, policy)
    assert kv_heads_after(heads, kv_heads, keep, policy) == kv_heads_after(heads, kv_heads, keep, policy, after) == after
    allowed = {
        "expand": lambda kept: True,
        "group": lambda kept: all(sum(head // size == group for head in kept) in (0, size) for group in range(kv_heads)),
        "balanced": lambda kept: all(sum(head // size == group for head in kept) == keep // kv_heads for group in range(kv_heads)),
    }[policy]
    for layer in range(4):
        candidates = [kept for kept in combinations(range(heads), keep) if allowed(kept)]
        assert query[layer] == best(candidates, scores[layer].tolist())
        assert len(kv[layer]) == after
        for place, head in enumerate(query[layer]):
            assert kv[layer][place // (keep // after)] == head // size
    if policy != "expand":
        assert all(len(set(layer)) == after for layer in kv)


def test_policies_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.8, 0.7, 0.2, 0.3, 0.4, 0.5, 0.6]], dtype=torch.float64)  # three key/value heads of three
    assert choose_heads(scores, 3, 4, "expand") == ([[1, 2, 3, 8]], [[0, 0, 1, 2]])
    assert choose_heads(scores, 3, 3, "group") == ([[0, 1, 2]], [[0]])
    assert choose_heads(scores, 3, 6, "group") == ([[0, 1, 2, 6, 7, 8]], [[0, 2]])
    assert choose_heads(scores, 3, 6, "balanced") == ([[1, 2, 3, 5, 7, 8]], [[0, 1, 2]])


def test_merge_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.8, 0.7, 0.2, 0.3, 0.4, 0.5, 0.6]], dtype=torch.float64)
    # Kept, best first: 1 2 3 8 7 6. Sums over them: 1.7, .7, 1.5, so key/value heads 0 and 2 stay, with three places each; 3 goes to 0.
    assert choose_heads(scores, 3, 6, "merge", 2) == ([[1, 2, 3, 6, 7, 8]], [[0, 2]])
    # Kept: 1 2 3 8. Sums: 1.7, .7, .6. Two places each; 8 finds its own gone and 0 full, and goes to 1.
    assert choose_heads(scores, 3, 4, "merge", 2) == ([[1, 2, 3, 8]], [[0, 1]])
    assert choose_heads(scores, 3, 4, "merge", 1) == ([[1, 2, 3, 8]], [[0]])
    # 3 and 4 fill key/value head 1, so 5 goes to 0, and the query heads change their order.
    reordered = torch.tensor([[0.5, 0.1, 0.1, 0.9, 0.8, 0.7]], dtype=torch.float64)
    assert choose_heads(reordered, 2, 4, "merge", 2) == ([[0, 5, 3, 4]], [[0, 1]])
    # Places go in descending score: 2 finds 0 full and takes a place in 1 before 4, which owns it and then finds it full.
    pushed = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.4, 0.1, 0.1]], dtype=torch.float64)
    assert choose_heads(pushed, 3, 6, "merge", 3) == ([[0, 1, 2, 3, 4, 6]], [[0, 1, 2]])
    # Heads that are not kept do not count: all of group 1 sums to 1.19 against 1.11, its only kept head to .42 against .91.
    only_kept = torch.tensor([[0.5, 0.41, 0.2, 0.42, 0.39, 0.38]], dtype=torch.float64)
    assert choose_heads(only_kept, 2, 3, "merge", 1) == ([[0, 1, 3]], [[0]])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("heads, kv_heads, keep, after", [(14, 2, 8, 2), (12, 4, 6, 3), (12, 4, 8, 4), (9, 3, 6, 2)])
def test_merge_keeps_the_best_heads_and_moves_only_those_that_must(heads, kv_heads, keep, after, seed):
    scores, size = random_scores(1, heads, seed), heads // kv_heads
    ((query,), (kv,)) = choose_heads(scores, kv_heads, keep, "merge", after)
    s = scores[0].tolist()
    assert sorted(query) == best(combinations(range(heads), keep), s)
    kept_sum = [sum(s[head] for head in query if head // size == group) for group in range(kv_heads)]
    assert kv == best(combinations(range(kv_heads), after), kept_sum)
    places = [query[start : start + keep // after] for start in range(0, keep, keep // after)]
    for group, members in zip(kv, places, strict=True):
        assert members == sorted(members)
        for head in set(members):
            own = head // size
            if own != group and own in kv:  # then its own was full, of better heads
                assert min(s[other] for other in places[kv.index(own)]) > s[head]


def test_equal_scores_go_to_the_lower_index():
    equal = torch.ones(1, 6, dtype=torch.float64)
    assert choose_heads(equal, 2, 4, "expand") == ([[0, 1, 2, 3]], [[0, 0, 0, 1]])
    assert choose_heads(equal, 2, 3, "group") == ([[0, 1, 2]], [[0]])
    assert choose_heads(equal, 2, 4, "balanced") == ([[0, 1, 3, 4]], [[0, 1]])
    assert choose_heads(equal, 2, 2, "merge", 2) == ([[0, 1]], [[0, 1]])
    assert choose_hidden(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3) == [0, 1, 3]


def test_choose_hidden_and_intermediate_keep_the_best_sorted():
    scores = random_scores(3, 30, 5)
    assert choose_intermediate(scores, 7) == [sorted(sorted(range(30), key=lambda k: -layer[k])[:7]) for layer in scores.tolist()]
    assert choose_hidden(scores[0], 7) == choose_intermediate(scores, 7)[0]
    with pytest.raises(UserError, match=r"hidden=31 is not between 1 and 30"):
        choose_hidden(scores[0], 31)
    with pytest.raises(UserError, match=r"intermediate=0 is not between 1 and 30"):
        choose_intermediate(scores, 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((9, 3, 7, "group"), "heads=7 is not a multiple of 3, the heads that share one key/value head; choose 6 or 9, or kv_policy=expand"),
        ((14, 2, 2, "group"), "heads=2 is not a multiple of 7, the heads that share one key/value head; choose 7, or kv_policy=expand"),
        ((14, 2, 7, "balanced"), "heads=7 is not a multiple of kv_heads=2; choose 6 or 8, or kv_policy=expand"),
        ((14, 2, 15, "expand"), "heads=15 is not between 1 and 14, the heads of the model"),
        ((14, 2, 0, "merge", 1), "heads=0 is not between 1 and 14, the heads of the model"),
        ((14, 2, 7, "group", 2), "kv_heads=2 contradicts kv_policy=group, which gives kv_heads=1; leave it out, or choose kv_policy=merge"),
        ((14, 2, 7, "merge"), "kv_heads is missing: kv_policy=merge shares kv_heads evenly among heads=7; choose kv_heads=1"),
        ((14, 2, 6, "merge", 4), "kv_heads=4 does not fit: kv_policy=merge shares kv_heads evenly among heads=6; choose kv_heads=1 or 2"),
        ((9, 3, 4, "merge", 3), "kv_heads=3 does not fit: kv_policy=merge shares kv_heads evenly among heads=4; choose kv_heads=1 or 2"),
    ],
)
def test_impossible_combinations_say_what_is_possible(arguments, message):
    with pytest.raises(UserError) as error:
        kv_heads_after(*arguments)
    assert str(error.value) == message
    heads, *rest = arguments
    with pytest.raises(UserError):
        choose_heads(random_scores(1, heads), *rest)


def test_a_plan_survives_json_and_knows_its_sizes():
    heads = choose_heads(random_scores(3, 6), 2, 3, "group")
    plan = Plan.of("width", "prunerec", SIZES, heads, hidden=[0, 3, 9], norm_scales={"model.norm": 0.1 + 0.2})
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.sizes_after == replace(SIZES, hidden=3, heads=3, kv_heads=1)
    assert Sizes.of(qwen2()) == SIZES
    combined = Plan.of("depth", "prunerec", SIZES, intermediate=[[1, 2]] * 3, layers=[0, 2])
    assert combined.sizes_after == replace(SIZES, intermediate=2, layers=2)
    with pytest.raises(ValidationError):
        plan.step = "mlp"
    with pytest.raises(ValidationError):
        Plan.model_validate({**plan.model_dump(), "hiden": [1]})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden": [0, 48]}, "hidden must be different indices from 0 to 47"),
        ({"hidden": [-1, 3]}, "hidden must be different indices"),
        ({"hidden": [3, 3]}, "hidden must be different indices"),
        ({"layers": []}, "layers must be 1 lists"),
        ({"intermediate": [[1], [1]]}, "intermediate must be 3 lists"),
        ({"intermediate": [[1], [1], [1, 2]]}, "intermediate must be 3 lists of one length"),
        ({"heads": ([[0, 1, 2]] * 3, [[0, 1]] * 3)}, "3 query heads on 2 key/value heads"),
        ({"heads": ([[0, 1, 1]] * 3, [[0]] * 3)}, "query_heads must be different indices"),
        ({"heads": ([[0, 1, 2]] * 3, [[2]] * 3)}, "kv_heads must be different indices from 0 to 1"),
    ],
)
def test_contradictory_plans_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Plan.of("width", "prunerec", SIZES, **changes)


def test_a_plan_with_other_sizes_than_it_keeps_or_half_of_the_heads_is_refused():
    plan = Plan.of("depth", "prunerec", SIZES, layers=[0, 2]).model_dump()
    with pytest.raises(UserError, match="sizes_after"):
        Plan.model_validate({**plan, "layers": [1]})
    with pytest.raises(UserError, match="query_heads and kv_heads together"):
        Plan.model_validate({**plan, "kv_heads": [[0, 1]] * 3})
