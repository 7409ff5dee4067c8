"""The benchmark of Amazon's reviews: that both sides give the same, that a difference would be seen, and what is made of the times."""

import gzip
import json
import re

import amazon
import pytest
import reporting
from amazon import RULES, Run, _same, write_files

from recbole_prunerec.amazon.store import raw_dataset


def content(path):
    return gzip.decompress(path.read_bytes())


def test_generated_files_are_a_category(tmp_path):
    reviews, metadata = (list(map(json.loads, content(path).splitlines())) for path in write_files(tmp_path / "a", 3000, 1))
    assert len(reviews) == 3000 and {review["asin"] for review in reviews} <= {item["asin"] for item in metadata}
    assert len({review["reviewerID"] for review in reviews}) > 300
    again, other = write_files(tmp_path / "b", 3000, 1)[0], write_files(tmp_path / "c", 3000, 2)[0]
    assert content(tmp_path / "a" / "Games.json.gz") == content(again) != content(other)


def test_a_difference_is_seen(tmp_path):
    paths = write_files(tmp_path / "files", 4000, 1)
    expected = amazon.filtered(*paths, amazon.KEYS, RULES.model_dump())
    dataset = raw_dataset(*paths, RULES, tmp_path, "games", show_progress=False)
    assert len(expected.rows) > 100 and _same(expected, dataset)
    assert not _same(expected._replace(rows=expected.rows[1:]), dataset)
    assert not _same(expected._replace(titles={**expected.titles, expected.rows[0][1]: "Another"}), dataset)


def test_figures_relate_what_was_timed(monkeypatch, capsys, tmp_path):
    """Plain Python takes 2 s for 1,000 reviews; ours 1, 2 and 5 s for 1,000, 3,000 and 10,000."""
    seconds = {1000: 1.0, 3000: 2.0, 10000: 5.0}
    monkeypatch.setattr(amazon, "write_files", lambda folder, size, seed: (tmp_path / "a", tmp_path / "b"))
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(10**6))
    monkeypatch.setattr(amazon, "_plain", lambda paths, size, folder: (Run(size, 2.0, 2**21), True))
    monkeypatch.setattr(amazon, "_ours", lambda paths, size, out: Run(size, seconds[size], 2**20))
    amazon.main(["--reviews=10000", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["speed"] == 2000 and found["plain_speed"] == 500 and found["speedup"] == 4 and found["growth"] == 0.5
    assert (found["memory"], found["plain_memory"], found["different"], found["size"]) == (1, 2, 0, 2)
    assert [(row["reviews"], row["reviews a second"]) for row in found["rows"]] == [("1,000", 1000.0), ("3,000", 1500.0), ("10,000", 2000.0)]


def test_a_small_run_is_written_where_the_page_has_its_marks(tmp_path, monkeypatch, capsys):
    page = tmp_path / "benchmarks.md"
    page.write_text(reporting.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(reporting, "PAGE", page)
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    amazon.main(["--reviews=5000", "--write"])
    found = json.loads((tmp_path / "amazon.json").read_text())
    assert found["different"] == 0 and found["memory"] < 4096 and [row["reviews"] for row in found["rows"]] == ["500", "1,500", "5,000"]
    part = page.read_text(encoding="utf-8").partition("<!-- table: made by benchmarks/amazon.py -->")[2].partition("<!-- end of table -->")[0]
    assert "| times plain Python" in part and re.search(r"\| +5,000 +\|", part)


def test_a_mistake_in_an_option_is_told(capsys):
    with pytest.raises(SystemExit):
        amazon.main(["--reviews=none"])
    assert "'none': expected a whole number" in capsys.readouterr().err
