"""The verdicts on what was aimed at, from rows and ranks made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from recbole_prunerec.report.ranks import Ranks
from recbole_prunerec.report.results import Parameters
from recbole_prunerec.study.aims import aims_of

USERS = 40


def run(ranks, seconds=1.0, **shares):
    """A finished run over one row a user."""
    ranks = np.array(ranks)
    rows = np.arange(len(ranks))
    kept = Ranks(rows, rows.astype(str), rows.astype(str), ranks)
    row = SimpleNamespace(seconds_per_user=seconds, parameters=Parameters(non_embedding=1, total=1, **shares))
    return SimpleNamespace(row=row, ranks=kept)


def hits(share, **more):
    """The first so many of USERS hit."""
    count = round(share * USERS)
    return run([1] * count + [99] * (USERS - count), **more)


def verdicts(**systems):
    found = aims_of({name: {7: each} for name, each in systems.items()}, [10], "hit@10")
    return {aim.name: (aim.measured, aim.verdict) for aim in found}


def test_a_system_is_above_another_where_the_interval_says_so():
    found = verdicts(BIGRec=hits(0.9), SASRec=hits(0.2), GRU4Rec=hits(0.4), PruneRec=hits(0.1), scratch=hits(0.125))
    names = {name.partition(",")[0]: value for name, value in found.items()}
    measured, verdict = names["BIGRec is above GRU4Rec"]
    assert verdict == "holds" and measured.startswith("HR@10 +0.5000 (+0.")
    assert names["PruneRec is above GRU4Rec"][1] == "missed" and names["PruneRec is above GRU4Rec"][0].startswith("HR@10 -0.3000 (-0.")
    assert names["PruneRec is above scratch"][1] == "not told apart"  # one user of forty
    assert not any("SASRec" in name for name in names)  # not the best over item ids


@pytest.mark.parametrize(("total", "rest", "expected"), [(0.05, 0.0501, ["holds", "missed"]), (0.2, 0.01, ["missed", "holds"])])
def test_size_is_of_both_counts(total, rest, expected):
    found = verdicts(BIGRec=hits(0.5), PruneRec=hits(0.5, share_total=total, share_non_embedding=rest))
    assert [verdict for name, (_, verdict) in found.items() if "at most" in name] == expected


@pytest.mark.parametrize(("ours", "expected"), [([1] * 40, ["holds", "holds"]), ([1] * 37 + [99] * 3, ["missed", "missed"])])
def test_quality_counts_by_the_lower_end_of_its_interval(ours, expected):
    """37 of 40 are 92.5 %, above the first aim, but other users might have said less."""
    found = verdicts(BIGRec=hits(1.0), PruneRec=run(ours))
    kept = [(measured, verdict) for name, (measured, verdict) in found.items() if "quality" in name]
    assert [verdict.partition(" ")[0] for _, verdict in kept] == expected
    if expected[0] == "missed":
        low = float(kept[0][0].partition(" %")[0])
        assert 80 < low < 88 and kept[0][1] == f"missed by {88 - low:.1f} points" and kept[1][1] == f"missed by {95 - low:.1f} points"


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, ("10.0 times", "holds")), (0.2, ("5.0 times", "missed"))])
def test_speed_is_the_teachers_time_over_ours(seconds, expected):
    found = verdicts(BIGRec=hits(0.5), PruneRec=hits(0.5, seconds=seconds))
    assert found["It ranks a user at least 10 times faster"] == expected


@pytest.mark.parametrize("wanted", ["mrr@10", "none", "ndcg@3"])
def test_a_metric_that_ranks_do_not_tell_gives_way_to_ndcg(wanted):
    (aim,) = aims_of({"D3": {7: hits(0.9)}, "Caser": {7: hits(0.2)}}, [10, 5], wanted)
    assert aim.measured.startswith("NDCG@10 +0.7000 (")  # a hit is at rank 1


def test_what_is_not_there_is_not_judged():
    assert verdicts(SASRec=hits(0.5)) == {} and verdicts(PruneRec=hits(0.5), D3=hits(0.5)) == {}
    assert len(verdicts(D3=hits(0.5), Caser=hits(0.5))) == 1
    apart = aims_of({"BIGRec": {1: hits(0.5)}, "PruneRec": {2: hits(0.5)}}, [10], "hit@10")
    assert apart == ()  # no seed that both have
