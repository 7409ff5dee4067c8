"""Datasets on the disk: RecBole's files and raw ones, made once, whole or absent, and what is refused."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import time

import filelock
import pytest
from amazon_files import KEYS, interactions, titled, write_lines, write_raw
from plain_amazon import filtered

from recbole_prunerec.amazon import making, store
from recbole_prunerec.amazon.atomic import Fields
from recbole_prunerec.amazon.store import cached_dataset, raw_dataset
from recbole_prunerec.data.tables import Column, read_atomic
from recbole_prunerec.errors import UserError
from recbole_prunerec.exits import guarded
from recbole_prunerec.settings import Rules

RULES = Rules(min_items=40, faults=0.5)
ROWS = interactions(3000, 150, 90, 7)
ITEMS = titled(sorted({row["item"] for row in ROWS}), 7)


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "raw", "2018", ROWS, ITEMS)


def write_atomic(folder, rows=ROWS, items=ITEMS, scale=1.0, names=("user_id", "item_id", "timestamp", "title")):
    """The same as RecBole's files have it: more columns, titles on one line."""
    user, item, time, title = names
    inter = [f"{user}:token\t{item}:token\trating:float\t{time}:float", *(f"{r['user']}\t{r['item']}\t5.0\t{r['time'] * scale}" for r in rows)]
    texts = [(entry["item"], entry["title"] if isinstance(entry["title"], str) else "") for entry in items]
    named = [f"{item}:token\tprice:float\t{title}:token", *(f"{number}\t\t{' '.join(text.split())}" for number, text in texts)]
    return tuple(write_lines(folder / f"games.{kind}", [line.encode() for line in table]) for kind, table in (("inter", inter), ("item", named)))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "statistics.json"}


def refused(work, *arguments, **options):
    with pytest.raises(UserError) as caught:
        work(*arguments, show_progress=False, **options)
    return str(caught.value)


@pytest.mark.parametrize("scale", [1, 1000], ids=["seconds", "milliseconds"])
def test_recboles_files_give_what_raw_ones_give(tmp_path, scale):
    rows = [row for row in ROWS if " " not in row["user"]]
    items = [item | {"title": " ".join(item["title"].split())} if isinstance(item["title"], str) else item | {"title": None} for item in ITEMS]
    expected = filtered(*write_raw(tmp_path / "raw", "2018", rows, items, faults=False), KEYS["2018"], RULES.model_dump())
    data_path = cached_dataset(*write_atomic(tmp_path, rows, items, scale), RULES, tmp_path / "cache", "games", show_progress=False)
    inter = (data_path / "games" / "games.inter").read_text(encoding="utf-8").splitlines()[1:]
    assert inter == [f"{user}\t{item}\t{time:.0f}" for user, item, time in expected.rows] and len(inter) > 500
    titles = (data_path / "games" / "games.item").read_text(encoding="utf-8").splitlines()[1:]
    assert titles == [f"{item}\t{title}" for item, title in expected.titles.items()]


def test_what_is_written_is_read_as_recboles(tmp_path):
    names = Fields("uid", "iid", "when", "name")
    data_path = cached_dataset(*write_atomic(tmp_path, names=names), RULES, tmp_path / "cache", "games", names, show_progress=False)
    problems = []
    columns = {"user": Column("uid", "token", ""), "item": Column("iid", "token", ""), "time": Column("when", "float", "")}
    inter = read_atomic(data_path / "games" / "games.inter", columns, problems, "\t", "utf-8")
    items = read_atomic(data_path / "games" / "games.item", {"item": columns["item"], "title": Column("name", "", "")}, problems, "\t", "utf-8")
    assert problems == [] and set(inter["item"]) == set(items["item"]) and items["title"].str.strip().all()
    assert inter["user"].value_counts().min() >= 5 and inter["item"].value_counts().min() >= 5


def test_a_dataset_is_made_once_for_the_same_files_and_rules(tmp_path, monkeypatch, caplog):
    paths, cache = write_atomic(tmp_path), tmp_path / "cache"
    made = []
    monkeypatch.setattr(store, "make", lambda *arguments: (made.append(arguments[2]), making.make(*arguments)))
    first = cached_dataset(*paths, RULES, cache, "games", show_progress=False)
    assert cached_dataset(*paths, RULES, cache, "games", show_progress=False) == first and len(made) == 1
    others = {first, cached_dataset(*paths, RULES.model_copy(update={"core": 4}), cache, "games", show_progress=False)}
    paths[1].write_bytes(paths[1].read_bytes() + b"B77777\t\tAnother\n")
    others.add(cached_dataset(*paths, RULES, cache, "games", show_progress=False))
    monkeypatch.setattr(store, "VERSION", 0)
    others.add(cached_dataset(*paths, RULES, cache, "games", show_progress=False))
    assert len(others) == len(made) == 4 and {path.parent for path in others} == {cache}
    assert {path.name for path in (first / "games").iterdir()} == {"games.inter", "games.item", "statistics.json", "statistics.md"}


