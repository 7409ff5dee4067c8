import numpy as np
import pytest

from recbole_prunerec.data.samples import Part, choose_rows, training_popularity, training_sequences
from recbole_prunerec.errors import UserError


def part(rows: list[tuple[int, list[int], int]]) -> Part:
    histories = np.zeros((len(rows), 4), dtype=int)
    for row, (_, history, _) in enumerate(rows):
        histories[row, : len(history)] = history
    return Part(np.array([r[0] for r in rows]), histories, np.array([len(r[1]) for r in rows]), np.array([r[2] for r in rows]))


# two users whose samples interleave in time; histories are capped at 4
TRAIN = part([(1, [5], 6), (2, [7], 5), (1, [5, 6], 8), (1, [5, 6, 8], 9), (2, [7, 5], 7), (1, [5, 6, 8, 9], 3), (1, [6, 8, 9, 3], 5)])


def test_training_sequences_are_first_history_then_targets():
    assert [sequence.tolist() for sequence in training_sequences(TRAIN)] == [[5, 6, 8, 9, 3, 5], [7, 5, 7]]


def test_repeated_targets_are_those_in_their_own_history():
    assert TRAIN.repeated == 1 and part([(1, [5], 6)]).repeated == 0 and part([(1, [5, 6], 5), (2, [3], 3)]).repeated == 2


def test_sequences_that_do_not_follow_are_refused():
    with pytest.raises(UserError, match="packing=false"):
        training_sequences(part([(1, [5], 6), (1, [5, 9], 8)]))


def test_popularity_counts_every_training_interaction_once():
    counts = training_popularity(TRAIN, 11)
    expected = np.bincount(np.concatenate(training_sequences(TRAIN)), minlength=11)
    assert counts.tolist() == expected.tolist()


def test_fewer_rows_are_among_more_rows():
    few, many = choose_rows(100, 10, 3), choose_rows(100, 40, 3)
    assert len(few) == 10 and set(few) <= set(many) and (np.diff(many) > 0).all()
    assert choose_rows(100, None, 3).tolist() == choose_rows(100, 200, 3).tolist() == list(range(100))
    assert choose_rows(100, 10, 4).tolist() != few.tolist()
