"""`python -m recbole_prunerec plan`: which shapes of a backbone meet a budget of parameters. Here what is asked is judged, without a heavy import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os.path import isdir  # unlike that of Path, False for a name that no file can have
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError

from recbole_prunerec.arguments import WORDS, Arguments, load_arguments, parse, preset_of
from recbole_prunerec.backbone.files import folder_config, judge_backbone
from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.prune.shapes import KvPolicy
from recbole_prunerec.settings import Count, Group, Settings
from recbole_prunerec.shipped import read_yaml, recbole_defaults
from recbole_prunerec.validation.sentences import sentences

Made = TypeVar("Made")
SHORT: dict[str, Any] = {"restore": {"epochs": 1}}  # the restoration of a probe, where nothing else is given


class Wanted(Group):
    """What the shapes have to be."""

    budget: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, strict=True)] = 0.05  # share of the backbone's parameters that stays
    count: Literal["total", "non_embedding"] = "total"  # the parameters that the budget counts: all, or those that are no embedding
    kv_policy: KvPolicy = "group"  # which key/value heads stay
    round_to: Count = 16  # hidden and intermediate are multiples of it
    vocab: Count | None = None  # tokens that stay; None: the titles tell, or all
    shapes: Count | None = None  # how many are shown or probed; None: 10, and 4 with a probe


class Question(NamedTuple):
    """What is asked, judged as far as it can be without the network."""

    wanted: Wanted
    settings: Settings  # whose step stands for those that a plan is to find
    config: Mapping[str, Any] | None  # of the backbone or teacher; None: on the hub
    titles: bool  # whether a dataset is named
    probe: bool
    fresh: bool
    dry_run: bool
    yes: bool  # to a large download of the data
    given: Mapping[str, str]  # arguments by key that a run with the steps takes, too

    @property
    def key(self) -> Literal["backbone", "teacher"]:
        """What is pruned: the setting that names it."""
        return self.settings.start[0]

    @property
    def name(self) -> str:
        """What is pruned, by the name that it was given."""
        return self.settings.start[1]

    @property
    def got(self) -> str:
        """How messages name it."""
        return f"{self.key}={self.name}"


def plan(backbone: str, teacher: str | None, dataset: str | None, probe: bool, settings: Sequence[str], **options: str | None) -> str:
    """The shapes of a backbone, or of a fine-tuned teacher, that meet a budget, and the steps that lead to the best.

    `options` are keys of `Wanted` as text, `settings` further arguments as run_recbole.py takes them. Raises one `UserError` with all that is wrong.
    """
    question = judged(backbone, teacher, dataset, probe, settings, options)
    from recbole_prunerec.planning.proposal import proposal  # takes seconds to import; mistakes are answered before

    return proposal(question)


def judged(backbone: str, teacher: str | None, dataset: str | None, probe: bool, argv: Sequence[str], options: Mapping[str, str | None]) -> Question:
    """The question that the command line asks. Raises one `UserError` with every problem."""
    problems: list[str] = []
    named = {"dataset": dataset, **options}
    given = parse([*(f"--{key}={text}" for key, text in named.items() if text is not None), *argv], problems)
    wanted = _wanted({key: given.pop(key) for key in list(given) if key in Wanted.model_fields}, problems)
    given = _without_misspelt(given, problems)
    key, name = ("backbone", backbone) if teacher is None else ("teacher", teacher)
    below, pruned = SHORT if probe else {}, {"backbone": backbone, "teacher": teacher}
    without_weights = not probe and isdir(name)
    if without_weights:  # "tiny" stands in for what is judged below, as if for a run
        pruned = {"backbone": "tiny", "teacher": None}
        below = {} if "preset" in given else {"preset": preset_of(backbone)}
    first = "vocabulary" if pruned["teacher"] else "finetune"  # stands for the steps, of which there must be one
    fixed = {"model": ["PruneRec"], "compare": [], **pruned, "steps": [{"do": first}]}
    arguments = _tried(lambda: load_arguments([f"--{key}={value}" for key, value in given.items()], below, fixed), problems)
    parts = ("tokenizer",) if dataset is not None else ()
    if without_weights:
        problems = [problem.replace("got backbone=tiny", f"got {key}={name}") for problem in problems]
        config = _tried(lambda: folder_config(f"{key}={name}", Path(name), parts), problems)
    else:
        config, _ = judge_backbone(key, name)  # its problems are among those of the arguments
    arguments = arguments or Arguments(Settings.model_validate({}), False)
    settings = arguments.settings.model_copy(update={"backbone": backbone, "teacher": teacher})
    runs = {**({} if teacher is None else {"teacher": teacher}), **{key: value for key, value in given.items() if key not in WORDS}}
    question = Question(wanted, settings, config, dataset is not None, probe, arguments.fresh, arguments.dry_run, arguments.yes, runs)
    problems += _conflicts(question)
    if config is not None:
        problems += size_problems(wanted, config)
    if problems:
        raise UserError("\n".join(problems))
    return question


def _tried(make: Callable[[], Made], problems: list[str]) -> Made | None:
    """What `make` gives, or None and its problems."""
    try:
        return make()
    except UserError as error:
        problems += str(error).splitlines()
        return None


def _wanted(options: Mapping[str, str], problems: list[str]) -> Wanted:
    """The options, which are text; the default of each that is wrong."""
    values = {key: _tried(partial(read_yaml, text, f"--{key}={text}"), problems) for key, text in options.items()}
    values = {key: value for key, value in values.items() if value is not None}
    try:
        return Wanted.model_validate(values)
    except ValidationError as error:
        problems += sentences(error)
        wrong = {item["loc"][0] for item in error.errors()}
        return Wanted.model_validate({key: value for key, value in values.items() if key not in wrong})


def _without_misspelt(given: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """`given` without what is a misspelt option of the plan's own; settings are judged elsewhere."""
    known = {*Settings.model_fields, *recbole_defaults(()), *WORDS, "config_files"}
    hints = {key: nearest(key, Wanted.model_fields) for key in given if key.partition(".")[0] not in known}
    problems += [f"{key} is unknown{hint}" for key, hint in hints.items() if hint]
    return {key: value for key, value in given.items() if not hints.get(key)}


