"""The comparison's numbers, against values worked out by hand or by another way."""

import math
from itertools import product

import numpy as np
import pytest
from made_runs import TOPK, made_run

from recbole_prunerec.errors import UserError
from recbole_prunerec.report.ranks import resampled_means
from recbole_prunerec.report.significance import holm, two_sided
from recbole_prunerec.study.gathered import Spread, gather, read_run
from recbole_prunerec.study.runs import Run
from recbole_prunerec.study.systems import SYSTEMS


def line_of(study, name):
    return next(line for line in study.lines if line.system == name)


@pytest.fixture
def study(tmp_path):
    runs = []
    for seed, ours, theirs in ((1, [1, 1, 1, 1, 1, 3], [1, 3, 3, 3, 3, 3]), (2, [1, 1, 1, 3, 3, 3], [1, 1, 3, 3, 3, 3])):
        runs.append(made_run(tmp_path, "Popularity", seed, theirs, shown="Pop", flops_per_user=None))
        runs.append(made_run(tmp_path, "BIGRec", seed, [1] * 6, name="1-finetune", shown="BIGRec (teacher)", step=1, step_name="finetune"))
        runs.append(made_run(tmp_path, "PruneRec", seed, ours, name="4-depth", step=4, step_name="depth", seconds_per_user=seed / 1000))
        runs.append(Run(system="Caser", seed=seed, command="python run_recbole.py", failure="out of memory"))
    return gather(runs, SYSTEMS, "python baselines/compare.py")


def test_means_and_deviations_over_seeds(study):
    ours = line_of(study, "PruneRec")
    assert ours.metrics["hit@1"].mean == pytest.approx((5 / 6 + 3 / 6) / 2)
    assert ours.metrics["hit@1"].deviation == pytest.approx(abs(5 / 6 - 3 / 6) / math.sqrt(2))  # sample deviation of two values
    assert (ours.seconds_per_user.mean, ours.seconds_per_user.deviation) == pytest.approx((0.0015, 0.001 / math.sqrt(2)))
    assert Spread.of([0.5]) == Spread(mean=0.5, deviation=None)


def test_lines_are_in_the_tables_order_and_retention_is_of_the_teacher(study):
    assert [line.system for line in study.lines] == ["Popularity", "Caser", "BIGRec", "PruneRec"]
    assert line_of(study, "BIGRec").retention.mean == 1
    assert line_of(study, "PruneRec").retention.mean == pytest.approx((5 / 6 + 3 / 6) / 2)  # every metric is the same share here


def test_retention_has_an_interval_over_the_rows_of_all_seeds(study):
    """The teacher hits at rank 1 everywhere, so that a resample's retention is its share of hits; a user's four rows have 4, 3 and 1 of them."""
    every = [sum(drawn) / 12 for drawn in product((4, 3, 1), repeat=3)]
    assert line_of(study, "PruneRec").retention_interval == pytest.approx((min(every), max(every)))
    assert line_of(study, "BIGRec").retention_interval is None and line_of(study, "Caser").retention_interval is None


def test_steps_are_the_first_seeds_teacher_and_reference(study):
    assert [(row.system, row.step, row.step_name) for row in study.steps] == [("BIGRec (teacher)", 1, "finetune"), ("PruneRec", 4, "depth")]
    assert study.steps[1].metrics["hit@1"] == pytest.approx(5 / 6)


def test_a_system_that_failed_is_a_line_that_says_why(study):
    line = line_of(study, "Caser")
    assert (line.seeds, line.metrics, line.retention, line.parameters, line.seconds_per_user) == ((), {}, None, None, None)
    assert line.note == "failed: out of memory"
    assert all(each.against != "Caser" for each in study.differences)


def test_what_a_row_cannot_tell_is_none(study):
    assert line_of(study, "Popularity").flops_per_user is None
    assert line_of(study, "PruneRec").flops_per_user == 5e6


