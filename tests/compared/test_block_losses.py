"""SLMRec's formulas in float64, against loops."""

import math
from fractions import Fraction

import pytest
import torch

from recbole_prunerec.compared.block_losses import block_ends, cosine_loss, norm_loss, supervision_loss

DRAW = torch.Generator().manual_seed(1)
BLOCKS, ROWS, HIDDEN = 3, 5, 4
OWN, GUIDES = (torch.randn(BLOCKS, ROWS, HIDDEN, generator=DRAW, dtype=torch.float64) for _ in range(2))
PAIRS = [list(zip(own, guides, strict=True)) for own, guides in zip(OWN.tolist(), GUIDES.tolist(), strict=True)]


def length(vector: list[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def test_the_cosine_loss_is_summed_over_blocks_and_a_mean_over_rows():
    cosines = [[sum(a * b for a, b in zip(*pair, strict=True)) / length(pair[0]) / length(pair[1]) for pair in block] for block in PAIRS]
    expected = sum(sum(1 - cosine for cosine in block) / ROWS for block in cosines)
    assert cosine_loss(OWN, GUIDES).item() == pytest.approx(expected, rel=1e-12)


def test_the_norm_loss_is_summed_over_blocks_and_a_mean_over_rows():
    expected = sum(sum(length([a - b for a, b in zip(*pair, strict=True)]) for pair in block) / ROWS for block in PAIRS)
    assert norm_loss(OWN, GUIDES).item() == pytest.approx(expected, rel=1e-12)


def test_the_supervision_loss_is_summed_over_blocks_and_a_mean_over_rows():
    targets = torch.tensor([0, 3, 1, 1, 2])
    rows = [list(zip(block, targets.tolist(), strict=True)) for block in OWN.tolist()]
    expected = sum(sum(math.log(sum(map(math.exp, row))) - row[target] for row, target in block) / ROWS for block in rows)
    assert supervision_loss(OWN, targets).item() == pytest.approx(expected, rel=1e-12)
    assert supervision_loss([], targets) == 0


def test_equal_states_cost_nothing_and_have_a_gradient():
    own = OWN.clone().requires_grad_()
    loss = cosine_loss(own, OWN) + norm_loss(own, OWN)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12) and torch.isfinite(own.grad).all()


@pytest.mark.parametrize("layers", range(1, 33))
@pytest.mark.parametrize("blocks", range(1, 5))
def test_blocks_end_nearest_to_equal_parts(layers, blocks):
    if layers < blocks:
        return
    exact = [Fraction(layers * block, blocks) for block in range(1, blocks + 1)]
    expected = [min(range(1, layers + 1), key=lambda layer, end=end: (abs(layer - end), layer)) for end in exact]
    found = block_ends(layers, blocks)
    assert found == expected and found[-1] == layers and len(set(found)) == blocks