def test_a_process_that_comes_second_waits_and_finds_it_made(tmp_path, monkeypatch):
    paths, cache = write_atomic(tmp_path), tmp_path / "cache"
    data_path = cached_dataset(*paths, RULES, cache, "games", show_progress=False)
    shutil.move(data_path / "games", tmp_path / "aside")
    monkeypatch.setattr(store, "make", None)  # it must not be made again
    lock = filelock.FileLock(data_path / ".games.lock")
    with lock:
        context = multiprocessing.get_context("fork")
        second = context.Process(target=cached_dataset, args=(*paths, RULES, cache, "games"), kwargs={"show_progress": False})
        second.start()
        time.sleep(0.5)
        assert second.is_alive()
        shutil.move(tmp_path / "aside", data_path / "games")
    second.join(30)
    assert second.exitcode == 0


@pytest.mark.parametrize("place", ["read", "apply", "_write", "page"])
def test_after_a_kill_the_same_command_starts_clean(tmp_path, raw, place):
    whole = content(raw_dataset(*raw, RULES, tmp_path / "whole", "games", show_progress=False))

    def killed():
        module = store if place == "read" else making
        name = "read_raw" if place == "read" else place
        before = getattr(module, name)

        def last(*arguments, **options):
            before(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(module, name, last)
        raw_dataset(*raw, RULES, tmp_path / "out", "games", show_progress=False)

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out" / "games").exists() and (tmp_path / "out" / ".games.partial").exists()
    assert content(raw_dataset(*raw, RULES, tmp_path / "out", "games", show_progress=False)) == whole
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"games", ".games.lock"}


def test_what_is_there_stays(tmp_path, raw, caplog):
    caplog.set_level("INFO")
    folder = raw_dataset(*raw, RULES, tmp_path, "games", show_progress=False)
    before = content(folder)
    assert raw_dataset(*raw, RULES, tmp_path, "games", show_progress=False) == folder and content(folder) == before
    assert f"{folder} is there already, made of the same files by the same rules" in caplog.text
    other = refused(raw_dataset, *raw, RULES.model_copy(update={"core": 2}), tmp_path, "games")
    assert other == f"{folder} exists and holds other data; choose another name than name=games, or delete it" and content(folder) == before


def test_missing_files_are_told_together(tmp_path):
    paths = tmp_path / "a", tmp_path
    assert refused(raw_dataset, *paths, RULES, tmp_path / "out", "games").splitlines() == [
        f"{paths[0]} does not exist; expected a file",
        f"{paths[1]} is a folder; expected a file",
    ]
    assert not (tmp_path / "out").exists()


def test_the_metadata_of_another_category(tmp_path, raw, caplog):
    others = [{"item": f"C{number}", "title": "Other"} for number in range(50)]
    other = write_raw(tmp_path / "other", "2018", ROWS, others, faults=False)[1]
    said = refused(raw_dataset, raw[0], other, RULES, tmp_path, "games")
    assert said.startswith(f"{other} has no item of {raw[0]}: C0, C1, C2, ... there, B") and said.endswith(
        "of two categories? give both files of one"
    )
    mixed = write_raw(tmp_path / "mixed", "2018", ROWS, [*others, *ITEMS[-8:]], faults=False)[1]
    assert "no interaction is left" in refused(raw_dataset, raw[0], mixed, RULES.model_copy(update={"core": 99}), tmp_path, "games")
    assert f"interactions have an item that is in {mixed}; is that of another category?" in caplog.text
    assert not (tmp_path / "games").exists()


def test_files_of_two_releases_or_of_none(tmp_path, raw):
    recent = write_raw(tmp_path / "2023", "2023", ROWS, ITEMS)
    assert refused(raw_dataset, raw[0], recent[1], RULES, tmp_path, "games") == (
        f"{raw[0]} is of the release 2014 or 2018, {recent[1]} of 2023; give both files of one release"
    )
    said = refused(raw_dataset, raw[1], raw[0], RULES, tmp_path, "games")
    assert said.startswith(f"{raw[1]} does not hold reviews: of its first lines, their keys are asin, ")
    assert said.endswith("expected reviewerID, asin, unixReviewTime or user_id, parent_asin, timestamp")
    assert refused(raw_dataset, raw[0], raw[0], RULES, tmp_path, "games").startswith(f"{raw[0]} does not hold metadata: ")
    text = write_lines(tmp_path / "text.json", [b"user,item", b"1,2"])
    assert "of its first lines, none is a JSON object" in refused(raw_dataset, text, raw[1], RULES, tmp_path, "games")


