"""`python baselines/tune.py`: the paper's grids, judged on validation alone; the best setting as YAML for `compare.py --tuned`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from recbole_prunerec.arguments import load_arguments, parse
from recbole_prunerec.errors import UserError
from recbole_prunerec.identity import identity_of, settled
from recbole_prunerec.settings import Pruning, Settings, Width
from recbole_prunerec.shipped import merge, read_yaml_file
from recbole_prunerec.storage import hash_of, write_text
from recbole_prunerec.study.runs import Common, arguments_of, missing_data
from recbole_prunerec.study.systems import SYSTEMS
from recbole_prunerec.validation.sentences import unknown

if TYPE_CHECKING:
    from recbole_prunerec.loading import Data

NO_OPTUNA = "tuning needs the package optuna, which is not installed; run: pip install -c constraints.txt -e '.[tune]'"
RATES, DECAYS, SIZES = [1e-2, 1e-3, 1e-4], [1e-2, 1e-3, 1e-4, 1e-5, 1e-6], [64, 128, 256]
FIRST_SEED = "2020"
FAILED = 0.0  # of a metric, for a setting with which nothing can be trained

USAGE = """python baselines/tune.py --grids=<names> [--dataset=ml-100k] [--key=value ...]

  --grids=SASRec-BCE          {grids}; several with commas between them
  --values="{{hidden_size: [64, 128], hidden_dropout_prob: [0.2, 0.5]}}"
                              other values than the grid's, of any of RecBole's keys; for one grid of a model over ids
  --trials=8                  at most so many settings of each grid, drawn by the seed; by default all
  --out=tuned                 the folder for <system>.yaml, which compare.py takes by --tuned=tuned
  --preset=tiny --seed=2020   and whatever run_recbole.py takes

