"""`python -m recbole_prunerec plan` asked in this process, and its report read."""

import re
import shlex

import pytest
import yaml

from recbole_prunerec import __main__ as commands
from recbole_prunerec.errors import UserError


def ask(capsys, *argv: str) -> str:
    commands.main(["plan", *argv])
    return capsys.readouterr().out


def refused(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        commands.main(["plan", *argv])
    return str(caught.value).splitlines()


def table(report: str) -> dict[str, list[str]]:
    """Cells by the first of each line; cells are two spaces or more apart."""
    lines = report.split("\n\n")[1].splitlines()
    rule = next(index for index, line in enumerate(lines) if line.startswith("---"))
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in lines[rule + 1 :])}


def steps(report: str) -> list[dict]:
    """Those to be pasted into a file, which are also those of the command."""
    pasted = yaml.safe_load(re.search(r"^steps: .*$", report, re.MULTILINE)[0])["steps"]
    command = report.splitlines()[-1]
    assert command.startswith("python run_recbole.py --model=PruneRec ")
    assert yaml.safe_load(shlex.split(command)[-1].removeprefix("--steps=")) == pasted
    return pasted