def test_too_many_faults_are_refused_and_told(tmp_path, raw):
    lines = [b'{"asin": "B1"}'] * 300 + [b"\xff"] * 10
    reviews = write_lines(tmp_path / "r.json", [b'{"reviewerID": "A", "asin": "B0001", "unixReviewTime": 1500000000}', *lines])
    said = refused(raw_dataset, reviews, raw[1], RULES, tmp_path, "games")
    assert said == (
        f"{reviews}: 310 of 311 lines are of no use, more than rules.faults=0.5: no user: 300 (line 2, 3, 4); not UTF-8: 10 (line 302, 303, 304); "
        "fetch it again, or raise rules.faults"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"core": 1000}, "core dropped "),
        ({"window_start": None, "window_end": "1999-01"}, "window_end dropped 2,"),
        ({"window_start": "2030-01", "window_end": None, "window_step": 1, "min_items": 0}, "window_start dropped 2,"),
        ({"title_rules": "d3", "title_words": 1, "core": 50}, "title_words dropped "),
    ],
)
def test_an_empty_result_tells_which_rule_dropped_how_much(tmp_path, raw, changes, told):
    said = refused(raw_dataset, *raw, RULES.model_copy(update=changes), tmp_path, "games")
    assert said.startswith("games: no interaction is left of 3,") and told in said and "no title file dropped " in said
    assert not (tmp_path / "games").exists() and not (tmp_path / ".games.partial").exists()


def test_recboles_files_with_other_columns(tmp_path):
    inter, items = write_atomic(tmp_path, names=("user", "item_id", "timestamp", "name"))
    said = refused(cached_dataset, inter, items, RULES, tmp_path / "cache", "games").splitlines()
    assert len(said) == 2 and f"{inter} has no column 'user_id'" in said[0] and f"{items} has no column 'title'" in said[1]
    inter, items = write_atomic(tmp_path)
    write_lines(inter, [*inter.read_bytes().splitlines()[:3], *[b"A1\tB1"] * 9])
    assert "9 of 11 lines are of no use, more than rules.faults=0.5: not 4 columns: 9 (line 4, 5, 6)" in refused(
        cached_dataset, inter, items, RULES, tmp_path / "cache", "games"
    )


def test_no_room(tmp_path, raw, monkeypatch):
    monkeypatch.setattr(store, "ROOM", 2**50)
    assert f"out={tmp_path} has " in (said := refused(raw_dataset, *raw, RULES, tmp_path, "games")) and "make room" in said
    (tmp_path / "file").write_text("")
    assert "is a file; choose another folder" in refused(raw_dataset, *raw, RULES, tmp_path / "file", "games")


def test_a_disk_that_fills_up_meanwhile(tmp_path, raw, capfd):
    def starved():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, 2**12))
        code = guarded(lambda: raw_dataset(*raw, RULES, tmp_path / "out", "games", show_progress=False), "try again")
        os._exit(code)

    child = multiprocessing.get_context("fork").Process(target=starved)
    child.start()
    child.join(60)
    said = capfd.readouterr().err
    assert child.exitcode == 2 and said.startswith("1 problem:") and "room" in said, said
    assert not (tmp_path / "out" / "games").exists()


def test_without_duckdb_the_answer_says_how_to_get_it(tmp_path, raw, monkeypatch):
    monkeypatch.setattr("recbole_prunerec.amazon.engine.find_spec", lambda name: None)
    assert refused(raw_dataset, *raw, RULES, tmp_path, "games") == (
        "rules need the package duckdb, which is not installed; run: pip install -c constraints.txt -e '.[amazon]'"
    )


def test_statistics_stand_beside_the_papers(tmp_path, raw):
    name = "amazon-video-games-18"
    folder = raw_dataset(*raw, RULES, tmp_path, name, show_progress=False)
    page, told = (folder / "statistics.md").read_text(encoding="utf-8"), json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    interactions, users, items = told["left"]
    count = interactions - users
    train, valid = int(0.8 * count), int(0.9 * count) - int(0.8 * count)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert ["here", *(f"{n:,}" for n in (items, train, valid, count - train - valid))] in cells
    assert ["paper's Table 1, Games", "11,037", "201,613", "25,202", "25,203"] in cells
    assert ["difference", f"{items - 11037:+,}", f"{train - 201613:+,}", f"{valid - 25202:+,}", f"{count - train - valid - 25203:+,}"] in cells
    for removal in told["removed"]:
        assert [removal["rule"], removal["why"], *(f"{removal[key]:,}" for key in ("interactions", "users", "items"))] in [row[:5] for row in cells]
    for source in told["sources"]:
        for fault in source["faults"]:
            assert [fault["kind"], f"{fault['lines']:,}"] in [row[:2] for row in cells]
