"""Structured SparseGPT against numpy's least squares, on matrices of a few columns and on the inputs of single samples."""

import numpy as np
import pytest
import torch
from entering import entering, matrices
from tiny import batch, every_model, llama, qwen2

from recbole_prunerec.importance.sparsegpt import block_errors, damped, least_squares, mlp_scores, width_scores

BATCHES = [batch(3, prompt=(5, 16), seed=1), batch(2, seed=2)]


def fitted(weight, tokens, kept):
    """The matrix that is zero outside the columns `kept` and least in ||X W^T - X W'^T||^2 + damping * ||W - W'||^2, and that least value."""
    damping = np.sqrt(0.01 * np.mean((tokens**2).sum(0)))
    system = np.concatenate([tokens, damping * np.eye(tokens.shape[1])])
    new = np.zeros_like(weight)
    new[:, kept] = np.linalg.lstsq(system[:, kept], system @ weight.T)[0].T
    return new, ((system @ (weight - new).T) ** 2).sum()


def blocks(kept, size):
    return [column for block in kept for column in range(block * size, block * size + size)]


@pytest.mark.parametrize("size", [1, 3])
def test_errors_and_update_are_those_of_least_squares(size):
    generator = np.random.default_rng(size)
    weight, tokens = generator.normal(size=(5, 12)), generator.normal(size=(20, 12)) @ generator.normal(size=(12, 12))
    hessian = damped(torch.from_numpy(tokens.T @ tokens))
    errors = block_errors(torch.from_numpy(weight), hessian, size)
    for block in range(12 // size):
        kept = blocks([other for other in range(12 // size) if other != block], size)
        new, error = fitted(weight, tokens, kept)
        assert errors[block].item() == pytest.approx(error, rel=1e-9)
        np.testing.assert_allclose(least_squares(torch.from_numpy(weight), hessian, torch.tensor(kept)), new, atol=1e-10)


def test_the_update_is_the_formula_of_the_inverse():
    generator = np.random.default_rng(0)
    weight, tokens = generator.normal(size=(4, 9)), generator.normal(size=(30, 9))
    hessian, gone, kept = damped(torch.from_numpy(tokens.T @ tokens)), [1, 4, 5], [0, 2, 3, 6, 7, 8]
    inverse = np.linalg.inv(hessian.numpy())
    wanted = weight[:, kept] - weight[:, gone] @ np.linalg.inv(inverse[np.ix_(gone, gone)]) @ inverse[np.ix_(gone, kept)]
    new = least_squares(torch.from_numpy(weight), hessian, torch.tensor(kept))
    np.testing.assert_allclose(new[:, kept], wanted, atol=1e-12)
    assert (new[:, gone] == 0).all()


@pytest.mark.parametrize(
    ("score", "part", "size", "kept"),
    [
        (width_scores, "self_attn.o_proj", 8, [[0, 1, 2], [3, 4, 5], [5, 0, 2]]),
        (mlp_scores, "mlp.down_proj", 1, [list(range(20)), list(range(30, 50)), list(range(0, 40, 2))]),
    ],
)
@every_model
def test_scores_and_update_of_a_model(make, score, part, size, kept):
    """Few tokens enter many columns, so that the damping decides."""
    model = make()
    scores = score(model, BATCHES)
    found = scores.heads if size > 1 else scores.mlp
    update = scores.update(kept)
    assert set(update) == {f"model.layers.{layer}.{part}.weight" for layer in range(3)}
    for layer, (weight, inputs) in enumerate(zip(matrices(model, part), entering(model, BATCHES, part), strict=True)):
        tokens = np.concatenate(inputs)
        for block in (0, 3, 5):
            others = blocks([other for other in range(weight.shape[1] // size) if other != block], size)
            assert found[layer, block].item() == pytest.approx(fitted(weight, tokens, others)[1], rel=1e-5)
        new, _ = fitted(weight, tokens, sorted(blocks(kept[layer], size)))
        np.testing.assert_allclose(update[f"model.layers.{layer}.{part}.weight"], new, atol=1e-5)
        assert abs(new - weight)[:, blocks(kept[layer], size)].max() > 0.01


def test_what_enters_nothing_is_no_trouble():
    model = llama()
    model.model.layers[1].self_attn.v_proj.weight.data.zero_()
    scores = width_scores(model, BATCHES)
    assert scores.heads.isfinite().all() and scores.hidden is None
    before = model.model.layers[1].self_attn.o_proj.weight.detach().clone()
    before[:, 24:] = 0
    torch.testing.assert_close(scores.update([[0, 1, 2]] * 3)["model.layers.1.self_attn.o_proj.weight"], before)


def test_the_update_has_the_models_precision():
    update = mlp_scores(qwen2(dtype=torch.float32), BATCHES).update([[0, 1]] * 3)
    assert {weight.dtype for weight in update.values()} == {torch.float32}
