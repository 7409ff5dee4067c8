"""Figures, tables and where they go."""

import json
from argparse import ArgumentTypeError

import pytest
import reporting
from reporting import END, Figure, command_line, count, lines, publish, with_table

FIGURES = [Figure("a", "less", 1.25, most=1.5), Figure("b", "more", 0.994, "{:.1%}", least=1), Figure("c", "alone", 12345.6, "{:,.0f}")]
ROWS = [{"step": "width", "seconds": 1.23456, "samples": 8}, {"step": "depth", "seconds": 0.5, "samples": 9}]
RESULT = {"command": "python x.py", "device": "a CPU", "seed": 7, "seconds": 118.0, "versions": {"torch": "2", "numpy": "1"}}


def marks(name, between=""):
    return f"<!-- table: made by benchmarks/{name}.py -->\n{between}{END}\n"


def test_a_line_says_what_was_to_be_and_whether_it_is():
    assert lines(FIGURES) == [
        ["less", "1.25", "at most 1.5", "yes"],
        ["more", "99.4%", "at least 100.0%", "no"],
        ["alone", "12,346", "", ""],
    ]


def test_the_page_gets_one_table_and_nothing_else_changes():
    before = f"before\n{marks('other', 'another table')}"
    page = with_table(f"{before}{marks('x', 'old')}after\n", "x", FIGURES, RESULT)
    assert page.startswith(f"{before}<!-- table: made by benchmarks/x.py -->\n\n| What") and page.endswith(f"{END}\nafter\n")
    assert "| less" in page and "old" not in page and "`python x.py`  \non a CPU, seed 7, 2 minutes" in page and "torch 2, numpy 1" in page
    assert with_table(page, "x", FIGURES, RESULT) == page


def test_rows_are_a_second_table():
    page = with_table(marks("x"), "x", FIGURES, RESULT, ROWS)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert cells[5:] == [["step", "seconds", "samples"], cells[6], ["width", "1.23", "8"], ["depth", "0.5", "9"]]
    assert len(cells[1]) == 4 and set(cells[6][0]) == {"-"} and with_table(page, "x", FIGURES, RESULT, ROWS) == page


@pytest.mark.parametrize("name", ["ranking", "training", "importance"])
def test_the_page_has_a_place_for_every_table(name):
    page = reporting.PAGE.read_text(encoding="utf-8")
    begin = reporting.BEGIN.format(name)
    assert page.count(begin) == 1 and page.index(begin) < page.index(END, page.index(begin))
    assert page.count(END) == page.count(reporting.BEGIN.partition("{}")[0])


def test_a_result_is_printed_and_written_where_asked(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(reporting, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    reporting.PAGE.write_text(marks("x"))
    publish("x", FIGURES, command_line("x", "").parse_args([]), [], 60)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 5 and shown[2].split() == ["less", "1.25", "at", "most", "1.5", "yes"]
    assert list(tmp_path.iterdir()) == [reporting.PAGE] and reporting.PAGE.read_text() == marks("x")
    argv = ["--json", "--write", "--seed=3"]
    publish("x", FIGURES, command_line("x", "").parse_args(argv), argv, 60, ROWS, over_sft=None)
    shown = capsys.readouterr().out.splitlines()
    printed = json.loads(shown[-1])
    assert shown[6].split() == ["step", "seconds", "samples"] and printed["rows"] == ROWS
    assert (printed["a"], printed["over_sft"], printed["seed"], printed["seconds"]) == (1.25, None, 3, 60)
    assert printed["command"] == "python benchmarks/x.py --json --write --seed=3" and "torch" in printed["versions"]
    assert json.loads((tmp_path / "x.json").read_text()) == printed
    assert "| width" in reporting.PAGE.read_text() and printed["command"] in reporting.PAGE.read_text()


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_a_count_is_at_least_one(text):
    assert count("12") == 12
    with pytest.raises(ArgumentTypeError, match=f"{text!r}: expected a whole number, at least 1"):
        count(text)
