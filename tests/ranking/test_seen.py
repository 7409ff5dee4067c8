"""The items of histories leave rankings: orders and scores against sorting by hand, for every kind of ranker."""

import numpy as np
import pytest
import torch

from recbole_prunerec.ranking.seen import seen_last, without_seen
from recbole_prunerec.settings import Settings

RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize("histories", [[[3], [1, 2, 9], [], [9, 9, 4]], [[], [], [], []], [list(range(1, 10))] * 4])
def test_seen_items_come_last_by_id_and_the_others_stay_in_their_order(histories):
    order = np.stack([RANDOM.permutation(9) + 1 for _ in histories]).astype(np.int32)
    expected = [[item for item in row if item not in history] + sorted(set(history)) for row, history in zip(order.tolist(), histories, strict=True)]
    assert seen_last(order, histories).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_of_seen_items_are_the_lowest_and_padding_stays_below_them(dtype):
    scores = torch.randn(3, 6).to(dtype)
    scores[:, 0] = -torch.inf
    given = scores.clone()
    found = without_seen(scores, torch.tensor([[2, 5, 0], [1, 0, 0], [0, 0, 0]]))
    assert torch.equal(scores, given)  # not in place
    for row, seen in enumerate([{2, 5}, {1}, set()]):
        assert found[row, 0] == -torch.inf
        for item in range(1, 6):
            assert found[row, item] == (torch.finfo(dtype).min if item in seen else given[row, item])


@pytest.mark.parametrize(("key", "value"), [("exclude_seen", True), ("ranked", "valid")])
def test_runs_from_before_there_was_a_choice_are_found_again(key, value):
    assert key not in Settings().identity() and Settings(**{key: value}).identity() == {**Settings().identity(), key: value}
