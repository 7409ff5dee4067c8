"""What a comparison is told to take: what several runs share counts once, and what is there already not at all."""

import pytest
from small_data import write_small

from recbole_prunerec.shared_rows import shared_file
from recbole_prunerec.study.ahead import START, Ahead
from recbole_prunerec.study.command import expected_seconds, judged

SMALL = ["--dataset=small", "--topk=2,5", "--ranking.beams=12", "--seeds=1", "--preset=tiny"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recbole_prunerec.study.ahead.measured_rate", lambda *_: 1e9)
    write_small(tmp_path / "dataset")


def question(systems: str):
    return judged([*SMALL, f"--systems={systems}"])


def test_what_several_need_is_reckoned_once(place):
    systems = ["SASRec", "E4SRec", "SLMRec", "SLMRec-prunerec"]
    seconds = dict(zip(systems, expected_seconds(question(",".join(systems))), strict=True))
    (alone,) = expected_seconds(question("SLMRec-prunerec"))
    assert seconds["SLMRec"] == 0  # a row of E4SRec's run
    assert START < seconds["SLMRec-prunerec"] < seconds["E4SRec"]  # SASRec is the first's, E4SRec the second's
    assert alone > seconds["E4SRec"]  # and here it trains all three


def test_what_is_there_takes_no_time(place):
    asked = question("GRU4Rec")
    (job,) = asked.jobs.values()
    before = Ahead([job]).seconds(job, False)
    file = shared_file(job.path.parent / "cache", job.settings, "GRU4Rec")
    file.parent.mkdir(parents=True)
    file.touch()
    assert Ahead([job]).seconds(job, False) == START < before
