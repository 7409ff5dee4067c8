"""The shapes that meet a budget: brute force over a small space, rule by rule; and counts of models that are really built."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from recbole_prunerec.backbone.family import FAMILIES, Sizes
from recbole_prunerec.prune.budget import Shape, shape_problems
from recbole_prunerec.prune.search import Space, unlike

SMALL = Sizes(hidden=48, layers=4, heads=6, kv_heads=2, head_dim=8, intermediate=56, vocab=97, tied=True)
SMOLLM2 = Sizes(hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49_152, tied=True)
QWEN2 = Sizes(hidden=896, layers=24, heads=14, kv_heads=2, head_dim=64, intermediate=4864, vocab=151_936, tied=True, qkv_bias=True)
HAS = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}, "llama": {}, "mistral": {}}
# Query heads with key/value heads that six on two may become, written by hand from METHOD 2.
KEPT = {
    "group": {(3, 1), (6, 2)},
    "balanced": {(2, 2), (4, 2), (6, 2)},
    "expand": {(heads, heads) for heads in range(1, 7)},
    "merge": {(heads, 1) for heads in range(1, 7)} | {(2, 2), (4, 2), (6, 2)},
}

families, policies, counts = st.sampled_from(list(HAS)), st.sampled_from(list(KEPT)), st.sampled_from(["total", "non_embedding"])


def counted(sizes: Sizes, count: str) -> int:
    return sizes.total_parameters if count == "total" else sizes.non_embedding_parameters


def spread(sizes: Sizes, whole: Sizes) -> float:
    names = ("heads", "hidden", "intermediate", "layers")
    logs = [math.log(getattr(sizes, name)) - math.log(getattr(whole, name)) for name in names]
    return math.sqrt(sum(log**2 for log in logs) / 4 - (sum(logs) / 4) ** 2)


def multiples(size: int, unit: int) -> list[int]:
    return [value for value in range(1, size + 1) if value % unit == 0 or value == size]


def catalogue(space: Space) -> Iterator[Sizes]:
    """Every shape that a stock class loads; of those that differ in the MLP alone the widest comes last."""
    whole, widths = space.sizes, multiples(space.sizes.intermediate, space.round_to)
    for (heads, kv_heads), hidden, layers in product(KEPT[space.policy], multiples(whole.hidden, space.round_to), range(1, whole.layers + 1)):
        if space.family != "llama" or hidden % heads == 0:
            for inner in widths:
                yield replace(whole, heads=heads, kv_heads=kv_heads, hidden=hidden, intermediate=inner, layers=layers)


def within(space: Space, budget: int, count: str) -> set[Sizes]:
    """The shapes of the catalogue that fit and could not have a wider MLP."""
    return set({replace(sizes, intermediate=1): sizes for sizes in catalogue(space) if counted(sizes, count) <= budget}.values())


@settings(deadline=None)
@given(families, policies, counts, st.integers(2, 60), st.floats(0.005, 0.999), st.booleans(), st.integers(1, 97))
def test_brute_force_finds_the_same_shapes_and_the_order_is_what_it_is_said_to_be(family, policy, count, unit, share, tied, vocab):
    whole = replace(SMALL, tied=tied, **HAS[family])
    space = Space(replace(whole, vocab=vocab), family, policy, unit)
    budget = int(share * counted(whole, count))
    found = space.within(budget, count)
    assert len(found) == len({each.sizes for each in found})
    assert {each.sizes for each in found} == within(space, budget, count)
    for each in found:
        away = spread(each.sizes, space.sizes)
        assert (each.spread, each.distance) == pytest.approx((away, away + math.log(budget / counted(each.sizes, count))), abs=1e-7)
    keys = [(each.distance, -each.sizes.layers, -each.sizes.hidden, -each.sizes.heads, -each.sizes.kv_heads) for each in found]
    assert keys == sorted(keys)


@cache
def built(family: str, sizes: Sizes) -> int:
    """Parameters of transformers' own model, which the tied head is counted in once."""
    config = AutoConfig.for_model(
        family,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.intermediate,
        vocab_size=sizes.vocab,
        tie_word_embeddings=sizes.tied,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embedding = model.get_input_embeddings().weight.numel() * (1 if sizes.tied else 2)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total - embedding == sizes.non_embedding_parameters
    return total


@settings(deadline=None)
@given(families, policies, counts, st.floats(0.02, 0.9), st.booleans(), st.data())
def test_what_is_found_can_be_built_has_the_parameters_and_is_reached_by_its_steps(family, policy, count, share, tied, data):
    whole = replace(SMALL, tied=tied, **HAS[family])
    space = Space(whole, family, policy, 16)
    found = space.within(int(share * counted(whole, count)), count)
    if not found:
        return
    sizes = data.draw(st.sampled_from(found)).sizes
    assert built(family, sizes) == sizes.total_parameters
    assert counted(sizes, count) <= share * counted(whole, count)
    start = Shape(family, whole.hidden, whole.layers, whole.heads, whole.kv_heads, whole.intermediate)
    steps = space.steps(sizes)
    assert shape_problems(steps, start) == []
    for step in steps:
        start, _ = start.after(step)
    assert start == Shape(family, sizes.hidden, sizes.layers, sizes.heads, sizes.kv_heads, sizes.intermediate)
    assert [step.do for step in steps] == [do for do in ("width", "mlp", "depth") if do in {step.do for step in steps}]


def test_a_part_that_keeps_its_size_has_no_step():
    space = Space(SMALL, "qwen2", "group", 16)
    assert space.steps(SMALL) == []
    assert [step.model_dump(exclude_unset=True) for step in space.steps(replace(SMALL, layers=2))] == [{"do": "depth", "layers": 2}]
    merged = Space(SMALL, "qwen2", "merge", 16).steps(replace(SMALL, heads=4, kv_heads=1, intermediate=16))
    assert [step.model_dump(exclude_unset=True) for step in merged] == [
        {"do": "width", "heads": 4, "hidden": 48, "kv_policy": "merge", "kv_heads": 1},
        {"do": "mlp", "intermediate": 16},
    ]


def test_every_family_has_its_rules_here():
    assert set(HAS) == set(FAMILIES)


@settings(deadline=None)
@given(families, policies, counts, st.integers(2, 60))
def test_the_smallest_is_what_no_shape_undercuts(family, policy, count, unit):
    space = Space(replace(SMALL, **HAS[family]), family, policy, unit)
    smallest = space.smallest(1, count).sizes
    least = min(counted(sizes, count) for sizes in catalogue(space))
    assert smallest in set(catalogue(space)) and counted(smallest, count) == least
    assert space.within(least, count) != [] and space.within(least - 1, count) == []


@settings(deadline=None)
@given(families, st.floats(0.02, 0.9), st.integers(1, 12))
def test_those_that_are_shown_are_the_first_of_each_kind(family, share, most):
    space = Space(replace(SMALL, **HAS[family]), family, "expand", 4)
    found = space.within(int(share * SMALL.total_parameters), "total")
    shown = unlike(found, most)

    def like(one: Sizes, other: Sizes) -> bool:
        sides = [(one.heads, other.heads), (one.hidden, other.hidden), (one.intermediate, other.intermediate), (one.layers, other.layers)]
        return all(4 / 5 < a / b < 5 / 4 for a, b in sides)

    expected = []
    for each in found:
        if len(expected) < most and not any(like(each.sizes, other.sizes) for other in expected):
            expected.append(each)
    assert shown == expected


@pytest.mark.parametrize(
    ("sizes", "family", "share", "count", "tokens", "first"),
    [
        (SMOLLM2, "llama", 0.05, "total", 9_203, (3, 1, 192, 608, 11)),
        (QWEN2, "qwen2", 0.05, "non_embedding", 151_936, (7, 1, 320, 1728, 9)),
    ],
)
def test_real_backbones(sizes, family, share, count, tokens, first):
    found = Space(replace(sizes, vocab=tokens), family, "group", 16).within(int(share * counted(sizes, count)), count)
    best = found[0].sizes
    assert (best.heads, best.kv_heads, best.hidden, best.intermediate, best.layers) == first


@pytest.mark.parametrize(
    ("policy", "round_to", "kv_heads", "intermediate", "shares"),
    [("group", 16, 1, 688, ["4.66", "4.99"]), ("expand", 8, 3, 600, ["4.65", "4.98"])],
)
def test_hand_made_shapes_of_smollm2_are_among_the_first(policy, round_to, kv_heads, intermediate, shares):
    """METHOD 7's, and the preset's, of 9,203 tokens as amazon-games needs: shares of what is no embedding, and of all."""
    found = Space(replace(SMOLLM2, vocab=9_203), "llama", policy, round_to).within(int(0.05 * SMOLLM2.total_parameters), "total")
    made = replace(SMOLLM2, vocab=9_203, heads=3, kv_heads=kv_heads, hidden=192, intermediate=intermediate, layers=10)
    assert made in [each.sizes for each in found[:3]]
    whole = [(made.non_embedding_parameters, SMOLLM2.non_embedding_parameters), (made.total_parameters, SMOLLM2.total_parameters)]
    assert [f"{100 * kept / all_of_it:.2f}" for kept, all_of_it in whole] == shares
