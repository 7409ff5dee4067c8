"""The rows of a comparison by name. A new one is a YAML in baselines/ and a row here; a new pruning criterion has its rows by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import DepthCriterion, MlpCriterion, WidthCriterion
from recbole_prunerec.validation.sentences import unknown

REFERENCE = "PruneRec"  # what all others are tested against
TEACHER = "BIGRec"  # whose model the others learn from, and whose figures are 100 % of retention
CRITERIA = {"width": get_args(WidthCriterion), "mlp": get_args(MlpCriterion), "depth": get_args(DepthCriterion)}
UNRESTORED = ("--restore.epochs=0",)
NOTHING: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


class System(NamedTuple):
    """How one row comes about."""

    recipe: str  # a YAML in baselines/
    own: tuple[str, ...] = ()  # arguments over it
    change: Mapping[str, Mapping[str, Any]] = NOTHING  # what its pruning steps have for themselves, by what they do
    starts: bool = False  # whether its steps go on from the teacher's model
    taught: bool = False  # whether it learns from what that says
    ignores: tuple[str, ...] = ()  # keys that are for all systems, and that it has no use for
    scratch: bool = False  # whether its last step alone is restored, from weights drawn anew, for as many epochs as all restorations have
    only: str | None = None  # of the pruning steps it does those that do this; None: all
    row: str | None = None  # its row in the run's table; None: the last
    group: str = "recommenders"

    @property
    def preset_steps(self) -> bool:
        """Whether its steps are the preset's."""
        return self.recipe == "PruneRec"

    @property
    def needs_teacher(self) -> bool:
        """Whether there has to be a fine-tuned model first."""
        return self.starts or self.taught


RECOMMENDERS = {
    "Popularity": System("Popularity"),
    **{name: System(name) for model in ("SASRec", "GRU4Rec", "Caser") for name in (f"{model}-BCE", model)},
    TEACHER: System("BIGRec"),
    "BIGRec-grounding": System("BIGRec-grounding", ignores=("ranking.beams", "ranking.length_penalty", "ranking.search")),
    "D3": System("D3", starts=True),
    **{f"DLLM2Rec-{student}": System("DLLM2Rec", (f"--student={student}",), taught=True) for student in ("SASRec", "GRU4Rec", "Caser")},
    "E4SRec": System("SLMRec", row="E4SRec"),
    "SLMRec": System("SLMRec"),
    "SLMRec-prunerec": System("SLMRec-prunerec"),
    "BIGRec-depth": System("BIGRec-depth", starts=True),
    REFERENCE: System("PruneRec", starts=True),
}
CHANGES: dict[str, Mapping[str, Mapping[str, Any]]] = {
    REFERENCE: NOTHING,
    **{
        criterion: {step: {"criterion": criterion} for step, known in CRITERIA.items() if criterion in known}
        for criterion in dict.fromkeys(name for known in CRITERIA.values() for name in known if name != "prunerec")
    },
    "llm_pruner-second": {step: {"criterion": "llm_pruner", "taylor": "second"} for step in ("width", "mlp")},
    "perplexity": {"depth": {"search": "oneshot"}},
}


def both(name: str, system: System) -> dict[str, System]:
    """A system that prunes as it is, and without restoration."""
    return {name: system, f"{name}-unrestored": system._replace(own=UNRESTORED, group="unrestored")}


SYSTEMS = {
    **RECOMMENDERS,
    **{
        name: system
        for criterion, change in CHANGES.items()
        for name, system in both(criterion, System("PruneRec", change=change, starts=True, group="criteria")).items()
        if name not in RECOMMENDERS
    },
    "scratch": System("PruneRec", starts=True, scratch=True, group="criteria"),
}
SHORT = (
    *("Popularity", "SASRec", "GRU4Rec", "Caser", TEACHER, "D3", "BIGRec-depth", REFERENCE),
    *("random", "wanda", "minitron", "scratch"),
)
GROUPS = {
    "all": list(SYSTEMS),
    "short": [name for name in SYSTEMS if name in SHORT],
    **{group: [name for name, system in SYSTEMS.items() if system.group == group] for group in ("recommenders", "criteria", "unrestored")},
}


def chosen(text: str) -> list[str]:
    """The systems that `--systems` names, with commas between them, in the table's order. Raises `UserError` with every name that is unknown."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = [*GROUPS, *SYSTEMS]
    problems = [unknown(f"systems={name}", name, known) for name in dict.fromkeys(names) if name not in known]
    if not names:
        problems.append(f"systems is empty; name at least one, or {', '.join(GROUPS)}")
    if problems:
        raise UserError("\n".join(problems))
    wanted = {one for name in names for one in GROUPS.get(name, [name])}
    return [name for name in SYSTEMS if name in wanted]


def filled(system: System, steps: Sequence[str]) -> str | None:
    """What a reader must know where a criterion does not score all that the `steps` of a run cut: PruneRec's own stands in."""
    if "criterion" not in {key for change in system.change.values() for key in change}:
        return None
    rest = [step for step in dict.fromkeys(steps) if step in CRITERIA and "criterion" not in system.change.get(step, {})]
    return f"{' and '.join(rest)} by prunerec" if rest else None
