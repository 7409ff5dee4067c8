import itertools
import math
import random

import numpy as np
import pytest

from recbole_prunerec.errors import UserError
from recbole_prunerec.report.ranks import Ranks, align, compare, hit, means, ndcg, paired_interval, per_row, retention, retention_interval


def make(rows, ranks, users=None):
    users = [f"u{row % 3}" for row in rows] if users is None else users
    return Ranks(np.array(rows), np.array(users), np.array([f"i{row}" for row in rows]), np.array(ranks))


def recbole_ndcg(rank, k):
    """RecBole's formula, sum over positions of DCG over ideal DCG, for one relevant item."""
    gains = [1.0 if position == rank else 0.0 for position in range(1, k + 1)]
    dcg = sum(gain / math.log2(position + 1) for position, gain in enumerate(gains, start=1))
    return dcg / (1 / math.log2(2))


@pytest.mark.parametrize("k", [1, 10, 20])
def test_hit_and_ndcg_agree_with_recboles_formulas(k):
    ranks = np.arange(1, 30)
    np.testing.assert_array_equal(hit(ranks, k), [1.0 if rank <= k else 0.0 for rank in ranks])
    np.testing.assert_allclose(ndcg(ranks, k), [recbole_ndcg(rank, k) for rank in ranks], rtol=1e-15)


def test_means_by_hand():
    assert means(make([0, 1, 2, 3], [1, 3, 11, 500]), [10, 20]) == pytest.approx(
        {"hit@10": 0.5, "hit@20": 0.75, "ndcg@10": (1 + 0.5) / 4, "ndcg@20": (1 + 0.5 + 1 / math.log2(12)) / 4}
    )


def test_csv_round_trip_keeps_tokens_as_strings(tmp_path):
    ranks = Ranks(np.array([5, 3]), np.array(["007", "NA"]), np.array(['a, "b"', ""]), np.array([1, 12]))
    (tmp_path / "ranks.csv").write_text(ranks.to_csv())
    assert (tmp_path / "ranks.csv").read_text().splitlines() == ["row,user,target,rank", '5,007,"a, ""b""",1', "3,NA,,12"]
    back = Ranks.read(tmp_path / "ranks.csv")
    assert [back.rows.tolist(), back.users.tolist(), back.targets.tolist(), back.ranks.tolist()] == [[5, 3], ["007", "NA"], ['a, "b"', ""], [1, 12]]


@pytest.mark.parametrize(
    "text", ["", "row,user\n1,2\n", "row,user,target,rank\n1,u,i,x\n", "row,user,target,rank\n1,u,i,0\n", "row,user,target,rank\n1,u,i,\n"]
)
def test_damaged_csv_is_refused_by_name(tmp_path, text):
    (tmp_path / "ranks.csv").write_text(text)
    with pytest.raises(UserError, match=r"ranks\.csv is damaged"):
        Ranks.read(tmp_path / "ranks.csv")


def test_repeated_rows_and_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="twice"):
        make([1, 1], [1, 2])
    with pytest.raises(ValueError, match="length"):
        make([1, 2], [1])


def test_align_pairs_by_row_id():
    first, second = align(make([9, 2, 5], [90, 20, 50]), make([5, 7, 9], [55, 77, 99]))
    assert first.rows.tolist() == second.rows.tolist() == [5, 9]
    assert first.ranks.tolist() == [50, 90] and second.ranks.tolist() == [55, 99]


def test_align_refuses_no_common_row_and_other_samples():
    with pytest.raises(UserError, match="no test row in common"):
        align(make([1], [1]), make([2], [1]))
    with pytest.raises(UserError, match="not the same samples"):
        align(make([1, 2], [1, 1], ["a", "b"]), make([1, 2], [1, 1], ["a", "c"]))


def test_retention_by_plain_loops_on_common_rows():
    generator = random.Random(0)
    system = {row: generator.randint(1, 30) for row in range(0, 60)}
    teacher = {row: generator.randint(1, 25) for row in range(20, 90)}
    shares = []
    for k in (10, 20):
        for value in (lambda rank, k: float(rank <= k), recbole_ndcg):
            ours = theirs = 0.0
            for row in range(20, 60):
                ours += value(system[row], k)
                theirs += value(teacher[row], k)
            shares.append(ours / theirs)
    got = retention(make(list(system), list(system.values())), make(list(teacher), list(teacher.values())), [10, 20])
    assert got == pytest.approx(sum(shares) / 4, rel=1e-12)


def test_the_interval_of_retention_is_that_of_every_resample():
    """Three users of one pair have 27 resamples, by hand; their percentiles and those of many drawn ones differ little."""
    users = ["a", "a", "b", "b", "c", "c"]
    system = Ranks(np.arange(6), np.array(users), np.array(["i"] * 6), np.array([1, 9, 2, 30, 1, 4]))
    teacher = Ranks(np.arange(6), np.array(users), np.array(["i"] * 6), np.array([1, 3, 2, 5, 1, 12]))
    places = {user: [place for place, name in enumerate(users) if name == user] for user in "abc"}
    kept = []
    for drawn in itertools.product("abc", repeat=3):
        rows = [place for user in drawn for place in places[user]]
        ratios = []
        for metric in (lambda rank, k: float(rank <= k), lambda rank, k: (rank <= k) / math.log2(rank + 1)):
            for k in (5, 10):
                ratios.append(sum(metric(system.ranks[row], k) for row in rows) / sum(metric(teacher.ranks[row], k) for row in rows))
        kept.append(sum(ratios) / 4)
    low, high = retention_interval([(system, teacher)], [5, 10], resamples=4000)
    assert (low, high) == pytest.approx((min(kept), max(kept)))  # each end is 1 of 27, more than 2.5 %
    assert low < retention(system, teacher, [5, 10]) < high


