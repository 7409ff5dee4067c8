"""What enters some modules of a model: sums over calibration samples, layer by layer, so that only one layer's exist at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.distributed import total
from recbole_prunerec.importance.hooks import Progress, evaluating, watching
from recbole_prunerec.importance.streams import after_layer, embedded

Result = TypeVar("Result")
Reduce = Callable[[Tensor, Tensor], Tensor]  # an input (row, position, width) in float64 and a mask (row, position) of what is not padding


def over_layers(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    parts: Mapping[str, Reduce],
    judge: Callable[[int, Mapping[str, Tensor]], Result],
    progress: Progress | None = None,
) -> list[Result]:
    """What `judge(layer, sums)` says of each layer, in order.

    `sums` has, for each of the layer's linear modules in `parts`, the sum over the samples of all processes of what its function makes of the
    module's input. The samples go through the model once. `progress` wraps the loop over the layers.
    """
    family, found = family_of(model.config), []
    with torch.no_grad(), evaluating(model):
        streams = [embedded(model, batch) for batch in batches]
        for layer in (progress or iter)(range(Sizes.of(model).layers)):
            names = {family.layer.format(layer) + part: part for part in parts}
            sums = {part: _nothing(weight_of(model, part, layer), reduce) for part, reduce in parts.items()}
            for place, batch in enumerate(batches):
                seen: list[tuple[str, Tensor]] = []
                with watching(model, names, lambda name, entering, output, seen=seen: seen.append((name, entering))):  # type: ignore[misc]
                    streams[place] = after_layer(model, layer, streams[place])
                for name, entering in seen:
                    sums[names[name]] += parts[names[name]](entering.double(), batch["attention_mask"].bool())
            found.append(judge(layer, {part: total(values) for part, values in sums.items()}))
    return found


def _nothing(weight: Tensor, reduce: Reduce) -> Tensor:
    """Zeros of the shape that `reduce` gives: a process may have no sample."""
    return torch.zeros_like(reduce(weight.new_zeros(1, 1, weight.shape[1]), torch.ones(1, 1, dtype=torch.bool, device=weight.device)))


def weight_of(model: PreTrainedModel, part: str, layer: int) -> Tensor:
    """The matrix (output, input) of a linear module of a layer, in float64."""
    return family_of(model.config).module(model, part, layer).get_parameter("weight").detach().double()


def squares(entering: Tensor, mask: Tensor) -> Tensor:
    """Squares of each feature over the tokens. Shape (width,)."""
    return entering[mask].square().sum(0)


def position_count(batches: Sequence[Batch]) -> Tensor:
    """Non-padded positions of the samples of all processes."""
    return total(torch.tensor(sum(int(batch["attention_mask"].sum()) for batch in batches)))
