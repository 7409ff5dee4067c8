"""What is wrong with the settings of the compared systems that are ours, as far as no single key can tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_prunerec.compared.systems import OURS, TAUGHT, shared_keys
from recbole_prunerec.shipped import model_defaults, recbole_models
from recbole_prunerec.text.wording import CATALOGUE
from recbole_prunerec.text.wording import FILE as WORDING

LIST_WEIGHTS = ("position_weight", "confidence_weight", "consistency_weight")


def teacher_problems(models: Iterable[str], teacher: str | None) -> list[str]:
    """Whether those of `models` that learn from a fine-tuned model have one: `teacher`, or in a run with PruneRec its own."""
    models = list(models)
    taught = [name for name in TAUGHT if name in models]
    if not taught:
        return []
    if teacher is None:
        wanted = "name one, such as --teacher=saved/latest/1-finetune, or add PruneRec to model, whose fine-tuned model then teaches"
        return [] if "PruneRec" in models else [f"model={name} learns from a fine-tuned model, and there is none; {wanted}" for name in taught]
    missing = [file for file in (CATALOGUE, WORDING) if not (Path(teacher) / file).is_file()]
    if missing and Path(teacher).is_dir():
        which = f"teacher={teacher} has no {' and no '.join(missing)}, which say what it recommends and how it is asked"
        return [f"{which}; give the folder of a step, such as saved/latest/1-finetune"]
    return []


def key_problems(models: Iterable[str], given: Mapping[str, Any], layers: int | None) -> list[str]:
    """What in `given`, RecBole's keys and under a model's name those of it alone, does not fit together. `layers` has the backbone, if that is known.

    Values of a wrong type are reported elsewhere.
    """
    known = [*OURS, *recbole_models()]
    problems = []
    for model in (name for name in models if name in OURS):
        own = given.get(model) if isinstance(given.get(model), dict) else {}
        values = {**model_defaults(model), **shared_keys(given, known), **(own or {})}
        if model == "DLLM2Rec" and values["distill_weight"] and all(values[key] == 0 for key in LIST_WEIGHTS):
            problems.append(f"{', '.join(LIST_WEIGHTS)} are all 0, so that no item of a teacher's list counts; give one, or distill_weight=0")
        if model == "SLMRec" and layers is not None and type(values["student_layers"]) is int:
            of_teacher = {**model_defaults("E4SRec"), **shared_keys(given, known), **(given.get("E4SRec") or {})}["llm_layers"]
            most = min(of_teacher, layers) if type(of_teacher) is int else layers
            if values["student_layers"] > most:
                got = f"student_layers={values['student_layers']}"
                problems.append(f"{got} is more than the {most} layers of its teacher E4SRec; choose at most {most}")
    return problems