def test_the_interval_of_retention_takes_the_rows_of_all_pairs_together():
    first = make([0, 1, 2, 3], [1, 2, 3, 4]), make([0, 1, 2, 3], [1, 1, 2, 9])
    once, twice = (retention_interval([first] * count, [10], resamples=500) for count in (1, 2))
    assert once == pytest.approx(twice)  # the same users, each with its rows once more
    assert retention_interval([(make([0, 1], [1, 1]), make([0, 1], [15, 30]))], [10]) is None


def test_retention_is_none_where_a_teachers_metric_is_zero():
    assert retention(make([0, 1], [1, 1]), make([0, 1], [15, 30]), [10, 20]) is None
    assert retention(make([0, 1], [1, 1]), make([0, 1], [15, 30]), [20]) is not None


def naive_interval(a, b, users, confidence, resamples, seed):
    """A cluster bootstrap by plain loops over lists of rows, with its own random numbers."""
    generator = random.Random(seed)
    rows_of = {}
    for row, user in enumerate(users):
        rows_of.setdefault(user, []).append(row)
    names, means_ = list(rows_of), []
    for _ in range(resamples):
        drawn = [row for _ in names for row in rows_of[generator.choice(names)]]
        means_.append(sum(a[row] - b[row] for row in drawn) / len(drawn))
    means_.sort()
    return means_[int(resamples * (1 - confidence) / 2)], means_[int(resamples * (1 + confidence) / 2) - 1]


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_interval_agrees_with_a_naive_cluster_bootstrap(confidence):
    generator = np.random.default_rng(1)
    users = np.repeat([f"u{index}" for index in range(30)], generator.integers(1, 12, 30))
    effect = dict(zip(np.unique(users), generator.normal(0.1, 0.4, 30), strict=True))  # rows of one user resemble each other
    a = generator.random(len(users)) + [effect[user] for user in users]
    b = generator.random(len(users))
    order = generator.permutation(len(users))  # a user's rows need not be neighbours
    difference, low, high = paired_interval(a[order], b[order], users[order], confidence, resamples=20000, seed=3)
    expected = naive_interval(a.tolist(), b.tolist(), users.tolist(), confidence, 4000, 5)
    assert difference == pytest.approx(sum(a - b) / len(users))
    width = expected[1] - expected[0]
    assert [low, high] == pytest.approx(expected, abs=0.06 * width)
    _, row_low, row_high = paired_interval(a, b, np.arange(len(users)), confidence)
    assert row_high - row_low < 0.75 * width, "the case must tell clusters from independent rows"


def test_interval_of_independent_rows_is_the_normal_one():
    generator = np.random.default_rng(2)
    a, b = generator.normal(0.2, 1, 2000), generator.normal(0, 1, 2000)
    error = np.std(a - b) / math.sqrt(2000)
    difference, low, high = paired_interval(a, b, np.arange(2000), resamples=5000)
    assert [low, high] == pytest.approx([difference - 1.96 * error, difference + 1.96 * error], abs=0.15 * error)


def test_interval_is_exact_where_nothing_varies():
    b = np.array([0.5, 0.25, 1.0, 0.0, 2.0])
    assert paired_interval(b + 0.25, b, np.array(list("aabbc"))) == (0.25, 0.25, 0.25)
    assert paired_interval(np.array([1.0, 0.0]), np.zeros(2), np.array(["a", "a"])) == (0.5, 0.5, 0.5)


def test_interval_depends_on_its_seed_alone():
    generator = np.random.default_rng(4)
    a, b, users = generator.random(50), generator.random(50), np.arange(50) // 3
    assert paired_interval(a, b, users, seed=1) == paired_interval(a, b, users, seed=1) != paired_interval(a, b, users, seed=2)


def test_compare_uses_common_rows_only():
    first, second = make([0, 1, 2, 3], [1, 1, 15, 99], list("aabb")), make([1, 2, 3, 4], [2, 1, 99, 1], list("abbb"))
    found = {each.metric: each for each in compare("A", first, "B", second, [10, 20], seed=7)}
    assert list(found) == ["hit@10", "hit@20", "ndcg@10", "ndcg@20"]
    for metric, each in found.items():
        a, b = (per_row(np.array(ranks), [10, 20])[metric] for ranks in ([1, 15, 99], [2, 1, 99]))
        assert (each.difference, each.low, each.high) == paired_interval(a, b, np.array(list("abb")), 0.95, seed=7)
        assert (each.system, each.against, each.users, each.rows) == ("A", "B", 2, 3)
    assert found["hit@10"].difference == pytest.approx(-1 / 3)
