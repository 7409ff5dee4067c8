"""`python -m recbole_prunerec amazon`, and the rules as keys: what is taken, and every mistake by its name."""

import subprocess
import sys

import pytest
from amazon_files import interactions, titled, write_raw

from recbole_prunerec.__main__ import main
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Rules

ROWS = interactions(3000, 150, 90, 3)
ITEMS = titled(sorted({row["item"] for row in ROWS}), 3)


@pytest.fixture
def options(tmp_path):
    reviews, metadata = write_raw(tmp_path / "raw", "2018", ROWS, ITEMS, faults=False)
    return [f"--reviews={reviews}", f"--meta={metadata}", f"--out={tmp_path / 'out'}"]


def test_from_a_shell_to_a_dataset(tmp_path, options):
    command = [sys.executable, "-m", "recbole_prunerec", "amazon", *options, "--rules.min_items=40", "--rules.core=4", "--no_progress"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    folder = tmp_path / "out" / "Games"
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"{folder}: written, see statistics.md in it; now: python run_recbole.py --model=PruneRec --dataset=Games --data_path={tmp_path / 'out'}\n"
    )
    said = done.stderr.splitlines()
    assert said[0] == "Games.json.gz and meta_Games.json.gz: of the release 2014 or 2018" and said[1].startswith("window from 2017-10 to 2018-11: ")
    assert said[-1].startswith("Games: ") and said[-1].endswith(" with 90 items")
    assert "| `rules.core`         | 4 " in (folder / "statistics.md").read_text(encoding="utf-8")


def test_every_rule_is_an_option_that_is_read(tmp_path, options, monkeypatch):
    taken = []
    monkeypatch.setattr("recbole_prunerec.amazon.command.raw_dataset", lambda *arguments: taken.append(arguments) or tmp_path)
    given = {
        "faults": 0.1,
        "title_rules": "d3",
        "title_words": 9,
        "repeated": "drop",
        "window_start": "2001-02",
        "window_end": None,
        "window_step": 3,
        "min_items": 0,
        "core": 0,
    }
    assert given.keys() == Rules.model_fields.keys()
    main(["amazon", *options, "--name=mine", *(f"--rules.{key}={'null' if value is None else value}" for key, value in given.items())])
    main(["amazon", *options])
    assert taken[0][2:] == (Rules(**given), tmp_path / "out", "mine", True) and taken[1][2:4] == (Rules(), tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        (["--rules.core=-1", "--rules.faults=2"], ["rules.faults=2: expected at most 1.0", "rules.core=-1: expected at least 0"]),
        (["--rules.window_end=2018"], ["rules.window_end=2018: expected a month from 1970-01 on, such as 2018-11, or null"]),
        (["--rules.window_end=2018-13"], ["rules.window_end=2018-13: expected a month from 1970-01 on, such as 2018-11, or null"]),
        (["--rules.window_start=1969-12"], ["rules.window_start=1969-12: expected a month from 1970-01 on, such as 2017-10, or null"]),
        (["--rules.window_start=2018-11"], ["rules.window_start=2018-11 is not before rules.window_end=2018-11; choose an earlier month"]),
        (["--rules.title_rules=d4"], ["rules.title_rules=d4: expected one of ours, d3"]),
        (["--rules.repeated=dropp"], ["rules.repeated=dropp: expected one of keep, drop; did you mean 'drop'?"]),
    ],
)
def test_a_mistake_in_a_rule_is_told_as_in_a_run(options, given, problems):
    for work in (lambda: main(["amazon", *options, *given]), lambda: load_arguments(given)):
        with pytest.raises(UserError) as caught:
            work()
        assert str(caught.value).splitlines() == problems


def test_files_that_are_not_there_are_told_with_the_other_mistakes(tmp_path):
    with pytest.raises(UserError) as caught:
        main(["amazon", f"--reviews={tmp_path / 'none.gz'}", f"--meta={tmp_path}", f"--out={tmp_path}", "--rules.core=x"])
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'none.gz'} does not exist; expected a file of lines, plain or .gz",
        f"{tmp_path} is a folder; expected a file of lines, plain or .gz",
        "rules.core='x': expected a whole number",
    ]


def test_other_mistakes(options):
    with pytest.raises(UserError) as caught:
        main(["amazon", *options, "--name=a/b", "--rules.core=x"])
    assert str(caught.value).splitlines() == [
        "name='a/b': expected letters, digits, '_', '-' and '.', and not ml-100k, which comes with RecBole; such as --name=games",
        "rules.core='x': expected a whole number",
    ]
    with pytest.raises(UserError) as caught:
        main(["amazon", *options, "--rules.cor=3", "--core=3", "--rules.faults=[", "--rules=null"])
    assert str(caught.value).splitlines() == [
        "unexpected --core=3; this command takes rules, such as --rules.core=5, and see its --help",
        "--rules.faults=[ is not valid YAML at line 1, column 2: expected the node content, but found '<stream end>'",
        "unexpected --rules=null; this command takes rules, such as --rules.core=5, and see its --help",
        "rules.cor is unknown; did you mean 'core'?",
    ]
    with pytest.raises(UserError, match="the following arguments are required: --meta; see python -m recbole_prunerec amazon --help"):
        main(["amazon", options[0]])
