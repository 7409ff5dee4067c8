import csv
import io
import json
import re

import pytest

from recbole_prunerec import run_folder
from recbole_prunerec.report.results import Results
from recbole_prunerec.report.tables import (
    LOWER_IS_BETTER,
    comparisons_to_csv,
    comparisons_to_latex,
    heading,
    si,
    to_csv,
    to_latex,
    to_markdown,
    to_screen,
    write_all,
)
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.storage import read_json
from recbole_prunerec.validation.validate import METRICS

ODD = "A_b & c|d*50%"


def row(system, hits, ndcgs, **changes):
    return {
        "system": system,
        "test_rows": 3000,
        "metrics": dict(zip(["hit@10", "hit@20", "ndcg@10", "ndcg@20"], [*hits, *ndcgs], strict=True)),
        "parameters": {"non_embedding": 0, "total": 0},
        "seconds_per_user": 0.0123456,
        "peak_memory_bytes": 536870912,
        **changes,
    }


ROWS = [
    row("Pop", (0.1, 0.2), (0.05, 0.07)),
    row(ODD, (0.125, 0.2), (0.06, 0.08), note="not converged: 2 epochs"),
    row(
        "BIGRec (teacher)",
        (0.5, 0.6),
        (0.3, 0.4),
        test_rows=500,
        note="500 of 3,000 rows",
        retention=1.0,
        parameters={"non_embedding": 10_000_000, "total": 30_000_000},
    ),
    row(
        "PruneRec",
        (0.11, 0.21),
        (0.055, 0.08),
        step=2,
        step_name="width",
        criterion="wanda",
        restored=False,
        retention=0.8809,
        parameters={"non_embedding": 1_020_000, "total": 15_700_000, "share_non_embedding": 0.0942, "share_total": 0.5233},
        flops_per_user=35_190_000.0,
    ),
    row("PruneRec", (0.09, 0.21), (0.05, 0.06), step=2, step_name="width", criterion="prunerec", restored=True, test_rows=400, note="slow"),
]
COMPARISONS = [
    {"system": "PruneRec", "against": ODD, "metric": "ndcg@10", "difference": -0.005, "low": -0.01, "high": 0.002, "users": 166, "rows": 3000},
]


def results(**changes):
    document = {
        "rows": ROWS,
        "comparisons": COMPARISONS,
        "dataset": {"name": "ml-100k", "users": 943},
        "protocol": {"split": "global_time", "topk": [10, 20]},
        "versions": {"torch": "2.13.0"},
        "device": "Some CPU, 2 threads",
        "command": "run_recbole.py --model=PruneRec --dataset=ml-100k",
        "seed": 2020,
        "preset": "tiny",
    }
    return Results.model_validate({**document, **changes})


HUMAN = [
    ["Pop", "", "3,000", "0.1000", "0.2000", "0.0500", "0.0700", "-", "0", "0", "-", "12.3", "512"],
    [ODD, "", "3,000", "*0.1250", "0.2000", "*0.0600", "*0.0800", "-", "0", "0", "-", "12.3", "512"],
    ["BIGRec (teacher)", "", "500", "0.5000", "0.6000", "0.3000", "0.4000", "100.0 %", "10.0 M", "30.0 M", "-", "12.3", "512"],
    [
        "PruneRec",
        "2 width, wanda, unrestored",
        "3,000",
        "0.1100",
        "*0.2100",
        "0.0550",
        "*0.0800",
        "88.1 %",
        "1.02 M (9.4 %)",
        "15.7 M (52.3 %)",
        "35.2 MFLOP",
        "12.3",
        "512",
    ],
    ["PruneRec", "2 width", "400", "0.0900", "0.2100", "0.0500", "0.0600", "-", "0", "0", "-", "12.3", "512"],
]
HEADINGS = ["System", "Step", "Rows", "HR@10", "HR@20", "NDCG@10", "NDCG@20"]
HEADINGS += ["Retention", "Non-embedding parameters", "All parameters", "FLOPs/user", "ms/user", "Peak memory (MiB)"]
MARKS = ["", "1", "2", "", "3"]
NOTES = ["not converged: 2 epochs", "500 of 3,000 rows", "400 of 3,000 rows; slow"]


