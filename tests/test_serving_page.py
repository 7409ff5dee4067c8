"""docs/serving.md: every block of code is run, in order, beside a run's folder."""

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

from served_folder import CATALOGUE, TITLES, write_served

from recbole_prunerec.__main__ import main
from recbole_prunerec.ranking.recommender import Recommendation
from recbole_prunerec.ranking.serving import OPTIONS
from recbole_prunerec.text.catalogue import Catalogue

PAGE = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_block_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_served(Path("saved/latest/4-depth"), catalogue=replace(CATALOGUE, tokens=(*CATALOGUE.tokens[:-1], "1412")))
    (users,) = (block for kind, block in BLOCKS if kind == "json")
    Path("users.jsonl").write_text(users)
    names, commands = {}, []
    for kind, block in BLOCKS:
        if kind == "python":
            exec(block, names)
        elif kind == "sh":
            for line in map(shlex.split, block.splitlines()):
                commands.append(line)
                if line[0] == "python":
                    main(line[3:])
                else:
                    subprocess.run(line, check=True)
    assert [kind for kind, _ in BLOCKS].count("python") == 4 and [line[0] for line in commands] == ["python"] * 3 + ["cp"]
    assert len(names["answer"]) == 8 and all(isinstance(item, Recommendation) for item in names["items"]) and names["proven"]
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [answer.get("user") for answer in answers] == ["ann", None]
    assert [len(answer["recommendations"]) for answer in answers] == [10, 8]  # two films called Heat are seen
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[0] == "Rank" and printed[1].split()[0] == "1" and all(json.loads(line)["proven"] for line in printed[-2:])
    catalogue = Catalogue.load(Path("my-model"))
    assert catalogue.tokens == (*CATALOGUE.tokens[:-1], "1683") and catalogue.titles[-1] == "Dune: Part Two"
    assert len(names["titles"]) == 5 and {title.partition('"')[0] for title in names["titles"]} <= set(TITLES)


def test_the_page_names_every_option_and_file():
    assert all(f"`{option}`" in PAGE for option in (*OPTIONS, "catalogue.json", "prompts.json", "trie.safetensors"))