def test_differences_are_paired_over_all_seeds_with_users_drawn_whole(study):
    """Of 27 ways to draw three users, 8 give the least mean and one gives the most: either is more than 2.5 %, and so an end of the interval."""
    found = next(each for each in study.differences if each.against == "Popularity" and each.metric == "hit@1")
    by_user = {"a": [0, 1, 0, 0], "b": [1, 1, 1, 0], "c": [1, 0, 0, 0]}  # ours minus theirs, seed 1 and seed 2
    assert found.difference == pytest.approx(sum(sum(values) for values in by_user.values()) / 12)
    every = [sum(sum(by_user[user]) for user in drawn) / 12 for drawn in product("abc", repeat=3)]
    assert (every.count(1 / 4), every.count(3 / 4), min(every), max(every)) == (8, 1, 1 / 4, 3 / 4)
    assert (found.users, found.rows, found.low, found.high) == (3, 12, pytest.approx(1 / 4), pytest.approx(3 / 4))
    assert found.p == pytest.approx(2 / 10_001)  # every draw is above 0


def test_holm_is_over_the_systems_of_a_metric(study):
    for metric in ("hit@1", "ndcg@2"):
        family = {each.against: each for each in study.differences if each.metric == metric}
        assert set(family) == {"Popularity", "BIGRec"}
        smaller, larger = sorted(each.p for each in family.values())
        assert sorted(each.adjusted for each in family.values()) == pytest.approx([2 * smaller, max(2 * smaller, larger)])


def test_only_what_all_runs_share_is_the_protocol(study):
    assert study.protocol == {"topk": list(TOPK), "valid_metric": "NDCG@2", "split": "global_time"}


def test_one_seed_that_failed_leaves_the_others(tmp_path):
    runs = [made_run(tmp_path, "SASRec", 1, [1] * 6), Run(system="SASRec", seed=2, command="x", failure="killed by SIGKILL")]
    (line,) = gather(runs, SYSTEMS, "x").lines
    assert (line.seeds, line.note) == ((1,), "seed 2 failed: killed by SIGKILL")
    assert line.metrics["hit@1"] == Spread(mean=1.0)
    assert line.retention is None  # there is no teacher


def test_notes_of_steps_and_of_what_a_criterion_left_out_come_together(tmp_path):
    run = made_run(tmp_path, "wanda", 1, [1] * 6, name="2-mlp", step=2, step_name="mlp", note="b; a")
    assert read_run(run.model_copy(update={"note": "depth by prunerec"}), SYSTEMS["wanda"]).note == "depth by prunerec; b; a"


def test_a_row_inside_another_systems_table_is_found(tmp_path):
    run = made_run(tmp_path, "E4SRec", 1, [1] * 6)
    assert read_run(run, SYSTEMS["E4SRec"]).row.system == "E4SRec"


def test_damaged_results_are_named(tmp_path):
    run = made_run(tmp_path, "SASRec", 1, [1] * 6)
    (tmp_path / "SASRec-1" / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        gather([run], SYSTEMS, "x")


def test_holm_by_hand():
    """Holm (1979): 0.01 * 4, 0.02 * 3, max(.06, 0.03 * 2), max(.06, 0.04)."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_two_sided_counts_the_smaller_tail_twice():
    resampled = np.concatenate([np.full(5, -1.0), np.full(94, 1.0)])
    assert two_sided(resampled) == pytest.approx(2 * 6 / 100)
    assert two_sided(-resampled) == pytest.approx(2 * 6 / 100)
    assert two_sided(np.zeros(9)) == 1.0


def test_resampled_means_divide_by_the_rows_of_the_drawn_users():
    """Users of 1 and 3 rows: the four ways to draw two of them have these means."""
    found = resampled_means(np.array([[4.0, 1.0, 1.0, 1.0]]), np.array(["a", "b", "b", "b"]), 4000, 0)[:, 0]
    values, counts = np.unique(found.round(6), return_counts=True)
    np.testing.assert_allclose(values, [1.0, 7 / 4, 4.0])
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)
