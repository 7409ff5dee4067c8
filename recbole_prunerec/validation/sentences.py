"""Problems as sentences: how values, examples from data, unknown names and pydantic's errors are worded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from recbole_prunerec.errors import nearest
from recbole_prunerec.settings import Depth, Finetune, Group, Mlp, Ranking, Restore, Rules, Tutor, Vocabulary, Width

if TYPE_CHECKING:
    import pandas as pd

EXPECTED = {  # by pydantic's type of error
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_unicode": "text in UTF-8",
    "string_pattern_mismatch": "text that is not blank",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values, such as {{do: finetune}}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_long": "at most {max_length} values",
}
LONGEST = 100  # characters of a value that a message shows
LONGEST_CELL = 60  # of one from a data file, where a message shows several
SHOWN = 3  # examples in a message
STEPS = ("finetune", "vocabulary", "width", "mlp", "depth")
GROUPS: dict[int | str, type[Group]] = {
    "restore": Restore,
    "ranking": Ranking,
    "rules": Rules,
    "tutor": Tutor,
    "finetune": Finetune,
    "vocabulary": Vocabulary,
    "width": Width,
    "mlp": Mlp,
    "depth": Depth,
}


def show(value: Any) -> str:
    """A value as a message shows it: as YAML has it, text in quotes; what is very long is cut."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    shown = str(value) if isinstance(value, date) else repr(value)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def short(text: str) -> str:
    """`text` in quotes, cut where it is long."""
    return repr(text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}...")


def listed(texts: Sequence[str]) -> str:
    """The first of `texts`, and dots where there are more."""
    return ", ".join(texts[:SHOWN]) + (", ..." if len(texts) > SHOWN else "")


def examples(values: pd.Series | Mapping[int, str]) -> str:
    """The first values of a column, given by line, with their lines: `line 7 ('x'), line 9 ('y')`."""
    return listed([f"line {line} ({short(value)})" for line, value in islice(values.items(), SHOWN + 1)])


def unknown(got: str, name: str, known: Iterable[str]) -> str:
    """The problem with a name that is not known: the nearest known one, or all of them where none is near."""
    known = list(known)
    return f"{got} is unknown{nearest(name, known) or '; there are ' + ', '.join(known)}"


def sentences(error: ValidationError) -> list[str]:
    """Pydantic's errors as sentences, with paths as the command line writes them: counted from 1."""
    problems: dict[str, str] = {}  # by place
    for item in error.errors():
        where, kind, value, context = item["loc"], item["type"], item["input"], item.get("ctx", {})
        path, parent, last = _path(where), _path(where[:-1]), where[-1] if where else ""
        if kind == "value_error":
            problems |= {line: line for line in str(context["error"]).splitlines()}
        elif last == "[key]":  # RecBole's keys are judged elsewhere
            continue
        elif kind in ("extra_forbidden", "invalid_key"):
            problems[path] = unknown(f"{parent}.{last}", str(last), GROUPS[where[-2]].model_fields)
        elif kind == "union_tag_not_found":
            problems[path] = f"{path}.do is missing; expected one of {', '.join(STEPS)}"
        elif kind == "union_tag_invalid":
            problems[path] = unknown(f"{path}.do={_bare(value['do'])}", str(value["do"]), STEPS)
        elif kind == "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"])
            problems[path] = f"{path}={_bare(value)}: expected one of {', '.join(known)}{nearest(str(value), known)}"
        elif kind == "missing" and isinstance(last, int):  # a list of a fixed length: one error a place, of which the last tells how many
            problems[parent] = f"{parent}={show(value)}: expected {last + 1} values"
        elif kind == "missing":
            problems[path] = f"{path} is missing, and has no default; write --{path}=<value>"
        elif kind == "float_type" and type(value) is int:  # beyond what a float holds
            problems[path] = f"{path}={show(value)}: expected {EXPECTED['finite_number']}"
        else:
            expected = EXPECTED.get(kind)
            problems[path] = f"{path}={show(value)}: " + (f"expected {expected.format(**context)}" if expected else item["msg"])
    return list(problems.values())


def _bare(value: Any) -> str:
    """Text as it stands, all else as `show` has it: for values that are names."""
    return value if isinstance(value, str) else show(value)


def _path(where: tuple[int | str, ...]) -> str:
    """A place in the settings as the command line writes it. Pydantic puts the kind of a step behind its number; that is left out."""
    parts = [part for place, part in enumerate(where) if not (where[0] == "steps" and place == 2)]
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in parts)
