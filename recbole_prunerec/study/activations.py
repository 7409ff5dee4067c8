"""What the paper's first three figures look at: how unevenly activations are spread, and what masking weights does (METHOD 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.importance.inputs import over_layers, position_count, squares, weight_of


def magnitudes(model: PreTrainedModel, batches: Sequence[Batch], part: str) -> Tensor:
    """Mean |activation| over all tokens of what enters a linear module of every layer, such as `family.down`. Shape (layer, width), float64."""
    sums = over_layers(model, batches, {part: _absolute}, lambda _, found: found[part].cpu())
    return torch.stack(sums) / position_count(batches)


def _absolute(entering: Tensor, mask: Tensor) -> Tensor:
    return entering[mask].abs().sum(0)


def carried(values: Tensor, percents: Sequence[int]) -> Tensor:
    """The share of each layer's total that its top K % of dimensions carry. `values` (layer, width) -> (layer, percent).

    K % of the width is rounded to whole dimensions, one at least.
    """
    falling = values.sort(1, descending=True).values.cumsum(1)
    counts = torch.tensor([max(1, round(percent * values.shape[1] / 100)) for percent in percents])
    return falling[:, counts - 1] / falling[:, -1:]


def input_norms(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Mapping[str, Tensor]]:
    """||X_j|| of every input feature j over all tokens, for every linear module of every layer."""
    family = family_of(model.config)
    firsts = {family.q: (family.q, family.k, family.v), family.o: (family.o,), family.gate: (family.gate, family.up), family.down: (family.down,)}

    def judge(_: int, sums: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {part: sums[first].sqrt() for first, parts in firsts.items() for part in parts}

    return over_layers(model, batches, dict.fromkeys(firsts, squares), judge)


@torch.no_grad()
def mask_weights(model: PreTrainedModel, norms: Sequence[Mapping[str, Tensor]] | None, share: float, seed: int = 0) -> None:
    """Set a share of the weights of all linear modules in the layers to zero, the same number in every output row.

    With `norms` (as `input_norms` gives them) those go whose |W_ij| * ||X_j|| is least in their row, as in unstructured WANDA; without, random ones.
    The number is rounded down, as in WANDA's own code.
    """
    family, generator = family_of(model.config), torch.Generator().manual_seed(seed)
    for layer in range(Sizes.of(model).layers):
        for part in (family.q, family.k, family.v, family.o, family.gate, family.up, family.down):
            weight = weight_of(model, part, layer)
            scores = torch.rand(weight.shape, generator=generator) if norms is None else weight.abs().cpu() * norms[layer][part].cpu()
            least = scores.argsort(dim=1, stable=True)[:, : int(share * weight.shape[1])]
            parameter = family.module(model, part, layer).get_parameter("weight")
            parameter.scatter_(1, least.to(parameter.device), 0.0)
