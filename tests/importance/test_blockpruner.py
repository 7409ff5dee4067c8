"""BlockPruner's search against perplexities of models in which halves of layers are really zero."""

import copy

import pytest
import torch
from naive_importance import BATCHES, SOFTMAXES, VOCABULARY
from naive_importance import nll as plain_nll
from tiny import every_model, llama, qwen2

from recbole_prunerec.backbone.family import HALVES_KEY
from recbole_prunerec.importance.blockpruner import layer_scores, silenced_nll
from recbole_prunerec.settings import Depth

OUTPUT = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}


def scored(model, layers, softmax=VOCABULARY):
    return layer_scores(model, BATCHES, softmax, Depth(do="depth", layers=layers, criterion="blockpruner"), (0,), None).halves.tolist()


def zeroed(model, gone):
    """A copy in which the halves `gone`, (layer, name), add nothing."""
    new = copy.deepcopy(model)
    for layer, half in gone:
        for parameter in new.model.layers[layer].get_submodule(OUTPUT[half]).parameters():
            parameter.data.zero_()
    return new


def rounds(model, keep, trie=None):
    """The greedy search over the halves of zeroed models: those that stay, and what every round measured."""
    kept, measured = [(layer, half) for layer in range(model.config.num_hidden_layers) for half in OUTPUT], []
    whole = list(kept)
    while len(kept) > keep:
        gone = [place for place in whole if place not in kept]
        measured.append({place: plain_nll(zeroed(model, [*gone, place]), BATCHES, trie) for place in kept})
        kept.remove(min(measured[-1], key=measured[-1].get))
    return kept, measured


@pytest.mark.parametrize(("softmax", "trie"), SOFTMAXES.values(), ids=SOFTMAXES)
@every_model
def test_the_search_is_that_of_brute_force(make, softmax, trie):
    model = make(num_hidden_layers=4, **({"attention_bias": True, "mlp_bias": True} if make is llama else {}))
    kept, measured = rounds(model, 4, trie)
    assert scored(model, 2, softmax) == [[float((layer, half) in kept) for half in OUTPUT] for layer in range(4)]
    whole = [(layer, half) for layer in range(4) for half in OUTPUT]
    assert silenced_nll(model, BATCHES, softmax, whole) == pytest.approx(measured[0], rel=1e-6)
    left = sorted(set(whole) & set(measured[2]))
    assert silenced_nll(model, BATCHES, softmax, left) == pytest.approx(measured[2], rel=1e-6)


def test_a_tie_goes_to_the_higher_layer_and_there_to_the_mlp():
    """Of these weights no half is better gone than those that add nothing."""
    idle = [(1, "attention"), (1, "mlp"), (2, "attention")]
    model = zeroed(qwen2(6, num_hidden_layers=3), idle)
    nll = silenced_nll(model, BATCHES, VOCABULARY, [(layer, half) for layer in range(3) for half in OUTPUT])
    assert {place for place in nll if nll[place] == min(nll.values())} == set(idle)
    assert scored(model, 2) == [[1, 1], [1, 0], [0, 1]]


def test_halves_that_are_gone_already_are_not_counted_again():
    model = zeroed(qwen2(num_hidden_layers=4), [(1, "attention"), (3, "mlp")])
    setattr(model.config, HALVES_KEY, ["both", "mlp", "both", "attention"])
    halves = torch.tensor(scored(model, 2))
    assert halves.sum() == 4 and halves[1, 0] == 0 and halves[3, 1] == 0
    assert scored(model, 3) == [[1, 1], [0, 1], [1, 1], [1, 0]]
