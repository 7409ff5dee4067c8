"""`python -m recbole_prunerec recommend`: one user's table, any number of users as JSON lines, and every mistake before a model is loaded."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hf_folder import write_folder
from served_folder import TITLES, write_served

from recbole_prunerec import recommend as command
from recbole_prunerec.__main__ import main
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking import recommender as ranking
from recbole_prunerec.ranking.recommender import Recommender

USERS = [["Heat"], {"user": "u2", "history": ["Amélie", "Casino"], "since": None}, {"history": [], "n": 3}, ["Toy Story", "Brazil"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(write_served(tmp_path_factory.mktemp("served")))


@pytest.fixture
def users(tmp_path) -> str:
    path = tmp_path / "users.jsonl"
    path.write_text("\n\n".join(json.dumps(user, ensure_ascii=False) for user in USERS) + "\n", encoding="utf-8")
    return str(path)


def answers(folder, k=20, exclude_seen=True, **options) -> list[list[dict]]:
    """What the library says for USERS."""
    histories = [user["history"] if isinstance(user, dict) else user for user in USERS]
    return [[item._asdict() for item in answer] for answer in Recommender.from_pretrained(folder, **options).recommend(histories, k, exclude_seen)]


def test_one_user_gets_a_table(folder, capsys):
    main(["recommend", folder, "--history", "Amélie", "--history=Toy Story", "--k=3", "--beams", "12"])
    (items, *_) = Recommender.from_pretrained(folder, beams=12).recommend([["Amélie", "Toy Story"]], k=3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Rank", "Item", "Title", "Log-probability"] and len(lines) == 4
    for rank, (line, item) in enumerate(zip(lines[1:], items, strict=True), 1):
        assert line.split() == [str(rank), item.item, *item.title.split(), f"{item.log_probability:.3f}"]
    assert len(set(map(len, lines))) == 1


def test_a_title_from_elsewhere_is_read_as_text_with_a_word(folder, capsys, caplog):
    main(["recommend", folder, "--history=Brazil", "--history= Heat", "--k=1"])
    assert caplog.messages == ["1 titles of histories are not in the catalogue, for example 'Brazil'; they are read as text"]
    (item,) = Recommender.from_pretrained(folder).recommend([["Brazil", "Heat"]], k=1)[0]
    assert item.item in capsys.readouterr().out


def test_nothing_left_is_said(folder, capsys):
    main(["recommend", folder, *(f"--history={title}" for title in TITLES)])
    assert capsys.readouterr().out == "Nothing is left to recommend: all titles of the catalogue are in the history.\n"


@pytest.mark.parametrize("source", ["file", "standard input"])
@pytest.mark.parametrize("out", [True, False], ids=["out", "screen"])
def test_users_are_answered_in_order_with_their_own_fields(folder, users, tmp_path, capsys, caplog, monkeypatch, source, out):
    monkeypatch.setattr(ranking, "BLOCK", 3)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(users).read_bytes())))
    target = tmp_path / "new" / "answers.jsonl"
    main(["recommend", folder, f"--file={users if source == 'file' else '-'}", "--k=4", *([f"--out={target}"] if out else [])])
    printed = capsys.readouterr().out
    assert (printed == "") == out
    got = [json.loads(line) for line in (target.read_text(encoding="utf-8") if out else printed).splitlines()]
    fields = [{}, {"user": "u2", "since": None}, {"n": 3}, {}]
    assert got == [{**own, "recommendations": items} for own, items in zip(fields, answers(folder, 4), strict=True)]
    assert "for example 'Brazil'" in caplog.text and "1 histories are empty" in caplog.text
    assert not out or [path.name for path in target.parent.iterdir()] == ["answers.jsonl"]


def test_an_exact_search_says_what_is_proven_and_seen_titles_can_stay(folder, users, capsys):
    main(["recommend", folder, "--file", users, "--search=exact", "--include_seen", "--k=2", "--budget=1000"])
    got = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(answer)[-2:] for answer in got] == [["recommendations", "proven"]] * 4 and all(answer["proven"] for answer in got)
    assert [answer["recommendations"] for answer in got] == answers(folder, 2, exclude_seen=False, search="exact")


def run(path: Path, *argv: str, **more) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH", "")]))}
    return subprocess.run([sys.executable, "-m", "recbole_prunerec", "recommend", *argv], text=True, capture_output=True, env=environment, **more)


def test_every_mistake_is_told_before_anything_heavy_is_imported(blocked, tmp_path):
    (tmp_path / "users.jsonl").write_bytes(
        b'["Heat"]\n{"history": "Heat"}\n[1]\n{"user": 3}\n["Heat"\n{"history": [], "proven": true}\n[" "]\n5\n["\xff"]\n["\\ud800"]\n{}\n[NaN]\n'
    )
    done = run(
        blocked,
        "./no/model",
        "--file=users.jsonl",
        f"--out={tmp_path}",
        "--history=x",
        "--k=0",
        "--beems=3",
        "--beams=x",
        "--device=gpu",
        cwd=tmp_path,
    )
    expected = 'expected a list of titles, the oldest first, or an object with one as its "history"'
    list_alone = "expected a list of titles, the oldest first"
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    decode = "'utf-8' codec can't decode byte 0xff in position 2: invalid start byte"
    encode = "'utf-8' codec can't encode character '\\ud800' in position 2: surrogates not allowed"
    assert lines.pop(13).startswith("  - users.jsonl, line 12: got '[NaN]', which is no JSON in UTF-8 (Out of range")
    assert lines[1:] == [
        '  - give either --history="a title", once for each and the oldest first, or --file=users.jsonl',
        f"  - --out={tmp_path} is a folder; name a file in it",
        f"  - users.jsonl, line 2: got 'Heat'; {list_alone}",
        f"  - users.jsonl, line 3: got the title 1, which is not text; {list_alone}",
        f"  - users.jsonl, line 4: got '{{\"user\": 3}}' without a history; {expected}",
        "  - users.jsonl, line 5: got '[\"Heat\"', which is no JSON in UTF-8 (Expecting ',' delimiter: line 2 column 1 (char 8)); " + expected,
        "  - users.jsonl, line 6: got a field proven, which the answer brings; leave it out",
        f"  - users.jsonl, line 7: got the title ' ', which is blank; {list_alone}",
        f"  - users.jsonl, line 8: got 5; {list_alone}",
        f"  - users.jsonl, line 9: got '[\"\N{REPLACEMENT CHARACTER}\"]', which is no JSON in UTF-8 ({decode}); {expected}",
        f"  - users.jsonl, line 10: got '[\"\\\\ud800\"]', which is no JSON in UTF-8 ({encode}); {expected}",
        f"  - users.jsonl, line 11: got '{{}}' without a history; {expected}",
        "  - k=0: expected a whole number, at least 1",
        "  - beems is unknown; did you mean 'beams'?",
        "  - device=gpu: expected one of auto, cpu, cuda, cuda:<number>",
        "  - beams='x': expected a whole number",
        "  - model=./no/model is not a folder; give the path of one with a Hugging Face model",
    ]


@pytest.mark.parametrize(
    ("argv", "problems"),
    [
        ([], ['give either --history="a title", once for each and the oldest first, or --file=users.jsonl']),
        (["--file=none"], ["--file=none is not a file; give one of JSON lines, or - for standard input"]),
        (["--history=x", "--history= "], ["--history: got the title ' ', which is blank; expected a list of titles, the oldest first"]),
        (["--history=x", "--beems=3"], ["beems is unknown; did you mean 'beams'?"]),
        (["--history=x", "--search=exact", "--beams=[", "y"], ["unexpected argument 'y'; arguments look like --key=value"]),
        (["--history=x", "--budget=9"], ["budget is read by search=exact alone, got search=beam; leave it out"]),
        (["--history=x", "--k", "many"], ["k='many': expected a whole number, at least 1"]),
    ],
)
def test_mistakes_in_arguments(folder, tmp_path, monkeypatch, argv, problems):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        main(["recommend", folder, *argv])
    assert str(caught.value).splitlines()[: len(problems)] == problems


def test_a_folder_that_recommends_nothing_is_told_at_once(blocked, tmp_path):
    write_folder(tmp_path / "bare")
    (line,) = run(blocked, "bare", "--history=x", cwd=tmp_path).stderr.splitlines()[1:]
    assert line.startswith(
        "  - model=bare has no catalogue.json and no prompts.json, which say what it recommends and how it is asked; give the folder"
    )


def test_twenty_bad_lines_are_listed_and_the_others_counted(folder, tmp_path):
    (tmp_path / "bad").write_text("1\n" * 50)
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(UserError) as caught:
        main(["recommend", folder, f"--file={tmp_path / 'bad'}"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[-1] == f"{tmp_path / 'bad'} has 30 more such lines"
    with pytest.raises(UserError, match="empty is empty; expected a list of titles"):
        main(["recommend", folder, f"--file={tmp_path / 'empty'}"])


def test_a_bad_line_from_standard_input_leaves_the_old_answers(folder, tmp_path, monkeypatch):
    target = tmp_path / "answers"
    target.write_text("old")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'["Heat"]\n{"history": 3}\n')))
    with pytest.raises(UserError, match="standard input, line 2: got 3; expected a list of titles"):
        main(["recommend", folder, "--file=-", f"--out={target}"])
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["answers"]


def test_any_number_of_users_is_held_a_block_at_a_time(folder, tmp_path, monkeypatch):
    """Lines are read as blocks are answered: never more than a block ahead of what is written."""
    monkeypatch.setattr(ranking, "BLOCK", 5)
    (tmp_path / "many").write_text('["Heat"]\n' * 23)
    read, ahead, parse = [], [], command._user
    monkeypatch.setattr(command, "_user", lambda line: read.append(line) or parse(line))
    monkeypatch.setattr(command, "_judge", lambda *_: None)
    lines = type("Written", (io.BytesIO,), {"write": lambda self, line: ahead.append(len(read)) or 0})()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(lines, "ascii"))
    command.recommend(folder, None, str(tmp_path / "many"), None, False, ["--k=1"])
    assert ahead == [min(23, 5 * (1 + done // 5)) for done in range(23)]


def test_titles_are_written_in_utf8_wherever_they_go(folder, tmp_path):
    """Also where the console says that it only takes ASCII."""
    (tmp_path / "one").write_text('["Heat"]')
    line = [sys.executable, "-m", "recbole_prunerec", "recommend", str(folder), "--file=one", "--k=8"]
    done = subprocess.run(line, capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "Amélie" in {item["title"] for item in json.loads(done.stdout)["recommendations"]}


def test_who_stops_reading_ends_it_quietly(folder, tmp_path):
    (tmp_path / "many").write_text('["Heat"]\n' * 300)
    script = f"{sys.executable} -m recbole_prunerec recommend {folder} --file=many --k=8 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1) and "Error" not in done.stderr and "Traceback" not in done.stderr
