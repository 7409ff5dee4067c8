"""DLLM2Rec's formulas in float64, against loops."""

import math

import numpy as np
import pytest
import torch

from recbole_prunerec.compared.list_losses import binary_cross_entropy, list_loss, list_weights, propensities, robust_loss

DRAW = torch.Generator().manual_seed(0)
ROWS, ITEMS, PLACES = 3, 7, 4
SCORES = torch.randn(ROWS, ITEMS, generator=DRAW, dtype=torch.float64)
LISTS = torch.stack([torch.randperm(ITEMS, generator=DRAW)[:PLACES] for _ in range(ROWS)])
SAID = -torch.rand(ROWS, PLACES, generator=DRAW, dtype=torch.float64).mul(60).sort(1).values
AGREED = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
COUNTS = torch.tensor([0, 5, 2, 9, 0, 1, 30], dtype=torch.float64)
NEGATIVES = torch.tensor([2, 0, 6])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def dro(scores: list[float], chosen: int, propensity: list[float]) -> float:
    others = sum(math.exp(p * s * s) for item, (p, s) in enumerate(zip(propensity, scores, strict=True)) if item != chosen)
    return math.log(others + math.exp(propensity[chosen] * (scores[chosen] - 1) ** 2))


def weights(said: list[float], agreed: list[int], position: float, confidence: float, consistency: float) -> list[float]:
    """By the paper's words, for a row whose places all hold an item."""
    distances = [(max(said) - value) / (max(said) - min(said)) if max(said) > min(said) else 0 for value in said]
    parts = [[math.exp(-place) for place in range(1, len(said) + 1)], [math.exp(-distance) for distance in distances]]
    shares = [[value / sum(part) for value in part] for part in parts]
    raw = [position * a + confidence * b + consistency * (c + 1e-8) for a, b, c in zip(*shares, agreed, strict=True)]
    return [value / sum(raw) for value in raw]


def test_binary_cross_entropy_is_that_of_sigmoids():
    found = binary_cross_entropy(SCORES[:, :1], SCORES[:, 1:2])
    expected = [[-math.log(sigmoid(row[0])) - math.log(1 - sigmoid(row[1]))] for row in SCORES.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_binary_cross_entropy_stays_finite_where_a_sigmoid_is_0_or_1():
    found = binary_cross_entropy(torch.tensor([-200.0, 200.0]), torch.tensor([200.0, -200.0]))
    assert found.tolist() == [400.0, 0.0]


def test_propensities_are_a_power_of_the_share():
    expected = [((count + 1) / (COUNTS.sum() + ITEMS)) ** 0.05 for count in COUNTS.tolist()]
    np.testing.assert_allclose(propensities(COUNTS), expected, rtol=1e-12)


def test_the_robust_loss_is_the_sum_without_the_item_and_its_own_term():
    propensity = propensities(COUNTS)
    expected = [[dro(scores, item, propensity.tolist()) for item in items] for scores, items in zip(SCORES.tolist(), LISTS.tolist(), strict=True)]
    np.testing.assert_allclose(robust_loss(SCORES, LISTS, propensity), expected, rtol=1e-12)


def test_the_robust_loss_is_exact_where_the_published_form_has_nothing_left():
    """exp(38^2 p) overflows, and in float32 what is left of the sum after the item is taken out again is 0."""
    scores = torch.tensor([[38.0, 1.0, -1.0]], requires_grad=True)
    found = robust_loss(scores, torch.tensor([[0]]), torch.ones(3))
    assert found.item() == pytest.approx(37.0**2)
    found.sum().backward()
    assert scores.grad.tolist() == [[74.0, 0.0, 0.0]]


@pytest.mark.parametrize("gammas", [(0.3, 0.5, 0.1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_weights_are_the_papers(gammas):
    expected = [weights(said, agreed, *gammas) for said, agreed in zip(SAID.tolist(), AGREED.tolist(), strict=True)]
    np.testing.assert_allclose(list_weights(SAID, AGREED, *gammas), expected, rtol=1e-9)


def test_weights_tell_items_apart_whatever_the_size_of_log_probabilities():
    """Of distances near 100, as of a large model's embeddings, exp leaves nothing: the published weights are equal then."""
    far = list_weights(SAID * 1000 - 500, AGREED, 0, 1, 0)
    np.testing.assert_allclose(far, list_weights(SAID, AGREED, 0, 1, 0), rtol=1e-9)
    assert (far[:, 0] > 2 * far[:, -1]).all()


def test_equal_confidences_weigh_the_same_and_ends_of_lists_nothing():
    said = torch.tensor([[-3.0, -3.0, -3.0, -torch.inf], [-1.0, -torch.inf, -torch.inf, -torch.inf]], dtype=torch.float64)
    agreed = torch.ones(2, 4)
    assert list_weights(said, agreed, 0, 1, 0).tolist() == [pytest.approx([1 / 3, 1 / 3, 1 / 3, 0]), [1, 0, 0, 0]]
    expected = weights([-3.0] * 3, [1] * 3, 0.3, 0.5, 0.1)
    np.testing.assert_allclose(list_weights(said, agreed, 0.3, 0.5, 0.1)[0], [*expected, 0], rtol=1e-9)


@pytest.mark.parametrize("robust", [0, 0.5])
def test_the_list_loss_is_the_weighed_sum_of_the_targets_loss(robust):
    propensity, weighed = propensities(COUNTS), list_weights(SAID, AGREED, 0.3, 0.5, 0.1)
    expected = [
        sum(
            weight * (-math.log(sigmoid(scores[item])) - math.log(1 - sigmoid(scores[negative])) + robust * dro(scores, item, propensity.tolist()))
            for weight, item in zip(own, items, strict=True)
        )
        for scores, items, negative, own in zip(SCORES.tolist(), LISTS.tolist(), NEGATIVES.tolist(), weighed.tolist(), strict=True)
    ]
    np.testing.assert_allclose(list_loss(SCORES, LISTS, NEGATIVES, weighed, propensity, robust), expected, rtol=1e-12)


def test_the_list_loss_has_the_gradient_of_differences():
    propensity, weighed = propensities(COUNTS), list_weights(SAID, AGREED, 0.3, 0.5, 0.1)
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: list_loss(value, LISTS, NEGATIVES, weighed, propensity, 1.0), scores)
