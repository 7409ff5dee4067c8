"""From a model and calibration samples to a plan, one function a pruning step: a criterion's scores, then choice. Nothing is cut here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.importance.criteria import CRITERIA
from recbole_prunerec.importance.hidden import norm_scales
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.layers import LayerSearch
from recbole_prunerec.prune.plan import Plan, choose_heads, choose_hidden, choose_intermediate, choose_layers
from recbole_prunerec.report.plots import heat_map, layer_bars, mlp_map, sorted_curve
from recbole_prunerec.settings import Depth, Mlp, Width


class Decision(NamedTuple):
    """A plan and the pictures that show why, by name."""

    plan: Plan
    figures: dict[str, Figure]


def decide_width(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Width, progress: Progress | None = None, seed: Sequence[int] = (0,)
) -> Decision:
    """Stage I: heads and hidden dimensions, scored on the same model (METHOD 2). `seed` is for a criterion that draws."""
    sizes = Sizes.of(model)

    def chosen(scores: Tensor) -> tuple[list[list[int]], list[list[int]]]:
        return choose_heads(scores, sizes.kv_heads, step.heads, step.kv_policy, step.kv_heads)

    def removed(scores: Tensor) -> list[int]:
        """Heads that will go, by the scores (head,) of their layer."""
        (kept,), _ = chosen(scores[None])
        return [head for head in range(sizes.heads) if head not in kept]

    scores = CRITERIA[step.criterion].width(model, batches, softmax, step, seed, progress, removed)
    assert scores.heads is not None and scores.hidden is not None  # every criterion that a width step may name gives both
    everywhere = scores.heads.mean(0, keepdim=True).expand_as(scores.heads)
    heads = chosen(everywhere if step.scope == "global" else scores.heads)
    hidden = choose_hidden(scores.hidden, step.hidden)
    scales = norm_scales(model, batches, hidden) if step.norm_rescale and len(hidden) < sizes.hidden else None
    plan = Plan.of("width", step.criterion, sizes, heads=heads, hidden=hidden, norm_scales=scales)
    kept = np.zeros(scores.heads.shape, dtype=bool)
    for layer, indices in enumerate(heads[0]):
        kept[layer, indices] = True
    figures = {
        "head_score": heat_map(scores.heads, f"head scores, {step.criterion}", kept=kept),
        "hidden": sorted_curve(scores.hidden, step.hidden, f"hidden dimensions, {step.criterion}"),
    }
    if scores.head_kl is not None:
        figures["head_divergence"] = heat_map(scores.head_kl, "KL when a head is suppressed", kept=kept, name="KL, nats")
    return Decision(plan, figures)


def decide_mlp(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Mlp, progress: Progress | None = None, seed: Sequence[int] = (0,)
) -> Decision:
    """Stage II: MLP dimensions (METHOD 3). `seed`: see `decide_width`."""
    scores = CRITERIA[step.criterion].mlp(model, batches, softmax, step, seed, progress)
    assert scores.mlp is not None
    plan = Plan.of("mlp", step.criterion, Sizes.of(model), intermediate=choose_intermediate(scores.mlp, step.intermediate, scores.mlp_ties))
    return Decision(plan, {"mlp": mlp_map(scores.mlp, step.intermediate, f"MLP scores, {step.criterion}")})


def decide_depth(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Depth, progress: Progress | None = None, seed: Sequence[int] = (0,)
) -> Decision:
    """Stage III: layers (METHOD 4). `seed`: see `decide_width`."""
    scores = CRITERIA[step.criterion].depth(model, batches, softmax, step, seed, progress)
    assert scores.layers is not None
    plan = Plan.of("depth", step.criterion, Sizes.of(model), layers=choose_layers(scores.layers, step.layers))
    return Decision(plan, {} if scores.search is None else _search_bars(scores.search, plan.sizes_before.layers))


def _search_bars(search: LayerSearch, layers: int) -> dict[str, Figure]:
    """The perplexity with each layer bypassed, one picture a round."""
    figures = {}
    for number, nll in enumerate(search.rounds, 1):
        perplexity = np.exp([nll.get(layer, np.nan) for layer in range(layers)])
        removed = [layer for layer in range(layers) if layer not in search.kept]
        figures[f"layers_round_{number}"] = layer_bars(perplexity, removed, "answers with a layer bypassed", base=float(np.exp(search.base)))
    return figures


DECISIONS = {"width": decide_width, "mlp": decide_mlp, "depth": decide_depth}
