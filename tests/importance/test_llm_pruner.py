"""LLM-Pruner's scores against plain gradients of single samples, weight by weight."""

import numpy as np
import pytest
import torch
from naive_importance import BATCHES, SOFTMAXES, VOCABULARY, losses
from tiny import every_model, llama, qwen2

from recbole_prunerec.importance.llm_pruner import mlp_scores, width_scores
from recbole_prunerec.settings import Mlp, Width

ORDERS = ("first", "second", "mix", "vector")


def gradients(model, trie):
    """For each sample the gradients of its mean answer loss, by name."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = []
    for batch in BATCHES:
        for row in range(len(batch["labels"])):
            (loss,) = losses(model, {key: value[row : row + 1] for key, value in batch.items()}, trie)
            answers = (batch["labels"][row] != -100).sum()  # those that leave no choice have no loss
            found.append({n: g.numpy() for n, g in zip(names, torch.autograd.grad(loss.sum() / answers, parameters), strict=True)})
    return found


def terms(model, trie, order):
    """What every weight matters, by name; for `vector` with its sign."""
    samples, found = gradients(model, trie), {}
    for name, parameter in model.named_parameters():
        w = parameter.detach().numpy()
        g, g2 = np.mean([sample[name] for sample in samples], 0), np.mean([sample[name] ** 2 for sample in samples], 0)
        found[name] = {"first": abs(w * g), "second": w**2 * g2, "mix": abs(w * g - 0.5 * w**2 * g2), "vector": w * g}[order]
    return found


def groups(model, values, order):
    """(heads, hidden, mlp): sums over all weights of each group, line by line."""
    config, absolute = model.config, abs if order == "vector" else (lambda line: line)

    def rows(name, index):
        parts = [values[f"{name}.{kind}"] for kind in ("weight", "bias") if f"{name}.{kind}" in values]
        return sum(absolute(part[index].sum()) for part in parts)

    def column(name, index):
        return absolute(values[f"{name}.weight"][:, index].sum())

    layers = [f"model.layers.{layer}." for layer in range(config.num_hidden_layers)]
    heads = []
    for layer in layers:
        own = [sum(rows(f"{layer}self_attn.q_proj", d) + column(f"{layer}self_attn.o_proj", d) for d in range(8 * h, 8 * h + 8)) for h in range(6)]
        kv = [sum(rows(f"{layer}self_attn.{p}_proj", d) for p in "kv" for d in range(8 * g, 8 * g + 8)) for g in range(2)]
        heads.append([own[h] + kv[h // 3] / 3 for h in range(6)])
    hidden = []
    for d in range(48):
        value = column("model.embed_tokens", d) + rows("model.norm", d)
        value += column("lm_head", d) if "lm_head.weight" in values else 0
        for layer in layers:
            value += sum(rows(f"{layer}{p}", d) for p in ("input_layernorm", "post_attention_layernorm", "self_attn.o_proj", "mlp.down_proj"))
            value += sum(column(f"{layer}{p}_proj", d) for p in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"))
        hidden.append(value)
    mlp = [[rows(f"{x}mlp.gate_proj", d) + rows(f"{x}mlp.up_proj", d) + column(f"{x}mlp.down_proj", d) for d in range(56)] for x in layers]
    return heads, hidden, mlp


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("softmax", "trie"), SOFTMAXES.values(), ids=SOFTMAXES)
@every_model
def test_scores_are_sums_over_the_weights_of_a_group(make, softmax, trie, order):
    model = make(num_hidden_layers=2, **({"attention_bias": True, "mlp_bias": True} if make is llama else {}))
    heads, hidden, mlp = groups(model, terms(model, trie, order), order)
    width = width_scores(model, BATCHES, softmax, Width(do="width", heads=3, hidden=24, criterion="llm_pruner", taylor=order))
    np.testing.assert_allclose(width.heads, heads, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(width.hidden, hidden, rtol=1e-5, atol=1e-9)
    found = mlp_scores(model, BATCHES, softmax, Mlp(do="mlp", intermediate=20, criterion="llm_pruner", taylor=order)).mlp
    np.testing.assert_allclose(found, mlp, rtol=1e-5, atol=1e-9)


def test_orders_differ_and_the_model_stays_as_it_was():
    model = qwen2().train()
    scores = [mlp_scores(model, BATCHES, VOCABULARY, Mlp(do="mlp", intermediate=9, criterion="llm_pruner", taylor=order)).mlp for order in ORDERS]
    assert all(not torch.allclose(one, other) for place, one in enumerate(scores) for other in scores[:place])
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
