"""Problems as sentences: how values, unknown names and pydantic's errors are worded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from recbole_prunerec.errors import nearest
from recbole_prunerec.settings import Depth, Finetune, Group, Mlp, Ranking, Restore, Width

EXPECTED = {  # by pydantic's type of error
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values, such as {{do: finetune}}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_long": "at most {max_length} values",
}
STEPS = ("finetune", "width", "mlp", "depth")
GROUPS: dict[int | str, type[Group]] = {"restore": Restore, "ranking": Ranking, "finetune": Finetune, "width": Width, "mlp": Mlp, "depth": Depth}


def show(value: Any) -> str:
    """A value as a message shows it: as YAML has it, text in quotes."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)


def unknown(got: str, name: str, known: Iterable[str]) -> str:
    """The problem with a name that is not known: the nearest known one, or all of them where none is near."""
    known = list(known)
    return f"{got} is unknown{nearest(name, known) or '; there are ' + ', '.join(known)}"


def sentences(error: ValidationError) -> list[str]:
    """Pydantic's errors as sentences, with paths as the command line writes them: counted from 1."""
    problems = []
    for item in error.errors():
        where = item["loc"]
        tagged = where[0] == "steps" if where else False  # then the third part is the kind of the step, which pydantic puts in
        path = ".".join(str(part + 1) if isinstance(part, int) else part for place, part in enumerate(where) if not (tagged and place == 2))
        kind, value, context = item["type"], item["input"], item.get("ctx", {})
        if kind == "value_error":
            problems += str(context["error"]).splitlines()
        elif kind == "extra_forbidden":
            problems.append(unknown(path, str(where[-1]), GROUPS[where[-2]].model_fields))
        elif kind == "union_tag_not_found":
            problems.append(f"{path}.do is missing; expected one of {', '.join(STEPS)}")
        elif kind == "union_tag_invalid":
            problems.append(unknown(f"{path}.do={value['do']}", str(value["do"]), STEPS))
        elif kind == "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"])
            problems.append(f"{path}={value}: expected one of {', '.join(known)}{nearest(str(value), known)}")
        elif kind == "missing":
            last, parent = where[-1], path.rpartition(".")[0]
            fixed = f"{parent}={show(value)}: expected at least {last + 1} values" if isinstance(last, int) else None  # a list of a fixed length
            problems.append(fixed or f"{path} is missing, and has no default; write --{path}=<value>")
        else:
            expected = EXPECTED.get(kind)
            problems.append(f"{path}={show(value)}: " + (f"expected {expected.format(**context)}" if expected else item["msg"]))
    return problems