def starred(cells, bold):
    return [re.sub(bold, r"*\1", cell) for cell in cells]


def markdown_table(text, heading_cell):
    """Headings and rows of the pipe table whose first heading is given, escapes undone and bold written as a leading star."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if re.match(rf"\| *{heading_cell} *\|", line))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        rows.append([re.sub(r"\\(.)", r"\1", cell) for cell in starred(cells, r"^\*\*(.*)\*\*$")])
    return rows[0], rows[2:]


def test_markdown_parses_back():
    text = to_markdown(results())
    heads, rows = markdown_table(text, "System")
    marks = [re.search(r"<sup>(\d)</sup>", line[0]) for line in rows]
    assert [mark.group(1) if mark else "" for mark in marks] == MARKS
    assert heads == HEADINGS
    assert [[re.sub(r"<sup>.*", "", line[0]), *line[1:]] for line in rows] == HUMAN
    assert re.findall(r"^<sup>(\d)</sup> (.*?) *$", text, re.M) == [("1", NOTES[0]), ("2", NOTES[1]), ("3", NOTES[2])]


def test_markdown_states_the_run_before_the_table_and_the_comparisons_after():
    text = to_markdown(results())
    parts = ["- users: 943", "- split: global\\_time", "- topk: \\[10, 20\\]", "- seed: 2020", "- device: Some CPU, 2 threads", "- torch: 2.13.0"]
    places = [text.index(part) for part in (*parts, f"```sh\n{results().command}\n```", "| System ", "| BIGRec", "## Comparisons")]
    assert places == sorted(places)
    comparisons = text[places[-1] :]
    heads, rows = markdown_table(comparisons, "System")
    assert heads == ["System", "Against", "Metric", "Difference", "Interval", "Users", "Rows"]
    assert rows == [["PruneRec", ODD, "NDCG@10", "-0.0050", "95 %: -0.0100 to +0.0020", "166", "3,000"]]


def test_latex_parses_back():
    text = to_latex(results())
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert text.count(r"\midrule") == 1 and r"\begin{tabular}{llrrrrrrrrrrr}" in text and r"\end{tabular}" in text
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r"\\")]
    rows = [
        [re.sub(r"\\([&%_])", r"\1", cell.replace(r"\textbar{}", "|")) for cell in starred(re.split(r" (?<!\\)& ", line), r"^\\textbf\{(.*)\}$")]
        for line in lines
    ]
    marks = [re.search(r"\\textsuperscript\{(\d)\}", line[0]) for line in rows[1:]]
    assert rows[0] == HEADINGS
    assert [mark.group(1) if mark else "" for mark in marks] == MARKS
    assert [[re.sub(r"\\textsuperscript.*", "", line[0]), *line[1:]] for line in rows[1:]] == HUMAN
    assert re.findall(r"^\\par\{\\footnotesize \\textsuperscript\{\d\} (.*)\\par\}$", text, re.M) == NOTES


def check_latex(text):
    """Reads a table as TeX would and gives its number of rows below the headings.

    Braces and the one environment close, every row has as many cells as the environment has columns, nothing is left bare, and no command is unknown.
    """
    body = "".join(line + "\n" for line in text.splitlines() if not line.startswith("%"))
    (columns,) = re.findall(r"(?<!\\)\\begin\{tabular\}\{([lr]+)\}", body)
    depth, inside, cells, rows = 0, False, 1, []
    for token in re.findall(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+|\\.|.", body, re.DOTALL):
        if token in (r"\begin{tabular}", r"\end{tabular}"):
            assert depth == 0 and cells == 1 and inside == (token == r"\end{tabular}")
            inside = not inside
        elif token in "{}":
            depth += 1 if token == "{" else -1
            assert depth >= 0
        elif token in ("&", r"\\"):
            assert inside and depth == 0
            rows += [cells] if token == r"\\" else []
            cells = 1 if token == r"\\" else cells + 1
        elif token.startswith("\\"):
            assert token[1:] in KNOWN_WORDS or token[1:] in "&%$#_{}"
        else:
            assert token not in "$#_%~^<>|" and token.isascii()
    assert depth == 0 and not inside and set(rows) == {len(columns)}
    return len(rows) - 1


KNOWN_WORDS = {  # of LaTeX itself, and of booktabs
    *("textbf", "textsuperscript", "par", "footnotesize", "toprule", "midrule", "bottomrule"),
    *(f"text{name}" for name in ("backslash", "asciitilde", "asciicircum", "bar", "less", "greater")),
}


@pytest.mark.parametrize("worthless", [False, True])
def test_latex_is_valid(worthless):
    hostile = row("\\end{tabular} & _b_ ^2 ~ $x$ #1 {<|>} 5% \\\\", (0.1, 0.2), (0.1, 0.2), note="a & b_c {100% \\")
    found = results(rows=[*ROWS, hostile], command="python run.py\n--a=100%&{", worthless=worthless)
    assert check_latex(to_latex(found)) == len(ROWS) + 1
    assert check_latex(comparisons_to_latex(found)) == len(COMPARISONS)


def test_comparisons_exist_in_every_form():
    text = comparisons_to_latex(results())
    cells = next(line for line in text.splitlines() if line.startswith("PruneRec &")).removesuffix(r" \\").split(" & ", 1)[1]
    assert cells == r"A\_b \& c\textbar{}d*50\% & NDCG@10 & -0.0050 & 95 \%: -0.0100 to +0.0020 & 166 & 3,000"
    (line,) = csv.DictReader(io.StringIO(comparisons_to_csv(results())))
    assert {key: type(value)(line[key]) for key, value in COMPARISONS[0].items()} == COMPARISONS[0]
    assert results().comparisons[0].model_dump(exclude={"confidence"}) == COMPARISONS[0]


def test_only_metrics_where_higher_is_better_are_marked():
    """RecBole says of each metric whether smaller is better."""
    from recbole.evaluator.register import smaller_metrics

    names = [name.lower() for name in METRICS]
    assert sorted(LOWER_IS_BETTER) == sorted(set(names) & set(smaller_metrics))
    rows = [row("A", (0.1, 0.2), (0.1, 0.2)), row("B", (0.2, 0.3), (0.2, 0.3))]
    for number, line in enumerate(rows):
        line["metrics"] = {f"{name}@10": number + 0.25 for name in names}
    heads, cells = markdown_table(to_markdown(results(rows=rows)), "System")
    marked = {heads[place].removesuffix("@10") for line in cells for place, cell in enumerate(line) if cell.startswith("*")}
    assert marked == {heading(f"{name}@").removesuffix("@") for name in names if name not in smaller_metrics}
    assert not any(cell.startswith("*") for cell in cells[0])


def test_latex_specials_are_escaped():
    text = to_latex(results(rows=[row(r"a\b~^{}$#<|>", (0.1, 0.2), (0.1, 0.2))]))
    assert r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}\{\}\$\#\textless{}\textbar{}\textgreater{} & " in text


def test_csv_holds_raw_numbers():
    lines = list(csv.DictReader(io.StringIO(to_csv(results()))))
    assert len(lines) == len(ROWS)
    for line, expected in zip(lines, results().rows, strict=True):
        assert [line["system"], line["step_name"], line["note"]] == [expected.system, expected.step_name or "", expected.note or ""]
        numbers = {
            **{heading(name): value for name, value in expected.metrics.items()},
            **expected.parameters.model_dump(),
            **expected.model_dump(include={"step", "test_rows", "retention", "flops_per_user", "seconds_per_user", "peak_memory_bytes"}),
        }
        assert {name: float(line[name]) if line[name] else None for name in numbers} == numbers
    assert lines[3]["restored"] == "False" and lines[3]["HR@10"] == "0.11" and lines[3]["non_embedding"] == "1020000"


def test_screen_parses_back():
    lines = to_screen(results()).splitlines()
    rule = next(index for index, line in enumerate(lines) if line.startswith("---"))
    spans = [match.span() for match in re.finditer("-+", lines[rule])]
    rows = [[line[start:end].strip() for start, end in spans] for line in lines[rule + 1 : rule + 1 + len(ROWS)]]
    plain = [[cell.removeprefix("*") for cell in line] for line in HUMAN]
    assert [[line[0] if not mark else line[0].removesuffix(f" [{mark}]"), *line[1:]] for line, mark in zip(rows, MARKS, strict=True)] == plain
    assert [f"[{number}] {note}" for number, note in enumerate(NOTES, start=1)] == lines[-3:]
    heads = ["".join(part for line in lines[:rule] if (part := line[start:end].strip())) for start, end in spans]
    assert heads == [text.replace(" ", "") for text in HEADINGS]
    assert max(map(len, lines)) < 180


def test_worthless_runs_say_so_above_every_form():
    smoke, sound = results(worthless=True, preset="quick"), results()
    warning = "These are the figures of a smoke run (preset quick): they are worth nothing."
    assert to_screen(smoke).startswith(f"** {warning} **\n")
    assert to_csv(smoke) == f"# {warning}\n" + to_csv(sound)
    assert f"\\textbf{{{warning}}}\\par\n\\begin{{tabular}}" in to_latex(smoke)
    assert f"\n**{warning}**\n\n| System" in to_markdown(smoke)
    assert not any("smoke" in form(sound) for form in (to_screen, to_csv, to_latex, to_markdown))


def test_other_metrics_get_a_column_and_a_dash_where_absent():
    extra = row("New", (0.2, 0.3), (0.1, 0.2))
    extra["metrics"]["mrr@10"] = 0.25
    heads, rows = markdown_table(to_markdown(results(rows=[ROWS[0], extra])), "System")
    assert heads[7] == "MRR@10" and [line[7] for line in rows] == ["-", "*0.2500"]
    assert [line["MRR@10"] for line in csv.DictReader(io.StringIO(to_csv(results(rows=[ROWS[0], extra]))))] == ["", "0.25"]


@pytest.mark.parametrize(("seconds", "text"), [(0.000123456, "0.123"), (0.0996, "99.6"), (0.09999, "100"), (4.8123, "4,812")])
def test_milliseconds(seconds, text):
    _, rows = markdown_table(to_markdown(results(rows=[row("A", (0.1, 0.2), (0.1, 0.2), seconds_per_user=seconds)])), "System")
    assert rows[0][-2] == text


def test_empty_results_make_tables_without_rows():
    empty = results(rows=[], comparisons=[])
    assert "Comparisons" not in to_markdown(empty) and "System" in to_screen(empty) and r"\toprule" in to_latex(empty)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (950, "", "950"),
        (999.6, "", "1.00 k"),
        (1_020_000, "", "1.02 M"),
        (357_898_112, "", "358 M"),
        (999_999, "", "1.00 M"),
        (35_190_000.0, "FLOP", "35.2 MFLOP"),
        (12.34, "FLOP", "12.3 FLOP"),
        (1e10, "FLOP", "10.0 GFLOP"),
    ],
)
def test_si(value, unit, text):
    assert si(value, unit) == text


FORMS = {"results.md": to_markdown, "results.csv": to_csv, "results.tex": to_latex}
FORMS |= {"comparisons.csv": comparisons_to_csv, "comparisons.tex": comparisons_to_latex}


def test_write_all_writes_every_form(tmp_path):
    found = results()
    write_all(found, RunFolder(tmp_path / "out"))
    assert read_json(tmp_path / "out" / "results.json", Results) == found
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"][3]["restored"] is False
    for name, form in FORMS.items():
        assert (tmp_path / "out" / name).read_text() == form(found)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FORMS, "results.json", "manifest.json"}


def test_without_comparisons_there_are_no_files_of_them(tmp_path):
    write_all(results(comparisons=[]), RunFolder(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.csv", "results.tex", "results.json", "manifest.json"}


@pytest.mark.parametrize("writes", range(2 * (len(FORMS) + 1)))  # the manifest and the file itself, each time
def test_a_failed_write_leaves_whole_files_and_no_finished_run(tmp_path, monkeypatch, writes):
    replace, left = run_folder.os.replace, [writes]

    def fail(*paths):
        if not left[0]:
            raise OSError("disk full")
        left[0] -= 1
        replace(*paths)

    monkeypatch.setattr(run_folder.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_all(results(), RunFolder(tmp_path))
    names = {path.name for path in tmp_path.iterdir()} - {"manifest.json"}
    assert len(names) == writes // 2 and "results.json" not in names
    assert all((tmp_path / name).read_text() == FORMS[name](results()) for name in names)