def _conflicts(question: Question) -> list[str]:
    """What does not fit together."""
    wanted, settings, problems = question.wanted, question.settings, []
    if question.probe and not question.titles:
        problems.append("--probe trains and ranks, and no data are named; add --dataset=<name>, such as ml-100k")
    for key, name in (("ranking.assistant", settings.ranking.assistant), ("tutor.model", settings.tutor.model)):
        if question.probe and name is not None:
            problems.append(f"{key}={name} cannot help in a probe, which trains no other model; leave it out")
    if wanted.vocab is not None and question.titles:
        problems.append(f"vocab={wanted.vocab} is told by the titles of dataset={settings.dataset}; leave one of the two out")
    for word, does in (("fresh", "starts a probe anew"), ("dry_run", "tells what a probe takes")):
        if getattr(question, word) and not question.probe:
            problems.append(f"--{word} {does}, and there is none; add --probe, or leave it out")
    return problems


def size_problems(wanted: Wanted, config: Mapping[str, Any]) -> list[str]:
    """What of the options does not fit the backbone of `config`."""
    problems, hidden, vocab = [], config["hidden_size"], config["vocab_size"]
    if wanted.round_to > hidden:
        problems.append(f"round_to={wanted.round_to} is more than the backbone's hidden size, {hidden}; choose at most that, such as 16")
    if wanted.vocab is not None and wanted.vocab > vocab:
        problems.append(f"vocab={wanted.vocab} is more than the {vocab:,} tokens that the backbone has; choose at most {vocab}")
    return problems
