"""The documents: the page of all settings is current and says what is true, links lead somewhere, and what is named exists."""

import re
import sys
from inspect import get_annotations
from pathlib import Path

import pytest
import yaml
from tiny_run import SETTINGS, TOKENIZER, backbone, samples

from recbole_prunerec import __version__, pipeline
from recbole_prunerec.settings import PruningStep, Settings
from recbole_prunerec.shipped import recbole_defaults
from recbole_prunerec.validation.recbole_keys import REFUSED
from recbole_prunerec.validation.sentences import GROUPS

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
sys.path.insert(0, str(ROOT / "docs"))

import configuration  # noqa: E402

PAGE = configuration.PAGE.read_text(encoding="utf-8")
GROUPS = {"Every pruning step": PruningStep, **GROUPS}


def tables():
    """The rows of every table of keys by the heading above it: a key, then its cells by the table's heads."""
    found, heading = {}, ""
    for line in PAGE.splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("| Key"):
            heads = [cell.strip() for cell in line.split("|")[1:-1]]
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(heading, {})[cells[0].strip("`")] = dict(zip(heads, cells, strict=True))
    return found


TABLES = tables()
RUN = {key: row for heading, rows in TABLES.items() if heading not in (*GROUPS, "Refused") for key, row in rows.items()}


def test_the_page_is_current():
    assert configuration.page() == PAGE, "run python docs/configuration.py"


def test_every_key_is_there_and_described():
    assert list(RUN) == list(Settings.model_fields)
    rows = dict(RUN)
    for heading, group in GROUPS.items():
        assert list(TABLES[heading]) == list(get_annotations(group))  # what it inherits stands with those it has it from
        rows |= {f"{heading}.{key}": row for key, row in TABLES[heading].items()}
    assert [key for key, row in rows.items() if len(row["Description"]) < 5 or not row["Type"]] == []
    assert not any(re.search(r"\bNone\b|ignore\[|noqa", row["Description"]) for row in rows.values())


@pytest.mark.parametrize(
    ("heading", "key", "kind", "default"),
    [
        (None, "topk", "list; each: whole number, at least 1", "`[10, 20]`"),
        (None, "test_rows", "whole number, at least 1, or null", "`3000`"),
        (None, "teacher", "text, or null", "`null`"),
        (None, "split", "`global_time` or `leave_one_out`", "`global_time`"),
        (None, "adam_betas", "list of 2; each: number, at least 0, below 1", "`[0.9, 0.999]`"),
        (None, "learning_rate", "number, above 0", "`0.0003`"),
        (None, "packing", "true or false", "`true`"),
        (None, "steps", "list; each: step", "`[{do: finetune}]`"),
        (None, "baselines", "keys and values", "`{}`"),
        ("width", "heads", "whole number, at least 1", "(needed)"),
        ("width", "recursion", "number from 0 to 1", "`0.7`"),
        ("width", "kv_policy", "`expand`, `group`, `balanced` or `merge`", "`group`"),
        ("mlp", "tau", "number, at least 0, or null", "`null`"),
        ("restore", "epochs", "whole number, at least 0", "`3`"),
    ],
)
def test_types_and_defaults_are_in_plain_words(heading, key, kind, default):
    row = TABLES[heading][key] if heading else RUN[key]
    assert (row["Type"], row["Default"]) == (kind, default)


def test_presets_are_what_their_files_say():
    for preset in ("tiny", "paper"):
        content = yaml.safe_load((ROOT / "properties" / "preset" / f"{preset}.yaml").read_text())
        said = {key: yaml.safe_load(row[f"`{preset}`"].strip("`")) for key, row in RUN.items() if row[f"`{preset}`"]}
        assert said == content
        for step in content["steps"]:
            rows = TABLES[step["do"]] | TABLES["Every pruning step"]
            assert {key: yaml.safe_load(row[f"`{preset}`"].strip("`")) for key, row in rows.items() if row[f"`{preset}`"]} == step
        assert TABLES["restore"]["epochs"][f"`{preset}`"] == f"`{content['restore']['epochs']}`"


def test_recboles_keys_are_all_accounted_for():
    about = PAGE.partition("## RecBole's keys")[2]
    named = set(re.findall(r"`(\w+)`", about.partition("### Refused")[0]))
    assert set(recbole_defaults(())) <= named | set(REFUSED)
    assert {key: row["Why"] for key, row in TABLES["Refused"].items()} == REFUSED
    assert "`user_inter_num_interval` (`'[5,inf)'`)" in " ".join(about.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a whole run of the tiny model."""
    folder = tmp_path_factory.mktemp("run") / "latest"
    pipeline.run(backbone(), TOKENIZER, samples(), SETTINGS, folder)
    return folder


def test_every_file_that_a_run_leaves_is_explained(run):
    named = set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "run_folder.md").read_text(encoding="utf-8")))
    steps = {path for path in run.iterdir() if path.name[0].isdigit()}
    assert {path.name for path in steps} == {"1-finetune", "2-width", "3-mlp", "4-depth"}
    left = {path.name for step in steps for path in step.iterdir()}
    left |= {path.name + "/" if path.is_dir() else path.name for path in set(run.iterdir()) - steps}
    assert {"plan.json", "tensorboard/", "manifest.json"} <= left
    explained = named | {name.split("/")[0] + "/" for name in named if "/" in name}
    assert left - explained == set()


def test_the_readmes_python_works(run, tmp_path, monkeypatch):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "latest").symlink_to(run, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    titles = {f"m{number}": f"Film {number}" for number in range(24)}
    histories = {f"u{user}": [f"m{(user * 5 + place) % 24}" for place in range(8)] for user in range(24)}
    names = {"histories": histories, "titles": titles}
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert {item.title for item in names["answer"]} == set(names["recommender"].catalogue.titles[1:])  # fewer than 20
    assert isinstance(names["title"], str) and names["model"].config.num_hidden_layers == 2
    assert [record.name for record in names["records"]] == ["finetune", "depth"]
    assert yaml.safe_load((tmp_path / "saved" / "mine" / "2-depth" / "config.json").read_text())["num_hidden_layers"] == 1


def test_versions_and_licence_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["license"] == "MIT"
    assert citation["authors"] == [{"name": "The PruneRec developers"}]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License\n") and "The PruneRec developers" in licence
    (paper,) = citation["references"]
    assert "2507.07064" in paper["url"] and [author["family-names"] for author in paper["authors"]] == [
        "Zheng",
        "Bao",
        "Zhang",
        "Zhang",
        "Feng",
        "He",
    ]


def test_the_papers_equations_are_all_there_in_order():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"\\tag\{(\d+)\}", text)] == list(range(1, 14))
    sections = [int(number) for number in re.findall(r"^## (\d)\. ", text, re.MULTILINE)]
    assert sections == list(range(1, 9))
    cited = {int(n) for path in (ROOT / "recbole_prunerec").rglob("*.py") for n in re.findall(r"METHOD (\d)", path.read_text(encoding="utf-8"))}
    assert cited <= set(sections)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_prose_are_short(page):
    prose = [line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith(("|", "> ", "![", "    "))]
    assert [line for line in prose if len(line) > 160] == []
