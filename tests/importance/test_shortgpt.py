"""Block Influence against cosines of single tokens."""

import numpy as np
import torch
from entering import samples
from tiny import batch, every_model, llama

from recbole_prunerec.importance.shortgpt import layer_scores

BATCHES = [batch(3, prompt=(5, 16), seed=1), batch(2, seed=2)]


@torch.no_grad()
def cosines(model):
    """[layer]: of the stream before and after it, at every token of every sample."""
    found = [[] for _ in model.model.layers]

    def see(number):
        def hook(module, inputs, output):
            for before, after in zip(inputs[0][0].tolist(), output[0].tolist(), strict=True):
                found[number].append(np.dot(before, after) / np.linalg.norm(before) / np.linalg.norm(after))

        return hook

    handles = [layer.register_forward_hook(see(number)) for number, layer in enumerate(model.model.layers)]
    for ids, _ in samples(BATCHES):
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return found


@every_model
def test_influence_is_one_minus_the_mean_cosine(make):
    model = make(num_hidden_layers=4)
    np.testing.assert_allclose(layer_scores(model, BATCHES).layers, [1 - np.mean(layer) for layer in cosines(model)], rtol=1e-5)


def test_a_layer_that_adds_nothing_has_no_influence():
    model = llama(num_hidden_layers=4)
    for module in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        module.weight.data.zero_()
    scores = layer_scores(model, BATCHES).layers
    assert scores.argmin() == 2 and abs(scores[2]) < 1e-12 and (scores[[0, 1, 3]] > 0.01).all()
