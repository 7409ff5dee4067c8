"""What a recommender is asked and where it lies, judged before anything heavy is imported: options, folder, histories."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from recbole_prunerec.backbone.files import backbone_config
from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.settings import Ranking, Settings
from recbole_prunerec.text.wording import CATALOGUE
from recbole_prunerec.text.wording import FILE as WORDING
from recbole_prunerec.validation.conflicts import conflicts
from recbole_prunerec.validation.partial import Partial
from recbole_prunerec.validation.sentences import sentences, short, show, unknown

BESIDE_DATA = ("assistant", "assistant_weight", "popularity_weight")  # what only ranking test rows has a use for
OPTIONS = tuple(key for key in Ranking.model_fields if key not in BESIDE_DATA)
DTYPES = ("float32", "bfloat16")


def ranking_options(options: Mapping[str, Any], device: str = "auto", dtype: str = "float32") -> Ranking:
    """`options`, keys of settings.Ranking, as such. Raises one `UserError` with every problem, also of `device` and `dtype`."""
    problems = [unknown(key, key, [*OPTIONS, "device", "dtype", "revision"]) for key in options if key not in OPTIONS]
    values = {"ranking": {key: value for key, value in options.items() if key in OPTIONS}, "device": device, "topk": [1]}
    ranking = Ranking()
    try:
        ranking = Settings.model_validate(values).ranking
    except ValidationError as error:
        found = sentences(error)
        if any(part["loc"] for part in error.errors()):  # otherwise these are conflicts
            found += conflicts(cast(Settings, Partial(Settings, values)))
        problems += [problem.replace("ranking.", "") for problem in found]
    if options.get("search") == "grounding":
        problems.append("search=grounding ranks by distance and knows no probabilities; choose search=beam or search=exact")
    if dtype not in DTYPES:
        problems.append(f"dtype={show(dtype)}: expected one of {', '.join(DTYPES)}{nearest(str(dtype), DTYPES)}")
    if problems:
        raise UserError("\n".join(problems))
    return ranking


def model_folder(name: str, hub: bool = True, revision: str | None = None) -> Path:
    """The local folder of the model `name`, a folder or a name on the hub (there at `revision`), with the catalogue that it recommends from.

    Without `hub` a name there is taken to be right. Raises `UserError` where it is none, or has no catalogue.
    """
    folder = Path(name)
    if backbone_config("model", name) is None:
        if not hub:
            return folder
        from recbole_prunerec.backbone.hub import hub_folder

        folder = hub_folder(name, "model", revision=revision)
    elif revision is not None:
        raise UserError(f"revision={revision} is for models on the hub, and model={name} is here; leave it out")
    missing = [file for file in (CATALOGUE, WORDING) if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"model={name} has no {' and no '.join(missing)}, which say what it recommends and how it is asked; give the folder of a step, "
            "such as saved/latest/4-depth, or write them there with Prompts(...).save(folder)"
        )
    return folder


def count_problem(k: Any) -> str | None:
    """What is wrong with a number of items; None where nothing is."""
    return None if type(k) is int and k > 0 else f"k={show(k)}: expected a whole number, at least 1"


def history_problem(history: Any) -> str | None:
    """What is wrong with a history, which must be a list of titles, the oldest first; it may be empty. None where nothing is."""
    expected = "expected a list of titles, the oldest first"
    if isinstance(history, str) or not isinstance(history, (list, tuple)):
        return f"got {show(history)}; {expected}"
    problem = next(filter(None, map(title_problem, history)), None)
    return f"got the title {problem}; {expected}" if problem else None


def title_problem(title: Any) -> str | None:
    """Why `title` is none, with what it is; None where it is one."""
    if not isinstance(title, str):
        return f"{show(title)}, which is not text"
    if not title.strip():
        return f"{show(title)}, which is blank"
    return f"{short(title)}, which is not text in UTF-8" if any("\ud800" <= sign <= "\udfff" for sign in title) else None
