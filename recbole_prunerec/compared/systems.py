"""Which compared systems are ours, and what each learns from. Read without anything heavy, so that settings can be judged by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_prunerec.settings import Settings, Step

STUDENTS = ("SASRec", "GRU4Rec", "Caser")  # RecBole's models that DLLM2Rec can teach
OURS = ("DLLM2Rec", "E4SRec", "SLMRec")
LOSS_TYPE = {"DLLM2Rec": "BPR", "E4SRec": "CE", "SLMRec": "CE"}  # whether RecBole is to draw a negative for every sample
NEEDS = {"E4SRec": ("SASRec",), "SLMRec": ("SASRec", "E4SRec")}  # models that are trained before, for rows of their own, and help with their weights
TAUGHT = ("DLLM2Rec",)  # learn from a fine-tuned language model
READERS = ("E4SRec", "SLMRec")  # start from the layers of a language model


def with_helpers(models: Iterable[str]) -> list[str]:
    """`models` in their order, each behind those that it needs."""
    return list(dict.fromkeys(name for model in models for name in (*NEEDS.get(model, ()), model)))


def models_of(settings: Settings) -> list[str]:
    """The models of a run's table, in its order: what is named, and what that needs."""
    if "PruneRec" not in settings.model:
        return with_helpers(settings.model)
    others = [name for name in settings.model if name != "PruneRec"] or list(settings.compare)
    return ["Popularity", *(name for name in with_helpers([*others, *helpers_of(settings)]) if name != "Popularity"), "PruneRec"]


def helpers_of(settings: Settings) -> list[str]:
    """The models that PruneRec needs: a tutor where it is fine-tuned, or restored with what that says, and an assistant in ranking."""
    tutor = settings.tutor.model if any(_taught(settings, step) for step in settings.steps) else None
    return list(dict.fromkeys(name for name in (tutor, settings.ranking.assistant) if name))


def _taught(settings: Settings, step: Step) -> bool:
    """Whether a step learns from a tutor, where there is one."""
    if step.do in ("finetune", "vocabulary"):
        return step.do == "finetune"
    restore = settings.restore_of(step)  # type: ignore[arg-type]  # of the others none is left
    return bool(restore.tutor_weight and restore.epochs)


def shared_keys(baselines: Mapping[str, Any], models: Iterable[str]) -> dict[str, Any]:
    """What `baselines` says of all models; what it says of one stands under its name."""
    return {key: value for key, value in baselines.items() if key not in models}
