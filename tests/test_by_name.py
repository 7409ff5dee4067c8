"""From a zip on a server to a table: a dataset of RecBole's is fetched by its name, filtered by the paper's rules, and the same for every model."""

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from processes import together
from web import Served, serving

from recbole_prunerec import quick_start
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.data import download
from recbole_prunerec.distributed import joined
from recbole_prunerec.loading import load_data
from recbole_prunerec.settings import Rules
from recbole_prunerec.text.catalogue import Catalogue

NAME = "amazon-video-games-18"
YEAR = 365 * 86400
END = 1_541_030_400  # 2018-11-01, where the window ends
TITLES = {f"B{item:03}": f"Game &amp; Watch {item}" for item in range(40)} | {"B100": "", "B101": "<b>Bold</b>", "B102": "word " * 21}


def clicks() -> list[tuple[str, str, int]]:
    """Users and items, times in the file's order: of 40 good items, of bad ones, after the window, and by users who come too seldom."""
    draw = np.random.default_rng(0)
    rows = [(f"u{user}", f"B{item:03}", END - YEAR + 1000 * step + user) for user in range(80) for step, item in enumerate(draw.permutation(40)[:9])]
    rows += [(f"u{user}", item, END - YEAR - user) for user in range(30) for item in ("B100", "B101", "B102")]
    rows += [(f"u{user}", f"B{user:03}", END + user) for user in range(40)]
    return rows + [("seldom", f"B{item:03}", END - 1) for item in range(4)]


def archive(path: Path) -> bytes:
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(f"{u}\t{i}\t5.0\t{t}\n" for u, i, t in clicks())
    item = "item_id:token\ttitle:token\tprice:float\n" + "".join(f"{item}\t{title}\t9.99\n" for item, title in TITLES.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("Amazon_Video_Games.inter", inter)
        opened.writestr("Amazon_Video_Games.item", item)
    return path.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where all runs of this module lie."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def served(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(archive(place / "z")) as server:
        monkeypatch.setattr(download, "recbole_urls", lambda: {NAME: server.url})
        yield server


def run(*arguments: str) -> str:
    common = [f"--dataset={NAME}", "--preset=quick", "--show_progress=false", "--steps=[{do: finetune}, {do: depth, layers: 2}]"]
    common += ["--test_rows=16", "--valid_rows=8", "--calibration_samples=4"]
    return quick_start.run(load_arguments([*common, *arguments]))


def ranked(folder: Path, system: str) -> list[tuple[str, ...]]:
    with (folder / "ranks" / f"{system}.csv").open() as file:
        return [(row["row"], row["user"], row["target"]) for row in csv.DictReader(file)]


def test_a_dry_run_fetches_the_data_and_says_what_it_wrote(served: Served, place):
    report = run("--dry_run")
    assert "80 users, 40 items, 720 interactions" in report
    assert "A dry run: nothing was trained or written but the filtered data, in saved/cache." in report
    assert served.sent == len(served.content) and {path.name for path in (place / "saved").iterdir()} == {"cache"}
    assert {path.name for path in (place / "dataset" / NAME).iterdir()} == {f"{NAME}.inter", f"{NAME}.item"}


def test_the_name_alone_gives_a_table_of_what_the_rules_leave(served: Served, place):
    printed = run()
    assert served.sent <= len(served.content) and "BIGRec (teacher)" in printed
    latest = place / "saved" / "latest"
    results = json.loads((latest / "results.json").read_text())
    assert [row["system"] for row in results["rows"]] == ["Pop", "SASRec", "BIGRec (teacher)", "PruneRec", "PruneRec"]
    kept = {(user, item) for user, item, time in clicks() if item < "B100" and time < END and user != "seldom"}
    assert results["dataset"] == {"name": NAME, "users": 80, "items": 40, "interactions": len(kept), "train": 512, "valid": 64, "test": 64}
    assert results["protocol"]["rules.core"] == 5 and results["protocol"]["rules.window_end"] == "2018-11"
    titles = set(Catalogue.load(latest / "1-finetune").titles[1:])
    assert titles == {f"Game & Watch {item}" for item in range(40)}
    assert load_arguments([f"--config_files={latest / 'config.yaml'}"]).settings.rules == Rules()
    (filtered,) = (place / "saved" / "cache").glob("data-*")
    page = (filtered / NAME / "statistics.md").read_text()
    assert (latest / "statistics.md").read_text() == page and "paper's Table 1, Games" in page


def test_every_model_sees_the_same_samples_and_nothing_is_fetched_or_filtered_twice(served: Served, place):
    run()
    first = (place / "saved" / "latest").resolve()
    served.status = 500
    run("--model=SASRec", "--epochs=1")
    second = (place / "saved" / "latest").resolve()
    assert first != second and ranked(second, "SASRec") == ranked(first, "SASRec") == ranked(first, "2-depth")
    assert len(list((place / "saved" / "cache").glob("data-*"))) == 1
    assert (second / "statistics.md").read_text() == (first / "statistics.md").read_text()


def test_other_rules_and_none_are_other_runs_on_the_same_files(served: Served, place):
    found = {}
    for rules in ("--rules=null", "--rules.window_end=2018-12", "--rules.title_rules=d3"):
        run("--model=Popularity", rules)
        latest = (place / "saved" / "latest").resolve()
        found[latest] = json.loads((latest / "results.json").read_text())["dataset"]
        assert (latest / "statistics.md").exists() == (rules != "--rules=null")
    assert len(found) == 3
    whole, longer, narrow = found.values()
    assert (whole["items"], whole["interactions"]) == (42, 720 + 40 + 60)  # all that have a title, of all times
    assert (longer["items"], longer["interactions"]) == (40, 720 + 40)
    assert (narrow["items"], narrow["interactions"]) == (41, 720 + 30)  # <b> is no markup to the paper's reference


def test_several_processes_read_what_the_first_has_filtered(served: Served, place, tmp_path):
    run("--model=Popularity")  # fetches
    settings = load_arguments([f"--dataset={NAME}", "--show_progress=false"]).settings

    def work(number: int) -> None:
        with joined(cpu=True):
            data = load_data(settings, tmp_path, tmp_path / "cache")
            (tmp_path / f"{number}.json").write_text(json.dumps([data.dataset.dataset_path, len(data.samples.train), data.dataset.item_num]))

    assert [code for code, _ in together(tmp_path, work, 2)] == [0, 0]
    (filtered,) = (tmp_path / "cache").glob("data-*")
    assert [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)] == [[str(filtered / NAME), 512, 41]] * 2
