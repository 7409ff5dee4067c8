"""From a model and calibration samples to a plan, one function a pruning step: a criterion's scores, then choice. Nothing is cut here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.importance.criteria import CRITERIA
from recbole_prunerec.importance.hidden import hidden_importance, norm_scales
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.layers import LayerSearch
from recbole_prunerec.importance.scores import Scores
from recbole_prunerec.prune.plan import Plan, choose_halves, choose_heads, choose_hidden, choose_intermediate, choose_layers
from recbole_prunerec.prune.surgery import NOTHING
from recbole_prunerec.report.plots import heat_map, layer_bars, mlp_map, sorted_curve
from recbole_prunerec.settings import Depth, Mlp, Width


class Decision(NamedTuple):
    """A plan, the pictures that show why, by name, and the weights that change with it."""

    plan: Plan
    figures: dict[str, Figure]
    update: Mapping[str, Tensor] = NOTHING  # new weights of what stays, by name


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

    score = CRITERIA[step.criterion].width
    assert score is not None  # of every criterion that a width step may name; likewise below
    scores = score(model, batches, softmax, step, seed, progress, removed)
    assert scores.heads is not None
    hidden_scores = hidden_importance(model, batches, softmax, step.hidden_score) if scores.hidden is None else scores.hidden
    everywhere = scores.heads.mean(0, keepdim=True).expand_as(scores.heads)
    heads = chosen(everywhere if step.scope == "global" else scores.heads)
    hidden = choose_hidden(hidden_scores, step.hidden)
    scales = norm_scales(model, batches, hidden) if step.norm_rescale and len(hidden) < sizes.hidden else None
    filled: list[Literal["hidden"]] | None = ["hidden"] if scores.hidden is None else None
    plan = Plan.of("width", step.criterion, sizes, heads=heads, hidden=hidden, norm_scales=scales, filled=filled)
    kept = np.zeros(scores.heads.shape, dtype=bool)
    for layer, indices in enumerate(heads[0]):
        kept[layer, indices] = True
    figures = {
        "head_score": heat_map(scores.heads, f"head scores, {step.criterion}", kept=kept),
        "hidden": sorted_curve(hidden_scores, step.hidden, f"hidden dimensions, {'prunerec' if filled else step.criterion}"),
    }
    if scores.head_kl is not None:
        figures["head_divergence"] = heat_map(scores.head_kl, "KL when a head is suppressed", kept=kept, name="KL, nats")
    return Decision(plan, figures, _update(scores, heads[0]))


def decide_mlp(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Mlp, progress: Progress | None = None, seed: Sequence[int] = (0,)
) -> Decision:
    """Stage II: MLP dimensions (METHOD 3). `seed`: see `decide_width`."""
    score = CRITERIA[step.criterion].mlp
    assert score is not None
    scores = score(model, batches, softmax, step, seed, progress)
    assert scores.mlp is not None
    kept = choose_intermediate(scores.mlp, step.intermediate, scores.mlp_ties)
    plan = Plan.of("mlp", step.criterion, Sizes.of(model), intermediate=kept)
    return Decision(plan, {"mlp": mlp_map(scores.mlp, step.intermediate, f"MLP scores, {step.criterion}")}, _update(scores, kept))


def decide_depth(
    model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Depth, progress: Progress | None = None, seed: Sequence[int] = (0,)
) -> Decision:
    """Stage III: layers (METHOD 4). `seed`: see `decide_width`."""
    score = CRITERIA[step.criterion].depth
    assert score is not None
    scores, halves = score(model, batches, softmax, step, seed, progress), None
    if scores.halves is not None:
        layers, halves = choose_halves(scores.halves)
    else:
        assert scores.layers is not None
        layers = choose_layers(scores.layers, step.layers)
    plan = Plan.of("depth", step.criterion, Sizes.of(model), layers=layers, halves=halves)
    figures = {} if scores.search is None else _search_bars(scores.search, plan.sizes_before.layers)
    return Decision(plan, figures, _update(scores, [layers]))


def _update(scores: Scores, kept: Sequence[Sequence[int]]) -> Mapping[str, Tensor]:
    return NOTHING if scores.update is None else scores.update(kept)


def _search_bars(search: LayerSearch, layers: int) -> dict[str, Figure]:
    """The perplexity with each layer bypassed, one picture a round."""
    figures = {}
    for number, nll in enumerate(search.rounds, 1):
        perplexity = np.exp([nll.get(layer, np.nan) for layer in range(layers)])
        removed = [layer for layer in range(layers) if layer not in search.kept]
        figures[f"layers_round_{number}"] = layer_bars(perplexity, removed, "answers with a layer bypassed", base=float(np.exp(search.base)))
    return figures


DECISIONS = {"width": decide_width, "mlp": decide_mlp, "depth": decide_depth}
