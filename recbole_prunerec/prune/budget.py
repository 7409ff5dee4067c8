"""Shapes without weights: what a step makes of a backbone's sizes, and whether a stock class can load the result. Integers only, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.shapes import kv_heads_after
from recbole_prunerec.settings import Pruning, Step

FAMILY_NAMES = ("qwen2", "qwen3", "llama", "mistral")  # the names of backbone.family.FAMILIES, for checks that do without torch
HIDDEN_DIVIDES = {"llama"}  # families whose config refuses hidden % heads != 0 even where head_dim is explicit
KV_HEADS = {"qwen2": 32, "qwen3": 32, "mistral": 8}  # what a config without num_key_value_heads means; elsewhere one for each head


@dataclass(frozen=True)
class Shape:
    """The sizes that steps change, and the family, whose rules they must keep."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Shape:
        """From a transformers config as a dictionary (config.json)."""
        heads = config["num_attention_heads"]
        return cls(
            family=config["model_type"],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads", KV_HEADS.get(config["model_type"])) or heads,
            intermediate=config["intermediate_size"],
        )

    def after(self, step: Pruning) -> tuple[Shape, list[str]]:
        """The shape after a step, and what is wrong with the step, each problem starting with `key=value`; this shape again where something is."""
        wanted = {key: getattr(step, key) for key in ("heads", "hidden", "intermediate", "layers") if hasattr(step, key)}
        problems = [f"{key}={value} is more than the model's {getattr(self, key)}" for key, value in wanted.items() if value > getattr(self, key)]
        if problems:
            return self, problems
        if step.do == "width":
            try:
                wanted["kv_heads"] = kv_heads_after(self.heads, self.kv_heads, step.heads, step.kv_policy, step.kv_heads)
            except UserError as error:
                return self, [str(error)]
            if self.family in HIDDEN_DIVIDES and step.hidden % step.heads:
                fits = step.hidden // step.heads * step.heads
                return self, [
                    f"hidden={step.hidden} is not a multiple of heads={step.heads}, as {self.family} needs; choose hidden={fits or step.heads}"
                ]
        return replace(self, **wanted), []


def shape_problems(steps: Sequence[Step], shape: Shape) -> list[str]:
    """What in the steps does not fit a backbone of `shape`, one message a problem, each naming its key."""
    problems = []
    for number, step in enumerate(steps, 1):
        if isinstance(step, Pruning):
            shape, found = shape.after(step)
            problems += [f"steps.{number}.{problem}" for problem in found]
    return problems
