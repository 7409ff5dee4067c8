"""What `plan` shows: shapes as a table, what its columns mean, and the steps to the first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import yaml

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.estimate import ranking_work, serving_bytes
from recbole_prunerec.prune.search import Candidate
from recbole_prunerec.report.shapes import mebibytes, shape_table
from recbole_prunerec.report.tables import si
from recbole_prunerec.settings import Step

WIDTHS = ("layers", "hidden", "heads", "kv_heads", "intermediate")
COUNTED = {"total": "all parameters", "non_embedding": "the non-embedding parameters"}

TEXT = """{key}={name}: {non_embedding:,} non-embedding parameters, {total:,} in all
{vocabulary}
{budget} of {counted}: {limit:,}
{found}

{table}

{order}
Spread: how far a shape is from the backbone's proportions, the standard deviation of the logarithms of what it keeps of heads, hidden, MLP, layers.
A user: {tokens:,} tokens, {source}.
A multiply-add is two operations; memory is weights, keys and values in float32.

Steps of shape {best}, for a YAML file or the command line:
steps: {steps}
{command}
"""
BY_SHAPE = """Order: spread + |log(parameters / budget)|, the least first. Each shape differs from all above it by a quarter or more in heads, hidden,
MLP or layers; its MLP is the widest that fits."""
BY_PROBE = """Order: {metric} on {rows:,} validation samples after surgery and restoration, restore.epochs={epochs}, from one teacher: {teacher}.
No test sample was looked at. Shapes keep the numbers that they have without a probe. What was made lies in {folder}."""


class Facts(NamedTuple):
    """What stands around the table."""

    key: str  # what is pruned, "backbone" or "teacher"
    name: str
    backbone: Sizes
    vocabulary: str  # a line on its tokens
    budget: str  # as it was given
    counts: str  # what it counts, a key of COUNTED
    limit: int  # parameters
    found: str  # how many shapes meet it
    order: str  # why the shapes stand as they do
    tokens: int  # that a user reads
    source: str  # of that number
    steps: Sequence[Step]  # to the first shape
    arguments: Mapping[str, str]  # of a run, beside the steps


def proposed(facts: Facts, shapes: Sequence[Candidate], numbers: Sequence[int], measured: Mapping[str, Sequence[float]]) -> str:
    """The report on `shapes`, which are called by `numbers`, the best first; `measured` are further columns."""
    sizes = [facts.backbone, *(shape.sizes for shape in shapes)]
    columns = {
        **{name: ["", *(f"{value:.4f}" for value in values)] for name, values in measured.items()},
        "Spread": ["", *(f"{shape.spread:.2f}" for shape in shapes)],
        "Operations\na user": [si(2 * ranking_work(each, facts.tokens)) for each in sizes],
        "Memory\na user": [mebibytes(serving_bytes(each, facts.tokens)) for each in sizes],
    }
    steps = in_one_line(facts.steps)
    return TEXT.format(
        **{**facts._asdict(), "steps": steps},
        non_embedding=facts.backbone.non_embedding_parameters,
        total=facts.backbone.total_parameters,
        counted=COUNTED[facts.counts],
        table=shape_table("Shape", [facts.key, *map(str, numbers)], sizes, facts.backbone, columns, WIDTHS, digits=2),
        best=numbers[0],
        command=shlex.join(["python", "run_recbole.py", *(f"--{key}={value}" for key, value in facts.arguments.items())]) + f' --steps="{steps}"',
    )


def in_one_line(steps: Sequence[Step]) -> str:
    """Steps as YAML, with what is not as by default."""
    values = [step.model_dump(mode="json", exclude_unset=True) for step in steps]
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=float("inf")).strip()
