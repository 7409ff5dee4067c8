"""Hidden-dimension importance and norm scales against loops over single, unpadded samples."""

import numpy as np
import pytest
import torch
from naive_importance import BATCHES as TITLE_BATCHES
from naive_importance import SOFTMAXES, VOCABULARY, losses
from tiny import batch, every_model, qwen2

from recbole_prunerec.importance.hidden import hidden_importance, norm_scales

BATCHES = [batch(3, prompt=(5, 16), seed=1), batch(2, seed=2)]  # the first is padded by more than a window


def samples():
    for b in BATCHES:
        for ids, mask, labels in zip(b["input_ids"], b["attention_mask"], b["labels"], strict=True):
            yield ids[: mask.sum()][None], labels[: mask.sum()]


def reference(model, score):
    rows = []
    for ids, labels in samples():
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        log_p = torch.log_softmax(model(inputs_embeds=embedded).logits[0], -1)
        losses = [-log_p[t - 1, labels[t]] for t in range(len(labels)) if labels[t] != -100]
        gradient = torch.autograd.grad(sum(losses) / len(losses), embedded)[0]
        for e, g in zip(embedded[0].detach(), gradient[0], strict=True):
            rows.append([abs(float(x * y)) if score == "product" else abs(float(y)) for x, y in zip(e, g, strict=True)])
    return np.mean(rows, 0)


@pytest.mark.parametrize("score", ["product", "gradient"])
@every_model
def test_importance_equals_a_loop_over_samples_and_positions(make, score):
    model = make()
    np.testing.assert_allclose(hidden_importance(model, BATCHES, VOCABULARY, score).numpy(), reference(model, score), rtol=1e-5)


@pytest.mark.parametrize(("softmax", "trie"), SOFTMAXES.values(), ids=SOFTMAXES)
@every_model
def test_importance_equals_plain_gradients_under_either_softmax(make, softmax, trie):
    model, entered, values = make(), [], []

    def detach(module, inputs, output):
        entered.append(output.detach().requires_grad_())
        return entered[-1]

    handle = model.get_input_embeddings().register_forward_hook(detach)
    for b in TITLE_BATCHES:
        loss = sum(row.sum() / count for row, count in zip(losses(model, b, trie), (b["labels"] != -100).sum(1), strict=True))
        gradient = torch.autograd.grad(loss, entered[-1])[0]
        values.append((entered[-1] * gradient).abs()[b["attention_mask"].bool()])
    handle.remove()
    torch.testing.assert_close(hidden_importance(model, TITLE_BATCHES, softmax), torch.cat(values).mean(0).detach(), atol=1e-12, rtol=1e-10)


def test_embedding_score_is_the_mean_magnitude_over_the_vocabulary():
    model = qwen2()
    expected = [np.mean([abs(row[k]) for row in model.model.embed_tokens.weight.tolist()]) for k in range(48)]
    np.testing.assert_allclose(hidden_importance(model, BATCHES, VOCABULARY, "embedding").numpy(), expected, rtol=1e-12)


def test_batching_does_not_change_the_scores():
    model = qwen2()
    single = [{key: value[row : row + 1] for key, value in b.items()} for b in BATCHES for row in range(len(b["input_ids"]))]
    torch.testing.assert_close(hidden_importance(model, single, VOCABULARY), hidden_importance(model, BATCHES, VOCABULARY), rtol=1e-5, atol=0)


@torch.no_grad()
def test_gradients_and_mode_stay_as_they_were_even_without_gradients_outside():
    model = qwen2().train()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    hidden_importance(model, BATCHES, VOCABULARY)
    assert model.training and all((parameter.grad == 3.0).all() for parameter in model.parameters())


@every_model
def test_norm_scales_equal_a_loop_over_tokens(make):
    model, keep = make(), [1, 5, 6, 30, 47]
    names = [f"model.layers.{i}.{n}" for i in range(3) for n in ("input_layernorm", "post_attention_layernorm")] + ["model.norm"]
    streams = {name: [] for name in names}
    handles = [model.get_submodule(n).register_forward_pre_hook(lambda m, inputs, n=n: streams[n].extend(inputs[0][0].tolist())) for n in names]
    with torch.no_grad():
        for ids, _ in samples():
            model(input_ids=ids)
    for handle in handles:
        handle.remove()
    found = norm_scales(model, BATCHES, keep)
    assert list(found) == names
    for name, tokens in streams.items():
        ratios = [np.sqrt(np.mean([t[k] ** 2 for k in keep])) / np.sqrt(np.mean(np.square(t))) for t in tokens]
        assert found[name] == pytest.approx(np.mean(ratios), rel=1e-6)


def test_keeping_everything_scales_by_exactly_one():
    assert set(norm_scales(qwen2(), BATCHES, range(48)).values()) == {1.0}
