"""The search for layers against models that are really cut."""

import math

import pytest
import torch
from naive_importance import BATCHES as TITLE_BATCHES
from naive_importance import SOFTMAXES, VOCABULARY, layer_rounds
from naive_importance import nll as plain_nll
from tiny import SLIDING, batch, every_model, qwen2

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.errors import UserError
from recbole_prunerec.importance.hooks import bypassed
from recbole_prunerec.importance.layers import bypassed_nll, layer_order, mean_nll
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply

BATCHES = [batch(3, seed=1), batch(2, seed=2)]


def cut(model, layers):
    return apply(Plan.of("depth", "prunerec", Sizes.of(model), layers=layers), model)


@torch.no_grad()
def nll(model):
    """Mean over all answer tokens, from full logits and one sample at a time."""
    losses = []
    for b in BATCHES:
        for ids, mask, labels in zip(b["input_ids"], b["attention_mask"], b["labels"], strict=True):
            log_p = torch.log_softmax(model(input_ids=ids[: mask.sum()][None]).logits[0], -1)
            losses += [-log_p[t - 1, label].item() for t, label in enumerate(labels.tolist()) if label != -100]
    return math.fsum(losses) / len(losses)


def test_mean_nll_runs_over_answer_tokens_only():
    assert mean_nll(qwen2(), BATCHES, VOCABULARY) == pytest.approx(nll(qwen2()), rel=1e-6)


@every_model
def test_a_bypassed_layer_equals_a_removed_one(make):
    model = make(num_hidden_layers=4)
    inputs = {key: BATCHES[0][key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        with bypassed(model, [1, 3]):
            logits = model(**inputs).logits
        assert torch.equal(logits, cut(model, [0, 2])(**inputs).logits)


@pytest.mark.parametrize("make, seed", [(qwen2, 0), (qwen2, 1), (qwen2, 2), *((make, 0) for make in SLIDING.values())])
def test_greedy_removes_the_least_harmful_layer_and_measures_again(make, seed):
    model = make(seed, num_hidden_layers=5)
    kept, rounds = list(range(5)), []
    while len(kept) > 2:
        rounds.append({layer: nll(cut(model, [other for other in kept if other != layer])) for layer in kept})
        kept.remove(min(rounds[-1], key=rounds[-1].get))
    found = layer_order(model, BATCHES, VOCABULARY, 2)
    assert found.kept == kept and found.base == pytest.approx(nll(model), rel=1e-6)
    assert [list(r) for r in found.rounds] == [list(r) for r in rounds]
    for mine, expected in zip(found.rounds, rounds, strict=True):
        assert mine == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("softmax", "trie"), SOFTMAXES.values(), ids=SOFTMAXES)
@every_model
def test_the_search_equals_full_forward_passes_a_layer(make, softmax, trie):
    model = make(num_hidden_layers=5)
    kept, rounds = layer_rounds(model, TITLE_BATCHES, 2, trie)
    found = layer_order(model, TITLE_BATCHES, softmax, 2)
    assert found.kept == kept and [list(r) for r in found.rounds] == [list(r) for r in rounds]
    for mine, expected in zip(found.rounds, rounds, strict=True):
        assert mine == pytest.approx(expected, rel=1e-10)
    assert found.base == pytest.approx(plain_nll(model, TITLE_BATCHES, trie), rel=1e-10)


def test_a_round_runs_each_layer_once_and_then_only_the_layers_above():
    model, runs = qwen2(num_hidden_layers=5), [0] * 5

    def count(layer):
        def hook(*_):
            runs[layer] += 1

        return hook

    handles = [layer.mlp.register_forward_hook(count(place)) for place, layer in enumerate(model.model.layers)]
    bypassed_nll(model, BATCHES[:1], VOCABULARY, [0, 1, 3, 4])
    for handle in handles:
        handle.remove()
    assert runs == [1, 2, 0, 3, 4]


def test_oneshot_measures_once():
    model = qwen2(3, num_hidden_layers=5)
    alone = {layer: nll(cut(model, [other for other in range(5) if other != layer])) for layer in range(5)}
    found = layer_order(model, BATCHES, VOCABULARY, 2, "oneshot")
    assert found.kept == sorted(sorted(alone, key=alone.get)[3:])
    assert len(found.rounds) == 1 and found.rounds[0] == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("search", ["greedy", "oneshot"])
def test_a_tie_keeps_the_lower_index(search):
    model = qwen2(num_hidden_layers=5)
    with torch.no_grad():
        for layer in (0, 2, 3):
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
            model.model.layers[layer].mlp.down_proj.weight.zero_()
    worst = max((1, 4), key=lambda layer: nll(cut(model, [other for other in range(5) if other != layer])))
    alone = layer_order(model, BATCHES, VOCABULARY, 5, "oneshot").rounds[0]
    assert alone[0] == alone[2] == alone[3]
    rank = sorted(range(5), key=lambda layer: (alone[layer], -layer))
    for keep in (4, 3, 2):
        assert layer_order(model, BATCHES, VOCABULARY, keep, "oneshot").kept == sorted(rank[5 - keep :])
    assert [other for other in rank if other in (0, 2, 3)] == [3, 2, 0] and worst in layer_order(model, BATCHES, VOCABULARY, 1, search).kept


def test_progress_wraps_the_rounds_and_a_wrong_count_is_refused():
    seen = []
    layer_order(qwen2(), BATCHES, VOCABULARY, 1, progress=lambda rounds: seen.append(list(rounds)) or seen[0])
    assert seen == [[0, 1]]
    for keep in (0, 4):
        with pytest.raises(UserError, match=f"layers={keep} is not between 1 and 3"):
            layer_order(qwen2(), BATCHES, VOCABULARY, keep)
