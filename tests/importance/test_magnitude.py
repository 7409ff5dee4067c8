"""Magnitude against sums over single weights."""

import pytest
from entering import matrices
from tiny import every_family, llama

from recbole_prunerec.importance.magnitude import magnitude_scores

PARTS = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]


@every_family
def test_scores_are_sums_of_absolute_weights(make):
    model = make()
    scores = magnitude_scores(model)
    q, o, gate, up, down = (matrices(model, PARTS[place]) for place in (0, 3, 4, 5, 6))
    for layer in range(3):
        for head in range(6):
            dims = range(8 * head, 8 * head + 8)
            wanted = sum(abs(q[layer][dim]).sum() + abs(o[layer][:, dim]).sum() for dim in dims)
            assert scores.heads[layer, head].item() == pytest.approx(wanted, rel=1e-12)
        for dim in range(56):
            wanted = abs(gate[layer][dim]).sum() + abs(up[layer][dim]).sum() + abs(down[layer][:, dim]).sum()
            assert scores.mlp[layer, dim].item() == pytest.approx(wanted, rel=1e-12)
        assert scores.layers[layer].item() == pytest.approx(sum(abs(matrices(model, part)[layer]).sum() for part in PARTS), rel=1e-12)
    embedding = model.get_input_embeddings().weight.detach().numpy()
    assert scores.hidden.tolist() == pytest.approx([abs(embedding[:, dim]).sum() for dim in range(48)], rel=1e-12)


def test_larger_weights_keep_a_part():
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[7] *= 9
    model.model.layers[2].self_attn.o_proj.weight.data[:, 16:24] *= 9
    scores = magnitude_scores(model)
    assert scores.mlp[1].argmax() == 7 and scores.heads[2].argmax() == 2 and scores.layers[0] == scores.layers.min()