Only validation samples are ranked. The same command goes on where it was cut, and started several times, shares the settings out.
"""

logger = logging.getLogger(__name__)


class Grid(NamedTuple):
    """Values that are tried for one system, every combination of them."""

    system: str
    values: Mapping[str, Sequence[Any]]  # by key: RecBole's, or one of those that `varied` knows


def _ids(size: str) -> dict[str, Sequence[Any]]:
    return {"learning_rate": RATES, "weight_decay": DECAYS, size: SIZES}


EMBEDDING = {"SASRec": "hidden_size", "GRU4Rec": "embedding_size", "Caser": "embedding_size"}
GRIDS = {
    **{name: Grid(name, _ids(size)) for model, size in EMBEDDING.items() for name in (f"{model}-BCE", model)},
    "kd_weight": Grid("PruneRec", {"kd_weight": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]}),
    "recursion": Grid("PruneRec", {"recursion": [place / 10 for place in range(11)]}),
}


class Question(NamedTuple):
    """What is to be tuned, judged."""

    grids: Mapping[str, Grid]  # by name
    common: Common
    seed: int
    out: Path
    trials: int | None = None  # of each grid, at most; None: all of it

    def settings(self, name: str, values: Mapping[str, Any] | None = None) -> Settings:
        """Of a run of a grid's system, with some of RecBole's keys as `values` have them."""
        common = self.common._replace(given={**self.common.given, **{key: str(value) for key, value in (values or {}).items()}})
        system = self.grids[name].system
        return load_arguments(arguments_of(system, SYSTEMS[system], common, self.seed)).settings


def judged(argv: Sequence[str]) -> Question:
    """The question that the command line asks. Raises one `UserError` with every problem, before anything heavy is imported."""
    problems: list[str] = []
    given = parse(argv, problems)
    names = [name.strip() for name in given.pop("grids", "").split(",") if name.strip()]
    problems += [unknown(f"grids={name}", name, GRIDS) for name in dict.fromkeys(names) if name not in GRIDS]
    problems += [] if names else [f"grids is empty; name at least one of {', '.join(GRIDS)}"]
    known = [name for name in names if name in GRIDS]
    grids = {name: GRIDS[name] for name in known}
    if (text := given.pop("values", None)) is not None:
        grids = _with_values(grids, text, problems)
    tuned = {key for grid in grids.values() for key in grid.values}
    problems += [f"--{key}={given.pop(key)}: the grid has its values; leave it out" for key in list(given) if key in tuned]
    out, seed, trials = Path(given.pop("out", "tuned")), given.pop("seed", FIRST_SEED), given.pop("trials", None)
    if not seed.isdecimal():
        problems.append(f"seed={seed}: expected a whole number, at least 0")
    if trials is not None and not (trials.isdecimal() and int(trials)):
        problems.append(f"trials={trials}: expected a whole number, at least 1; leave it out for all of a grid's settings")
        trials = None
    if find_spec("optuna") is None:
        problems.append(NO_OPTUNA)
    common = Common({key: text for key, text in given.items() if key != "config_files"}, tuple(given.get("config_files", "").split()))
    question = Question(grids, common, int(seed) if seed.isdecimal() else 0, out, None if trials is None else int(trials))
    for name, grid in grids.items():
        try:
            settings = question.settings(name)
            problems += [problem for problem in missing_data([settings]) if problem not in problems]
            if "recursion" in grid.values and not any(isinstance(step, Width) for step in settings.steps):
                problems.append(f"grids={name} is for a width step, and preset={settings.preset} has none")
        except UserError as error:
            problems += [problem for problem in str(error).splitlines() if problem not in problems]
    if text and not problems:
        problems += _values_problems(question)
    if problems:
        raise UserError("\n".join(problems))
    return question


def _with_values(grids: Mapping[str, Grid], text: str, problems: list[str]) -> dict[str, Grid]:
    """The one grid with the values that `text` has as YAML; what is wrong with them is added to `problems`."""
    expected = "expected lists of values by RecBole's keys, as in {hidden_size: [64, 128]}"
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        values = None
    if not (isinstance(values, dict) and values and all(isinstance(choices, list) and choices for choices in values.values())):
        problems.append(f"values={text}: {expected}")
    elif any(isinstance(value, (list, dict)) or choices.count(value) > 1 for choices in values.values() for value in choices):
        problems.append(f"values={text}: {expected}, each value once and none of them a list")
    elif len(grids) != 1 or any(grid.system == "PruneRec" for grid in grids.values()):
        problems.append(f"values is for one grid of a model over ids ({', '.join(_of_ids())}), and grids has {', '.join(grids) or 'none'}")
    else:
        return {name: Grid(grid.system, {str(key): choices for key, choices in values.items()}) for name, grid in grids.items()}
    return dict(grids)


def _of_ids() -> list[str]:
    """The grids of models over ids."""
    return [name for name, grid in GRIDS.items() if grid.system != "PruneRec"]


def _values_problems(question: Question) -> list[str]:
    """What a run says to each value alone."""
    problems: dict[str, None] = {}
    for name, grid in question.grids.items():
        for key, value in ((key, value) for key, choices in grid.values.items() for value in choices):
            try:
                question.settings(name, {key: value})
            except UserError as error:
                problems |= dict.fromkeys(str(error).splitlines())
    return list(problems)


class _Cut(BaseException):
    """What ended a trial, Ctrl-C included, as optuna does not see it: what it sees counts as tried, and would not be tried again."""


def tune(argv: Sequence[str]) -> str:
    """Try what is not tried yet of the grids that `argv` names, and write the best. Returns what is printed."""
    question = judged(argv)
    from recbole_prunerec.loading import load_data  # takes seconds to import; mistakes are answered before
    from recbole_prunerec.quick_start import start_log

    start_log(None)
    settings = question.settings(next(iter(question.grids)))
    root = Path(settings.checkpoint_dir)
    data = load_data(settings, root, root / "cache")
    return "".join(_tuned(name, question, data) for name in question.grids)


def _tuned(name: str, question: Question, data: Data) -> str:
    """Try one grid, write its best, and say it."""
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    grid, settings = question.grids[name], question.settings(name)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    question.out.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(question.out / f"{name}.journal")))
    sampler = optuna.samplers.GridSampler(grid.values, seed=question.seed)
    study_name = f"{name}-{settings.dataset}-{identity_of(settled(settings))[:8]}"
    if grid != GRIDS[name]:
        study_name += f"-{hash_of(grid.values)[:8]}"
    study = optuna.create_study(storage=storage, sampler=sampler, study_name=study_name, direction="maximize", load_if_exists=True)
    metric = str(settings.recbole["valid_metric"])
    score: Callable[[Mapping[str, Any]], float] = _id_score(name, question, data) if grid.system != "PruneRec" else _pruned_score(settings, data)

    def tried(trial: optuna.Trial) -> float:
        values = {key: trial.suggest_categorical(key, list(choices)) for key, choices in grid.values.items()}
        try:
            found = score(values)
        except BaseException as error:
            raise _Cut from error
        logger.info("%s, %d tried: %s gives %s %.4f on validation", name, trial.number + 1, values, metric, found)
        return found

    finished, most = partial(study.get_trials, deepcopy=False, states=(TrialState.COMPLETE,)), question.trials or inf
    try:
        if len(finished()) < most and not sampler.is_exhausted(study):
            study.optimize(tried, callbacks=[lambda *_: study.stop() if len(finished()) >= most else None])
    except _Cut as cut:
        raise cut.__cause__ or cut from None
    best, file = study.best_trial, question.out / f"{grid.system}.yaml"
    there = read_yaml_file(file) if file.is_file() else {}
    said = (
        f"{name}: the best of {len(finished())} settings by {metric} on validation, {study.best_value:.4f}, {settings.dataset}, seed {question.seed}"
    )
    write_text(file, f"# {said}\n{yaml.safe_dump(merge(there, varied(settings, best.params)), sort_keys=False)}")
    return f"{said}: {best.params}, in {file}\n"


def varied(settings: Settings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a grid as YAML has them: `kd_weight` is of every restoration, `recursion` of every width step, all else RecBole's."""
    made: dict[str, Any] = {key: value for key, value in values.items() if key not in ("kd_weight", "recursion")}
    if "kd_weight" in values:
        made["restore"] = {"kd_weight": values["kd_weight"]}
    if "recursion" in values:
        steps = [_varied(step, values) if isinstance(step, Pruning) else step for step in settings.steps]
        made["steps"] = [step.model_dump(mode="json", exclude_unset=True) for step in steps]
    return made


