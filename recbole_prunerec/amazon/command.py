"""`python -m recbole_prunerec amazon`: a dataset from the raw files of a category."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from recbole_prunerec.amazon.lines import no_file
from recbole_prunerec.amazon.store import raw_dataset
from recbole_prunerec.arguments import parse
from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Group, Rules
from recbole_prunerec.shipped import read_yaml
from recbole_prunerec.validation.sentences import sentences

NAME = re.compile(r"\w[\w.-]*")


class _Given(Group):
    """What of a run's settings the command takes."""

    rules: Rules = Rules()


def amazon(reviews: Path, meta: Path, out: Path, name: str | None, show_progress: bool, settings: Sequence[str]) -> str:
    """Make the dataset of two raw files, and return what to say; `settings` are rules, as `--rules.<key>=<value>`.

    The dataset is called as the file of reviews, unless it has a `name`. Raises `UserError` with every problem of the options, or of the files.
    """
    name = name or re.sub(r"(\.jsonl?)?(\.gz)?$", "", reviews.name)
    problems = [problem for path in (reviews, meta) if (problem := no_file(path))]
    if not NAME.fullmatch(name) or name == "ml-100k":
        problems.append(f"name={name!r}: expected letters, digits, '_', '-' and '.', and not ml-100k, which comes with RecBole; such as --name=games")
    rules = _rules(parse(settings, problems), problems)
    if problems:
        raise UserError("\n".join(problems))
    folder = raw_dataset(reviews, meta, rules, out, name, show_progress)
    place = "" if out == Path("dataset") else f" --data_path={out}"
    return f"{folder}: written, see statistics.md in it; now: python run_recbole.py --model=PruneRec --dataset={name}{place}\n"


def _rules(given: dict[str, str], problems: list[str]) -> Rules:
    """The rules, those of the paper where none is given. Adds to `problems` what is wrong."""
    values: dict[str, Any] = {}
    for path, text in given.items():
        group, _, key = path.partition(".")
        if group != "rules" or not key:
            problems.append(f"unexpected --{path}={text}; this command takes rules, such as --rules.core=5, and see its --help")
            continue
        try:
            values[key] = read_yaml(text, f"--{path}={text}")
        except UserError as error:
            problems.append(str(error))
    try:
        return _Given.model_validate({"rules": values}).rules
    except ValidationError as error:
        problems += sentences(error)
        return Rules()
