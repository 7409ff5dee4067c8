"""Head importance against a forward pass written out head by head in numpy, and against full forward passes, one a head."""

import numpy as np
import pytest
import torch
from naive_importance import BATCHES as TITLE_BATCHES
from naive_importance import CATALOGUE, SOFTMAXES, TRIE, VOCABULARY, title_batch
from naive_importance import head_importance as one_by_one
from tiny import SLIDING, WINDOW, batch, every_model, qwen2, qwen3

from recbole_prunerec.importance import heads as module
from recbole_prunerec.importance.heads import head_importance, normalise_and_recurse
from recbole_prunerec.importance.hooks import bypassed, suppressed


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def window_of(config, layer):
    """How many keys a position of `layer` sees, or None for all: Mistral's window is everywhere, Qwen's from a layer on, and Llama has none."""
    slides = {"llama": False, "mistral": True}.get(config.model_type)
    if slides is None:
        slides = config.use_sliding_window and layer >= config.max_window_layers
    return config.sliding_window if slides else None


def probabilities(model, ids, scales):
    """Next-token probabilities (position, vocab) of one unpadded sequence; `scales` maps (layer, head) to the factor on its attention logits."""
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    c = model.config

    def linear(name, x):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def norm(name, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.rms_norm_eps) * w[name + ".weight"]

    n, k = len(ids), c.head_dim
    half = np.arange(k // 2)
    angle = np.arange(n)[:, None] * c.rope_parameters["rope_theta"] ** (-2.0 * half / k)

    def head_of(name, x, head):
        """One head's part of x (position, head * k), behind the norm `name` where the family has it."""
        part = x[:, head * k : head * k + k]
        return norm(name, part) if name + ".weight" in w else part

    def rotate(x):
        a, b = x[:, : k // 2], x[:, k // 2 :]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(c.num_hidden_layers):
        p = f"model.layers.{layer}."
        y = norm(p + "input_layernorm", x)
        q, keys, values = (linear(p + f"self_attn.{name}_proj", y) for name in "qkv")
        outputs = []
        for head in range(c.num_attention_heads):
            kv = head // (c.num_attention_heads // c.num_key_value_heads)
            one_q, one_k = head_of(p + "self_attn.q_norm", q, head), head_of(p + "self_attn.k_norm", keys, kv)
            logits = rotate(one_q) @ rotate(one_k).T / np.sqrt(k) * scales.get((layer, head), 1.0)
            logits[np.triu_indices(n, 1)] = -np.inf
            if window_of(c, layer) is not None:
                logits[np.tril_indices(n, -window_of(c, layer))] = -np.inf
            outputs.append(softmax(logits) @ values[:, kv * k : kv * k + k])
        x = x + linear(p + "self_attn.o_proj", np.concatenate(outputs, 1))
        y = norm(p + "post_attention_layernorm", x)
        gate = linear(p + "mlp.gate_proj", y)
        x = x + linear(p + "mlp.down_proj", gate / (1 + np.exp(-gate)) * linear(p + "mlp.up_proj", y))
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return softmax(norm("model.norm", x) @ head.T)


def reference(model, batches, scales, positions="answer"):
    """Mean over samples of the mean over positions of KL(p || p_scaled)."""
    means = []
    for b in batches:
        for ids, mask, labels in zip(b["input_ids"], b["attention_mask"], b["labels"], strict=True):
            ids, labels = ids[: mask.sum()].numpy(), labels[: mask.sum()].numpy()
            p, q = probabilities(model, ids, {}), probabilities(model, ids, scales)
            at = [t for t in range(len(ids) - 1) if labels[t + 1] != -100]
            at = at[:1] if positions == "first" else at
            means.append(np.mean([(p[t] * np.log(p[t] / q[t])).sum() for t in at]))
    return np.mean(means)


BATCHES = [batch(3, seed=1), batch(2, seed=2)]


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("positions", ["answer", "first"])
@every_model
def test_importance_equals_the_divergence_of_a_forward_pass_written_by_hand(make, positions, epsilon):
    model = make(num_hidden_layers=2)
    expected = [[reference(model, BATCHES, {(layer, head): epsilon}, positions) for head in range(6)] for layer in range(2)]
    found = head_importance(model, BATCHES, VOCABULARY, epsilon, positions)
    assert found.dtype == torch.float64 and found.min() > 1e-4
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize(("positions", "epsilon"), [("answer", 0.0), ("first", 0.1)])
@pytest.mark.parametrize(("softmax", "trie"), SOFTMAXES.values(), ids=SOFTMAXES)
@every_model
def test_importance_equals_a_full_forward_pass_a_head(make, softmax, trie, positions, epsilon):
    model = make(num_hidden_layers=2)
    found = head_importance(model, TITLE_BATCHES, softmax, epsilon, positions)
    torch.testing.assert_close(found, one_by_one(model, TITLE_BATCHES, trie, epsilon, positions), atol=1e-10, rtol=1e-10)
    assert found.min() > 1e-6


@pytest.mark.parametrize(("softmax", "trie", "epsilon"), [(VOCABULARY, None, 0.1), (CATALOGUE, TRIE, 0.0)], ids=SOFTMAXES)
@every_model
def test_greedy_importance_equals_a_full_forward_pass_a_head(make, softmax, trie, epsilon):
    model, removed = make(), [[1, 4], [0, 2, 3], []]
    found = head_importance(model, TITLE_BATCHES, softmax, epsilon, greedy=lambda kl: removed[len(kl) - 1])
    torch.testing.assert_close(found, one_by_one(model, TITLE_BATCHES, trie, epsilon, removed=removed), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("heads", [(6, 6), (6, 1), (1, 1)])
def test_importance_equals_a_full_forward_pass_a_head_whatever_heads_share(heads):
    model = qwen2(num_hidden_layers=2, **dict(zip(("num_attention_heads", "num_key_value_heads"), heads, strict=True)))
    found = head_importance(model, TITLE_BATCHES, CATALOGUE)
    torch.testing.assert_close(found, one_by_one(model, TITLE_BATCHES, TRIE), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("softmax", "trie"), SOFTMAXES.values(), ids=SOFTMAXES)
def test_importance_in_float32_equals_a_full_forward_pass_a_head(softmax, trie):
    model = qwen2(dtype=torch.float32)
    torch.testing.assert_close(head_importance(model, TITLE_BATCHES, softmax), one_by_one(model, TITLE_BATCHES, trie), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("at_once", "passes"), [(1, 6), (150, 3), (2**24, 1)])
def test_as_many_heads_go_through_the_model_at_once_as_tokens_allow(at_once, passes, monkeypatch):
    model, b = qwen2(), title_batch(3, 1)
    expected = head_importance(model, [b], CATALOGUE)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", {"cpu": at_once, "cuda": 0})
    rows = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda mlp, inputs, output: rows.append(len(inputs[0])))
    torch.testing.assert_close(head_importance(model, [b], CATALOGUE), expected, atol=1e-12, rtol=1e-12)
    handle.remove()
    assert 3 * b["input_ids"].numel() > 150 >= 2 * b["input_ids"].numel()
    assert rows == [3, 3, 3, *[18 // passes] * passes, 3]  # the whole model, the layer as it is and suppressed, its heads, and on to the next


@pytest.mark.parametrize("make", [qwen2, SLIDING["qwen3 sliding"], SLIDING["mistral sliding"]])
def test_greedy_keeps_chosen_heads_of_earlier_layers_suppressed_but_compares_with_the_whole_model(make):
    model, removed = make(), [[1, 4], [0, 2], [3]]
    seen = []

    def greedy(kl):
        seen.append(kl.clone())
        return removed[len(kl) - 1]

    found = head_importance(model, BATCHES[:1], VOCABULARY, greedy=greedy)
    assert [kl.shape for kl in seen] == [(1, 6), (2, 6), (3, 6)]
    assert torch.equal(seen[1], found[:2])
    before = {}
    for layer in range(3):
        for head in (0, 5):
            assert found[layer, head].item() == pytest.approx(reference(model, BATCHES[:1], {**before, (layer, head): 0.0}), rel=2e-5)
        before |= {(layer, head): 0.0 for head in removed[layer]}


def test_importance_leaves_the_model_as_it_was():
    model = qwen2(attention_dropout=0.5).train()
    kl = head_importance(model, BATCHES, VOCABULARY)
    assert model.training and torch.equal(kl, head_importance(model.eval(), BATCHES, VOCABULARY))
    inputs = {key: BATCHES[0][key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, qwen2(attention_dropout=0.5)(**inputs).logits)


@every_model
def test_a_head_scaled_to_zero_gives_the_running_mean_of_its_visible_values(make):
    model, b = make(), batch(3, seed=4)
    window = window_of(model.config, 1)
    assert (window == WINDOW) == (make in SLIDING.values())
    values, outputs = [], []
    attention = model.model.layers[1].self_attn
    attention.v_proj.register_forward_hook(lambda module, inputs, output: values.append(output))
    attention.o_proj.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0]))
    with torch.no_grad(), suppressed(model, 1, [2, 4], 0.0):
        model(input_ids=b["input_ids"], attention_mask=b["attention_mask"])
    for head, kv in ((2, 0), (4, 1)):
        for row, length in enumerate(b["attention_mask"].sum(1)):
            for t in range(length):
                start = 0 if window is None else max(0, t + 1 - window)
                expected = values[0][row, start : t + 1, kv * 8 : kv * 8 + 8].mean(0)
                torch.testing.assert_close(outputs[0][row, t, head * 8 : head * 8 + 8], expected, rtol=1e-6, atol=1e-6)


def test_suppression_acts_behind_a_query_norm():
    """softmax(eps z) is softmax(z)^eps, renormalised; a scale before the norm would have no effect at all."""
    model = qwen3(attn_implementation="eager")
    ids = torch.randint(1, 97, (1, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(input_ids=ids, output_attentions=True).attentions[0][0]
        with suppressed(model, 0, [3], 0.1):
            scaled = model(input_ids=ids, output_attentions=True).attentions[0][0]
    expected = torch.where(plain[3] > 0, plain[3] ** 0.1, 0)
    torch.testing.assert_close(scaled[3], expected / expected.sum(-1, keepdim=True), rtol=1e-5, atol=1e-6)
    others = [0, 1, 2, 4, 5]
    assert torch.equal(scaled[others], plain[others])


def test_bypassed_blocks_nest_and_are_undone():
    model, b = qwen2(), batch(2)
    blocks = model.model.layers
    with bypassed(model, [0]):
        with bypassed(model, [0, 2]), torch.no_grad():
            x = torch.randn(1, 3, 48)
            assert blocks[0](x, attention_mask=None) is x and blocks[2](x) is x
        assert blocks[0](x) is x and "forward" not in vars(blocks[2])
    assert "forward" not in vars(blocks[0])
    with torch.no_grad():
        assert torch.equal(model(b["input_ids"]).logits, qwen2()(b["input_ids"]).logits)


def test_recursion_by_hand():
    kl = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, 1.0, 4.0]], dtype=torch.float64)
    own = [[0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.0, 0.25, 1.0]]
    second = [0.7 * a + 0.3 * b for a, b in zip(own[0], own[1], strict=True)]
    third = [0.7 * a + 0.3 * b for a, b in zip(second, own[2], strict=True)]
    torch.testing.assert_close(normalise_and_recurse(kl, 0.7), torch.tensor([own[0], second, third], dtype=torch.float64), rtol=1e-15, atol=1e-15)
    assert normalise_and_recurse(kl, 0.0).tolist() == own
    assert normalise_and_recurse(kl, 1.0).tolist() == [own[0]] * 3
