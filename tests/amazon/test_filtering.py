"""The whole way from raw files, with all faults, against the plain reference: the same interactions, titles, counts and windows."""

import json
from collections import Counter

import pytest
from amazon_files import KEYS, interactions, titled, write_raw
from plain_amazon import filtered

from recbole_prunerec.amazon.store import raw_dataset
from recbole_prunerec.settings import Rules

RULES = {
    "ours": {"min_items": 40},
    "d3": {"title_rules": "d3", "min_items": 40, "core": 3},
    "no window": {"window_start": None, "window_end": None, "repeated": "drop"},
    "one step": {"window_start": "2018-01", "window_step": 5, "min_items": 25, "core": 2, "repeated": "drop", "title_words": 3},
    "no core": {"core": 0, "window_start": "2018-06", "min_items": 0},
}


def made(folder, paths, rules):
    """Rows, titles and statistics of our dataset."""
    dataset = raw_dataset(*paths, rules, folder, "games", show_progress=False)
    header, *lines = (dataset / "games.inter").read_text(encoding="utf-8").split("\n")
    assert header == "user_id:token\titem_id:token\ttimestamp:float" and lines.pop() == ""
    first, *items = (dataset / "games.item").read_text(encoding="utf-8").split("\n")
    assert first == "item_id:token\ttitle:token_seq" and items.pop() == ""
    rows = [(user, item, float(time)) for user, item, time in (line.split("\t") for line in lines)]
    return rows, dict(line.split("\t") for line in items), json.loads((dataset / "statistics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("release", KEYS)
@pytest.mark.parametrize("name", RULES)
def test_raw_files_give_what_plain_python_gives(tmp_path, release, name):
    seed = list(RULES).index(name)
    rules = Rules(**{"faults": 0.5, **RULES[name]})
    rows = interactions(3000, 150, 90, seed)
    paths = write_raw(tmp_path, release, rows, titled(sorted({row["item"] for row in rows}), seed), seed)
    expected = filtered(*paths, KEYS[release], rules.model_dump())
    found, titles, statistics = made(tmp_path / "out", paths, rules)
    assert found == expected.rows and len(found) > 50
    assert titles == expected.titles and list(titles) == list(expected.titles)
    assert tuple(statistics["read"]) == expected.sizes[0] and statistics["repeated"] == expected.repeated > 0
    assert [(window["start"], tuple(window["left"])) for window in statistics["windows"]] == expected.windows
    acts = [True, True, True, rules.title_rules == "d3", True, rules.repeated == "drop", rules.window_start, rules.window_end, rules.core > 1]
    left = [size for size, acting in zip(expected.sizes[1:], acts, strict=True) if acting]
    assert [tuple(removal["left"]) for removal in statistics["removed"]] == left and tuple(statistics["left"]) == expected.sizes[-1]
    lost = [sum(removal[what] for removal in statistics["removed"]) for what in ("interactions", "users", "items")]
    assert lost == [before - after for before, after in zip(expected.sizes[0], expected.sizes[-1], strict=True)]
    faults = Counter()
    for source in statistics["sources"]:
        faults.update({fault["kind"]: fault["lines"] for fault in source["faults"] if not fault["used"]})
    assert faults == expected.faults and len(faults) == 5
