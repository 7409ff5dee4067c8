"""The tables in every form, and the page, read back by parsers."""

import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import combinations

import pytest
from made_runs import made_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from recbole_prunerec.study.gathered import Spread, gather
from recbole_prunerec.study.output import write
from recbole_prunerec.study.page import inline
from recbole_prunerec.study.pictures import against
from recbole_prunerec.study.runs import Run
from recbole_prunerec.study.systems import RECOMMENDERS, SYSTEMS
from recbole_prunerec.study.written import places, to_csv, to_latex, to_markdown

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
VOID = {"meta", "br", "img", "link", "hr", "input"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root, runs = tmp_path_factory.mktemp("runs"), []
    for seed in (1, 2):
        runs.append(made_run(root, "SASRec", seed, [1, 1, 3, 3, 3, 3], flops_per_user=None, note="<not> converged: 2 | 3 & more"))
        runs.append(made_run(root, "GRU4Rec", seed, [3] * 6))
        took = {"step_seconds": 90.0, "training_memory_bytes": 3 * 2**20}
        runs.append(made_run(root, "BIGRec", seed, [1] * 6, name="1-finetune", step=1, step_name="finetune", retention=1.0, **took))
        runs.append(made_run(root, "PruneRec", seed, [1] * (5 - seed) + [3] * (1 + seed), name="4-depth", step=4, step_name="depth", restored=True))
        runs.append(Run(system="Caser", seed=seed, command="python run_recbole.py", failure="out of memory"))
    return gather(runs, SYSTEMS, "python baselines/compare.py --seeds=2")


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    write(study, out, out / "page.md")
    return out / "comparison.html"


def line_of(study, name):
    return next(line for line in study.lines if line.system == name)


def pipe_rows(text, first):
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    start = next(place for place, line in enumerate(cells) if line[0] == first)
    return cells[start], [line for line in cells[start + 2 :] if len(line) == len(cells[start])]


def test_no_cell_of_the_table_is_empty_and_what_cannot_be_told_is_said_so(study):
    heads, rows = pipe_rows(to_markdown(study), "System")
    assert heads[:4] == ["System", "Seeds", "HR@1", "HR@2"] and all(cell for row in rows for cell in row)
    table = {re.sub(r"<.*", "", row[0]): dict(zip(heads, row, strict=True)) for row in rows}
    assert set(table["Caser"].values()) == {"Caser<sup>2</sup>", "0", "n/a"}
    assert table["SASRec"]["FLOPs/user"] == "n/a" and table["PruneRec"]["FLOPs/user"] == "5.00 MFLOP"
    assert table["PruneRec"]["HR@1"] == "*0.5833 ± 0.1179*" and table["BIGRec"]["HR@1"] == "**1.0000 ± 0.0000**"
    assert table["GRU4Rec"]["HR@1"] == "0.0000 ± 0.0000"


def test_the_steps_have_a_table_of_their_own_in_which_what_is_unknown_is_said_so(study):
    heads, rows = pipe_rows(to_markdown(study), "Step")
    assert heads[-6:] == ["Retention", "Non-embedding parameters", "All parameters", "ms/user", "Minutes", "Training memory (MiB)"]
    teacher, depth = (dict(zip(heads, row, strict=True)) for row in rows)
    assert (teacher["Step"], teacher["HR@1"], teacher["Retention"], teacher["Minutes"]) == ("1 finetune", "1.0000", "100.0 %", "1.5")
    assert teacher["Training memory (MiB)"] == "3"
    unknown = study.model_copy(update={"steps": tuple(row.model_copy(update={"step_seconds": None}) for row in study.steps)})
    assert "Minutes" not in pipe_rows(to_markdown(unknown), "Step")[0]
    assert (depth["Step"], depth["Rows"], depth["Retention"], depth["Minutes"], depth["Training memory (MiB)"]) == ("4 depth", "6", *["n/a"] * 3)


def test_best_and_second_best_are_those_with_the_highest_means(study):
    assert places(study, "hit@1") == {"BIGRec": 1, "PruneRec": 2}
    lines = [line.model_copy(update={"metrics": {"giniindex@1": each}}) for line in study.lines for each in line.metrics.values()]
    assert places(study.model_copy(update={"lines": tuple(lines)}), "giniindex@1") == {}  # lower is better


def test_csv_has_raw_numbers(study):
    rows = {row["system"]: row for row in csv.DictReader(io.StringIO(to_csv(study)))}
    assert float(rows["PruneRec"]["HR@1"]) == pytest.approx((4 / 6 + 3 / 6) / 2)
    assert float(rows["PruneRec"]["HR@1 deviation"]) == pytest.approx((1 / 6) / 2**0.5)
    assert (rows["Caser"]["HR@1"], rows["Caser"]["seeds"], rows["Caser"]["note"]) == ("", "0", "failed: out of memory")


def test_latex_escapes_and_marks(study):
    text = to_latex(study)
    assert r"\underline{0.5833 $\pm$ 0.1179}" in text and r"\textbf{1.0000 $\pm$ 0.0000}" in text
    assert r"\textless{}not\textgreater{} converged: 2 \textbar{} 3 \& more" in text
    assert r"58.3 \% $\pm$ 11.8 \% (0.0 to 100.0)" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2


class Reader(HTMLParser):
    """Tables by id, ids, what is fetched, and whether tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.fetched, self.tables, self.row = [], [], [], {}, None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.fetched += [value for key, value in given.items() if key in ("src", "href", "xlink:href") and not value.startswith("#")]
        if tag == "table" and "id" in given:
            self.rows = self.tables[given["id"]] = []
        elif tag == "table":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_the_page_stands_alone_and_has_both_tables_and_the_pictures(page, study):
    text = page.read_text(encoding="utf-8")
    found = Reader(text)
    assert found.fetched == [] and "@import" not in text and "fetch(" not in text
    assert len(found.ids) == len(set(found.ids))
    assert [row[0] for row in found.tables["systems"]] == ["System", "SASRec1", "GRU4Rec", "Caser2", "BIGRec", "PruneRec"]
    assert all(cell for row in found.tables["systems"] for cell in row)
    assert len(found.tables["differences"]) == 1 + len(study.differences)
    assert text.count("<svg") == 4 and "&lt;not&gt; converged: 2 | 3 &amp; more" in text


def test_ids_of_pictures_are_told_apart():
    svg = '<?xml version="1.0"?>\n<svg><metadata><x/></metadata><g id="a"/><use xlink:href="#a"/><p style="clip-path: url(#a)"/></svg>'
    assert inline(svg, "one") == '<svg><g id="one-a"/><use xlink:href="#one-a"/><p style="clip-path: url(#one-a)"/></svg>'


def test_what_was_written_by_hand_below_a_page_stays(study, tmp_path):
    page = tmp_path / "page.md"
    write(study, tmp_path, page)
    made = page.read_text(encoding="utf-8")
    page.write_text(made.replace("#", "§") + "\n## What to try next\n\nMore of it.\n", encoding="utf-8")
    for _ in range(2):
        write(study, tmp_path, page)
        assert page.read_text(encoding="utf-8") == made + "\n## What to try next\n\nMore of it.\n"


def test_the_page_in_markdown_has_pictures_and_numbers_beside_it(page, study):
    text = page.with_name("page.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[\]\((.*?)\)", text)
    assert pictures == ["page-size.png", "page-speed.png", "page-steps.png", "page-differences.png"]
    assert page.with_name("page.csv").read_text(encoding="utf-8") == to_csv(study)
    assert all((page.parent / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert text.startswith("# made, tiny\n") and "loss_type: CE" in text  # the systems' YAML


def test_names_in_a_picture_meet_neither_one_another_nor_a_point(study):
    """Ten systems of the same size and quality, or nearly so."""
    names = [name for name in RECOMMENDERS if name != "BIGRec"][:10]
    metrics = [{"ndcg@2": Spread(mean=0.4 + 0.001 * place)} for place in range(len(names))]
    near = [line_of(study, "GRU4Rec").model_copy(update={"system": name, "metrics": each}) for name, each in zip(names, metrics, strict=True)]
    figure = against(study.model_copy(update={"lines": tuple(near)}), "ndcg@2", dict.fromkeys(names, 30.0), "all parameters")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    boxes = {text.get_text(): Text.get_window_extent(text, renderer) for text in axes.texts}
    assert set(boxes) == set(names)
    assert not any(one.overlaps(other) for one, other in combinations(boxes.values(), 2))
    assert all(axes.bbox.contains(*corner) for box in boxes.values() for corner in (box.min, box.max))
    points = [axes.transData.transform((30.0, line.metrics["ndcg@2"].mean)) for line in near]
    assert not any(box.contains(*point) for box in boxes.values() for point in points)


@pytest.mark.browser
def test_a_browser_sorts_the_table(page, tmp_path):
    """Headless Chromium runs the page's script: a click on a metric's head puts the best first and n/a last, and a second one turns it round."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    clicks = """<script>
      const told = [];
      const systems = document.querySelector("#systems");
      const names = () => [...systems.tBodies[0].rows].map((row) => row.cells[0].firstChild.textContent).join(",");
      for (const column of [2, 2, 0]) { systems.tHead.rows[0].cells[column].querySelector("button").click(); told.push(names()); }
      document.title = told.join(";");
    </script></body>"""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", clicks), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    falling, rising, by_name = re.search(r"<title>(.*?)</title>", shown)[1].split(";")
    assert falling.split(",") == ["BIGRec", "PruneRec", "SASRec", "GRU4Rec", "Caser"]
    assert rising.split(",") == ["GRU4Rec", "SASRec", "PruneRec", "BIGRec", "Caser"]
    assert by_name.split(",") == ["BIGRec", "Caser", "GRU4Rec", "PruneRec", "SASRec"]
