"""Each distance against a loop over single probabilities in float64, written from METHOD 5."""

import math

import pytest
import torch

from recbole_prunerec.restore.losses import LOSSES, restoration_loss


def softmax(logits, temperature):
    top = max(logits)
    e = [math.exp((x - top) / temperature) for x in logits]
    return [x / sum(e) for x in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mix(p, q, weight):
    return [weight * a + (1 - weight) * b for a, b in zip(p, q, strict=True)]


REFERENCES = {
    "forward_kl": lambda t, s: kl(t, s),
    "reverse_kl": lambda t, s: kl(s, t),
    "symmetric_kl": lambda t, s: 0.5 * kl(t, s) + 0.5 * kl(s, t),
    "skewed_forward_kl": lambda t, s: kl(t, mix(t, s, 0.1)),
    "skewed_reverse_kl": lambda t, s: kl(s, mix(s, t, 0.1)),
    "js": lambda t, s: 0.5 * kl(t, mix(t, s, 0.5)) + 0.5 * kl(s, mix(t, s, 0.5)),
    "total_variation": lambda t, s: 0.5 * sum(abs(a - b) for a, b in zip(t, s, strict=True)),
}


def random_logits(dtype=torch.float64, n=5, vocab=11):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(n, vocab, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return student, teacher


def test_there_is_a_reference_for_every_loss():
    assert LOSSES.keys() == REFERENCES.keys()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", LOSSES)
def test_values_equal_a_loop(name, dtype, tolerance, temperature):
    student, teacher = random_logits(dtype)
    factor = temperature if name == "total_variation" else temperature**2
    expected = [
        factor * REFERENCES[name](softmax(t, temperature), softmax(s, temperature)) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert LOSSES[name](student, teacher, temperature).tolist() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name, temperature):
    student, teacher = random_logits(n=2, vocab=5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher, temperature), student)


@pytest.mark.parametrize("name", LOSSES)
def test_the_factor_keeps_the_size_of_gradients(name):
    """For small logits the gradient is a constant at high temperatures, whatever they are."""
    student, teacher = random_logits()

    def gradient(temperature):
        s = student.clone().requires_grad_()
        return torch.autograd.grad(LOSSES[name](s, teacher, temperature).sum(), s)[0].norm().item()

    assert gradient(2000.0) == pytest.approx(gradient(1000.0), rel=1e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_give_finite_values_and_gradients(name):
    student = torch.tensor([[1e4, -1e4, 0.0], [-3e4, 3e4, 1.0], [0.0, 0.0, 0.0], [500.0, 0.0, -500.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-3e4, 3e4, 1.0], [1e4, 0.0, -1e4], [500.0, 0.0, -500.0]])
    values = LOSSES[name](student, teacher, 1.0)
    gradient = torch.autograd.grad(values.sum(), student)[0]
    assert torch.isfinite(values).all() and torch.isfinite(gradient).all()
    assert max(values[1], values[3]) < 1e-7 and values[0] > 0.5 and values[2] > 0
    bounds = {"js": math.log(2), "total_variation": 1.0, "skewed_forward_kl": math.log(10), "skewed_reverse_kl": math.log(10)}
    assert values[0].item() == pytest.approx(bounds.get(name, 2e4), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_excluded_tokens_count_for_nothing(name):
    student, teacher = random_logits()
    wide = [torch.cat([x[:, :4], torch.full((5, 3), -math.inf, dtype=torch.float64), x[:, 4:]], 1) for x in (student, teacher)]
    student.requires_grad_()
    wide[0].requires_grad_()
    values, expected = LOSSES[name](*wide, 2.0), LOSSES[name](student, teacher, 2.0)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
    found, gradient = torch.autograd.grad(values.sum(), wide[0])[0], torch.autograd.grad(expected.sum(), student)[0]
    torch.testing.assert_close(torch.cat([found[:, :4], found[:, 7:]], 1), gradient, rtol=1e-10, atol=1e-12)
    assert (found[:, 4:7] == 0).all()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_restoration_loss_is_the_weighted_sum_over_the_global_count(weight):
    student, teacher = random_logits()
    targets = torch.tensor([3, 0, 10, 3, 7])
    kd = sum(4 * kl(softmax(t, 2.0), softmax(s, 2.0)) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)) / 8
    ce = -sum(math.log(softmax(s, 1.0)[target]) for s, target in zip(student.tolist(), targets.tolist(), strict=True)) / 8
    found = restoration_loss(student, teacher, targets, weight, "forward_kl", 2.0, 8)
    assert [value.item() for value in found] == pytest.approx([weight * kd + (1 - weight) * ce, kd, ce], rel=1e-12)
    assert restoration_loss(student, teacher, targets, weight, "forward_kl", 2.0, torch.tensor(8))[0] == found[0]
