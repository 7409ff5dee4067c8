"""The README's promises: its two commands, and a table that was made and not typed."""

import configparser
import csv
import re
import shlex
import sys
from pathlib import Path

from hf_folder import write_folder

from recbole_prunerec.__main__ import main
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.report.results import Results
from recbole_prunerec.shipped import properties
from recbole_prunerec.storage import read_json
from recbole_prunerec.study.systems import RECOMMENDERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "docs"))

import readme_table  # noqa: E402


def test_the_two_commands_stand_at_the_top_and_ci_runs_the_second():
    install, test = (
        "pip install -c constraints.txt -e . && python run_recbole.py --model=PruneRec",
        'pip install -c constraints.txt -e ".[test]" && pytest',
    )
    assert [line.strip() for line in README.splitlines() if line.startswith("    pip")] == [install, test]
    assert test in (ROOT / ".ci" / "run").read_text()


def test_the_table_is_made_from_the_stored_results():
    results = read_json(readme_table.STORED, Results)
    assert readme_table.with_table(README, results) == README
    assert results.preset == "tiny" and not results.worthless and results.command == "python run_recbole.py --model=PruneRec"


def test_the_result_is_made_from_the_stored_numbers():
    """Every system of the comparison has its row, and stands before all other tables."""
    text = readme_table.RESULT.read_text(encoding="utf-8")
    assert readme_table.with_result(README, text) == README
    stored = [row["system"] for row in csv.DictReader(text.splitlines())]
    table = README[README.index(readme_table.BEGIN_RESULT) : README.index(readme_table.END_RESULT)]
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:] == stored
    assert {"BIGRec", "PruneRec"} < set(stored) and README.index(readme_table.BEGIN_RESULT) < README.index(readme_table.BEGIN)


def test_the_comparison_is_made_from_the_stored_numbers():
    """Every recommender has its row; the highest values are bold, and what is not there is said so."""
    text = readme_table.COMPARED.read_text(encoding="utf-8")
    assert readme_table.with_comparison(README, text) == README
    table = README[README.index(readme_table.BEGIN_COMPARED) : README.index(readme_table.END_COMPARED)]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    rows = {name: values for name, *values in cells if name != "System" and not name.startswith(":")}
    stored = {row["system"]: row for row in csv.DictReader(text.splitlines()) if row["group"] == "recommenders"}
    assert set(rows) == set(stored) == set(RECOMMENDERS)
    best = max((name for name in stored if stored[name]["NDCG@10"]), key=lambda name: float(stored[name]["NDCG@10"]))
    assert rows[best][1] == f"**{float(stored[best]['NDCG@10']):.4f}**"
    assert rows["BIGRec"][2] == "100.0 %" and all(all(cells) for cells in rows.values())


def test_the_stored_run_learned():
    """The bars that the default recipe has to clear, on what was measured."""
    results = read_json(readme_table.STORED, Results)
    rows = {row.system: row for row in results.rows if row.test_rows == max(row.test_rows for row in results.rows)}
    teacher, popularity = rows["BIGRec (teacher)"].metrics, rows["Pop"].metrics
    assert rows["Pop"].test_rows >= 3000
    for metric in ("hit@10", "ndcg@10"):
        assert teacher[metric] > 2 * popularity[metric]
        against = next(each for each in results.comparisons if (each.system, each.against, each.metric) == ("PruneRec", "Pop", metric))
        assert against.low > 0


def test_every_command_is_valid(tmp_path, monkeypatch):
    """Each example as it stands, with a model where it expects one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("saved/latest/1-finetune", "path/to/model"):
        write_folder(Path(folder), **properties("backbone", "tiny"))
    for name, content in zip(("interactions", "items"), re.findall(r"```csv\n(.*?)```", README, re.DOTALL), strict=True):
        Path(f"{name}.csv").write_text(content)
    (atomic,) = (shlex.split(line, comments=True) for line in README.splitlines() if line.startswith("python -m recbole_prunerec atomic"))
    main(atomic[3:])
    assert Path("dataset/mine/mine.item").read_text() == 'item_id:token\ttitle:token_seq\nb1\tWar, and "Peace"\nb2\tHeat\n'
    commands = [shlex.split(line, comments=True) for line in README.splitlines() if line.startswith("python run_recbole.py")]
    assert len(commands) == 10
    for command in commands:
        steps = ["--preset=tiny"] if "path/to/model" in " ".join(command) else []  # the paper's sizes are for its own backbone
        load_arguments(command[2:] + steps)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_constraints_name_every_dependency_and_no_build_of_torch():
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = "\n".join([config["options"]["install_requires"], *config["options.extras_require"].values()]).split()
    names = {re.split(r"[<>=;]", word)[0].lower().replace("_", "-") for word in wanted if re.match(r"[A-Za-z]", word)} - {"python-version"}
    assert {name for name in names if name not in pinned} <= {"tokenizers", "pytest"} and "tokenizers" in pinned
