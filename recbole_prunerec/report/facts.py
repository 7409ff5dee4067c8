"""What a step's model card says, gathered from the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import Backbone
from recbole_prunerec.report.card import CardFacts
from recbole_prunerec.report.results import Measured
from recbole_prunerec.settings import Finetune, Settings, Step, Vocabulary
from recbole_prunerec.text.prompts import Prompts

SMOKE = "The figures are those of a smoke run and worth nothing."


def step_facts(
    settings: Settings,
    number: int,
    backbone: Backbone,
    prompts: Prompts,
    history: Sequence[int],
    before: Sizes,
    after: Sizes,
    final: Measured | None,
) -> CardFacts:
    """Of the model that step `number` left; `history` are the items of one real user, `final` what was measured, if anything was."""
    done = settings.steps[:number]
    kind = done[-1].do
    return CardFacts(
        name=f"PruneRec {kind} on {settings.dataset}",
        step=number,
        step_name=kind,
        steps=tuple((step.do, _told(settings, step)) for step in done),
        sizes_before=_described(before),
        sizes_after=_described(after),
        dataset=settings.dataset,
        items=len(prompts.catalogue) - 1,
        protocol={
            "split": settings.split,
            "longest history": settings.longest_history,
            **({"items of the history": "left out"} if settings.exclude_seen else {}),
            "softmax": settings.softmax,
            **settings.ranking.facts(),
        },
        metrics=final.metrics if final else {},
        test_rows=final.test_rows if final else 0,
        ranked={"test": "test", "valid": "validation"}[settings.ranked],
        history=tuple(prompts.catalogue.titles[item] for item in history),
        prompt=prompts.pieces(history),
        base_model=backbone.hub_name,
        base_name=Path(backbone.name).name,
        revision=backbone.revision,
        licence=backbone.licence,
        random_start=backbone.random,
        notes=tuple(filter(None, (SMOKE if settings.worthless else None, final.note if final else None))),
    )


def _told(settings: Settings, step: Step) -> dict[str, Any]:
    """What a step was told."""
    if isinstance(step, Finetune):
        return {"epochs": settings.epochs, "learning_rate": settings.learning_rate}
    if isinstance(step, Vocabulary):
        return {}
    restore = settings.restore_of(step).model_dump(exclude={"cache"}, exclude_none=True)
    told = step.model_dump(exclude={"do", "restore"}, exclude_none=True)
    return {**told, "calibration_samples": settings.calibration_samples, **{f"restore.{key}": value for key, value in restore.items()}}


def _described(sizes: Sizes) -> dict[str, int | bool]:
    return {**sizes.dict(), "parameters": sizes.total_parameters, "parameters without embeddings": sizes.non_embedding_parameters}
