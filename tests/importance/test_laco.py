"""LaCo's merges against models whose weights are merged by hand, one after another, and its threshold against all thresholds."""

import copy

import pytest
import torch
from entering import samples
from naive_importance import VOCABULARY
from tiny import batch, every_model, llama, qwen2

from recbole_prunerec.errors import UserError
from recbole_prunerec.importance import laco
from recbole_prunerec.importance.laco import Layer, layer_scores, merge, merge_to, merged_weights, unmerged
from recbole_prunerec.settings import Depth

BATCHES = [batch(3, prompt=(5, 16), seed=1), batch(2, seed=2)]


def scored(model, layers):
    return layer_scores(model, BATCHES, VOCABULARY, Depth(do="depth", layers=layers, criterion="laco"), (0,), None)


class Merging:
    """A model whose layers are really merged and deleted."""

    def __init__(self, model):
        self.model, self.places = copy.deepcopy(model), list(range(model.config.num_hidden_layers))

    def merged(self, at, size):
        new = copy.deepcopy(self)
        layers = new.model.model.layers
        base = {name: value.clone() for name, value in layers[at].named_parameters()}
        for name, parameter in layers[at].named_parameters():
            parameter.data = base[name] + sum(dict(layer.named_parameters())[name] - base[name] for layer in layers[at + 1 : at + size])
        del layers[at + 1 : at + size]
        del new.places[at + 1 : at + size]
        new.model.config.num_hidden_layers = len(layers)
        return new

    @torch.no_grad()
    def states(self):
        return [self.model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten() for ids, _ in samples(BATCHES)]

    def similarity(self, other):
        pairs = zip(self.states(), other.states(), strict=True)
        return sum(float(a @ b / a.norm() / b.norm()) for a, b in pairs) / 5


def walked(whole, keep, threshold):
    """The paper's walk with merges of four layers and an interval of two, again and again, on weights; None where it does not get to `keep`."""
    stack = whole
    while len(stack.places) > keep:
        start, at = len(stack.places), max(0, len(stack.places) - 4)
        while at >= 0 and len(stack.places) > keep:
            trial = stack.merged(at, min(4, len(stack.places) - at, len(stack.places) - keep + 1))
            if whole.similarity(trial) < threshold:
                at -= 1
                continue
            stack = trial
            at = min(at - 2, len(stack.places) - 4)
        if len(stack.places) == start:
            return None
    return stack


def test_a_merge_adds_the_differences_from_the_lowest():
    model = llama(num_hidden_layers=5)
    layers = merge(unmerged(5), 1, 3)
    assert layers == (Layer(0, (1, 0, 0, 0, 0)), Layer(1, (0, -1, 1, 1, 0)), Layer(4, (0, 0, 0, 0, 1)))
    again = merge(layers, 0, 2)
    assert again[0] == Layer(0, (0, -1, 1, 1, 0))  # theta_0 + (theta_1 - theta_0)
    weights, old = merged_weights(model, layers), dict(model.named_parameters())
    assert {name.split(".")[2] for name in weights} == {"1"} and len(weights) == 9
    for name, new in weights.items():
        one, two, three = (old[name.replace("layers.1", f"layers.{place}")] for place in (1, 2, 3))
        torch.testing.assert_close(new, one + (two - one) + (three - one))


@pytest.mark.parametrize("keep", [1, 3, 5])
@every_model
def test_layers_are_those_of_the_highest_threshold_that_gets_there(make, keep):
    model = make(seed=5, num_hidden_layers=6)
    scores, whole = scored(model, keep), Merging(model)
    assert scores.layers.sum() == keep
    low, high, wanted = -1.0, 1.0, walked(whole, keep, -1.0)
    for _ in range(10):
        middle = (low + high) / 2
        found = walked(whole, keep, middle)
        low, high, wanted = (middle, high, found) if found else (low, middle, wanted)
    assert scores.layers.nonzero()[:, 0].tolist() == wanted.places
    new = dict(model.named_parameters()) | scores.update([wanted.places])
    for place, layer in zip(wanted.places, wanted.model.model.layers, strict=True):
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(new[f"model.layers.{place}.{name}"], parameter.data, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [2, 4, 7, 12, 24])
def test_every_depth_is_reached_at_the_lowest_threshold(count):
    for keep in range(1, count + 1):
        assert len(merge_to(unmerged(count), keep, -1.0, lambda layers: -1.0)) == keep
    assert merge_to(unmerged(count), 1, 0.5, lambda layers: 0.4) is None


def test_a_layer_that_adds_nothing_is_merged_first():
    """Layer 3 adds nothing, so that layer 4 can stand in its place."""
    model = qwen2(num_hidden_layers=8)
    for module in (model.model.layers[3].self_attn.o_proj, model.model.layers[3].mlp.down_proj):
        module.weight.data.zero_()
    scores = scored(model, 7)
    assert scores.layers.tolist() == [1, 1, 1, 1, 0, 1, 1, 1]
    old, new = dict(model.named_parameters()), scores.update([])
    assert len(new) == 12 and all(torch.equal(weight, old[name.replace("layers.3", "layers.4")]) for name, weight in new.items())


def test_nothing_is_merged_where_all_stay_and_the_model_does_not_change():
    model = qwen2(num_hidden_layers=4)
    before = copy.deepcopy(model.state_dict())
    scores = scored(model, 4)
    assert scores.layers.tolist() == [1.0] * 4 and scores.update([[0, 1, 2, 3]]) == {}
    scored(model, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_states_that_are_not_finite_are_refused(monkeypatch):
    monkeypatch.setattr(laco, "_final_states", lambda model, batch, layers: torch.full((len(batch["labels"]), 4), torch.nan))
    with pytest.raises(UserError, match=r"scores \(layers\) are not finite"):
        scored(qwen2(num_hidden_layers=4), 2)
