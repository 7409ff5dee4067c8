"""Whether steps fit a backbone, and where they are a preset's that was made for another, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from recbole_prunerec.errors import Broken
from recbole_prunerec.prune.budget import Shape, shape_problems
from recbole_prunerec.settings import Settings, Step
from recbole_prunerec.shipped import recipe


def misfits(settings: Settings, steps: Sequence[Step], shape: Shape) -> list[str]:
    """What in `steps` does not fit the backbone of `shape`; behind it, where the steps are the preset's alone, how to find others."""
    problems = shape_problems(steps, shape)
    with suppress(Broken):
        content = recipe(settings.preset)
        theirs = [step.model_dump(include=set(own)) for step, own in zip(steps, content["steps"], strict=False)]
        if problems and settings.teacher is None and content["backbone"] != settings.backbone and theirs == content["steps"]:
            problems.append(
                f"preset={settings.preset} was made for {content['backbone']}; steps that fit this backbone come from: "
                f"python -m recbole_prunerec plan --backbone={settings.backbone}"
            )
    return problems