def _varied(step: Pruning, values: Mapping[str, Any]) -> Pruning:
    """A step with what a grid says of it."""
    restore = step.restore.model_copy(update={"kd_weight": values["kd_weight"]}) if "kd_weight" in values else None  # type: ignore[attr-defined]
    recursion = values.get("recursion") if isinstance(step, Width) else None
    return step.model_copy(update={key: value for key, value in (("restore", restore), ("recursion", recursion)) if value is not None})


def _id_score(name: str, question: Question, data: Data) -> Callable[[Mapping[str, Any]], float]:
    """Trains a model of RecBole's; its best validation."""
    from recbole_prunerec.loading import build
    from recbole_prunerec.lookup import trainer_class

    def score(values: Mapping[str, Any]) -> float:
        settings = question.settings(name, values)
        (model_name,), root = settings.model, Path(settings.checkpoint_dir)
        config, model, loaders = build(settings, data, model_name, root / "tuning", root / "cache")
        try:
            best, _ = trainer_class(model_name)(config, model).fit(loaders["train"], loaders["valid"], verbose=False, show_progress=False)
        except ValueError as error:  # RecBole's word for a loss that is not a number
            logger.warning("%s: %s", values, error)
            return FAILED
        return float(best)

    return score


def _pruned_score(settings: Settings, data: Data) -> Callable[[Mapping[str, Any]], float]:
    """Prunes one teacher's model and restores it; its ranks on validation samples."""
    from recbole_prunerec.loading import load_prompts
    from recbole_prunerec.planning.probe import Probe

    _, prompts = load_prompts(settings, data, None)
    before = tuple(step for step in settings.steps if not isinstance(step, Pruning))

    def score(values: Mapping[str, Any]) -> float:
        steps = tuple(_varied(step, values) for step in settings.steps if isinstance(step, Pruning))
        outcome = Probe(settings, prompts, data.samples, before, [steps]).run(fresh=False)
        return outcome.shapes[0][str(settings.recbole["valid_metric"]).lower()]

    return score
