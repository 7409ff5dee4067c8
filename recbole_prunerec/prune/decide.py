"""From a model and calibration samples to a plan, one function a pruning step: importance, then choice. Nothing is cut here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.importance.heads import normalise_and_recurse
from recbole_prunerec.importance.hidden import norm_scales
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.layers import layer_order
from recbole_prunerec.importance.prunerec import mlp_scores, width_scores
from recbole_prunerec.prune.plan import Plan, choose_heads, choose_hidden, choose_intermediate
from recbole_prunerec.report.plots import heat_map, layer_bars, mlp_map, sorted_curve
from recbole_prunerec.settings import Depth, Mlp, Width


class Decision(NamedTuple):
    """A plan and the pictures that show why, by name."""

    plan: Plan
    figures: dict[str, Figure]


def decide_width(model: PreTrainedModel, batches: Sequence[Batch], step: Width, progress: Progress | None = None) -> Decision:
    """Stage I: heads and hidden dimensions, scored on the same model (METHOD 2)."""
    sizes = Sizes.of(model)

    def removed(kl: Tensor) -> list[int]:
        """Heads of the last layer of `kl` (layer, head) that will go."""
        (kept,), _ = choose_heads(normalise_and_recurse(kl, step.recursion)[-1:], sizes.kv_heads, step.heads, step.kv_policy, step.kv_heads)
        return [head for head in range(sizes.heads) if head not in kept]

    greedy = removed if step.greedy else None
    scores = width_scores(model, batches, step.recursion, step.head_epsilon, step.kl_positions, step.hidden_score, greedy, progress)
    assert scores.heads is not None and scores.hidden is not None and scores.head_kl is not None  # PruneRec's own criterion gives all three
    heads = choose_heads(scores.heads, sizes.kv_heads, step.heads, step.kv_policy, step.kv_heads)
    hidden = choose_hidden(scores.hidden, step.hidden)
    scales = norm_scales(model, batches, hidden) if step.norm_rescale and len(hidden) < sizes.hidden else None
    plan = Plan.of("width", step.criterion, sizes, heads=heads, hidden=hidden, norm_scales=scales)
    kept = np.zeros(scores.heads.shape, dtype=bool)
    for layer, chosen in enumerate(heads[0]):
        kept[layer, chosen] = True
    figures = {
        "head_divergence": heat_map(scores.head_kl, "KL when a head is suppressed", kept=kept),
        "head_score": heat_map(scores.heads, "head score after recursion", kept=kept),
        "hidden": sorted_curve(scores.hidden, step.hidden, "hidden dimensions"),
    }
    return Decision(plan, figures)


def decide_mlp(model: PreTrainedModel, batches: Sequence[Batch], step: Mlp, progress: Progress | None = None) -> Decision:
    """Stage II: MLP dimensions (METHOD 3)."""
    scores = mlp_scores(model, batches, step.tau, step.quantile)
    assert scores.mlp is not None
    plan = Plan.of("mlp", step.criterion, Sizes.of(model), intermediate=choose_intermediate(scores.mlp, step.intermediate, scores.mlp_ties))
    return Decision(plan, {"mlp": mlp_map(scores.mlp, step.intermediate, "share of samples in which a dimension is active")})


def decide_depth(model: PreTrainedModel, batches: Sequence[Batch], step: Depth, progress: Progress | None = None) -> Decision:
    """Stage III: layers (METHOD 4)."""
    search = layer_order(model, batches, step.layers, step.search, progress)
    plan = Plan.of("depth", step.criterion, Sizes.of(model), layers=search.kept)
    figures = {}
    for number, nll in enumerate(search.rounds, 1):
        perplexity = np.exp([nll.get(layer, np.nan) for layer in range(plan.sizes_before.layers)])
        removed = [layer for layer in range(plan.sizes_before.layers) if layer not in search.kept]
        figures[f"layers_round_{number}"] = layer_bars(perplexity, removed, "answers with a layer bypassed", base=float(np.exp(search.base)))
    return Decision(plan, figures)


DECISIONS = {"width": decide_width, "mlp": decide_mlp, "depth": decide_depth}
