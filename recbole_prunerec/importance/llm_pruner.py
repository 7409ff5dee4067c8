"""LLM-Pruner (Ma et al., arXiv 2305.11627): how much the answer loss would change without weights that go together, by its Taylor series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Family, Sizes, family_of
from recbole_prunerec.backbone.forward import Batch, answer_states
from recbole_prunerec.backbone.softmax import Softmax
from recbole_prunerec.distributed import total
from recbole_prunerec.importance.hidden import answer_loss
from recbole_prunerec.importance.hooks import evaluating
from recbole_prunerec.importance.scores import Scores
from recbole_prunerec.settings import Mlp, Taylor, Width


def width_scores(model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Width, *_: Any) -> Scores:
    """Heads with their rows of q_proj, their columns of o_proj and an even share of their key/value head's rows; hidden dimensions with all weights
    that read or write them."""
    family, sizes = family_of(model.config), Sizes.of(model)
    lines = _Lines(model, batches, softmax, step.taylor, [name for name, _ in model.named_parameters()])
    heads = []
    for layer in range(sizes.layers):
        own = lines.of(family, layer, (family.q,), (family.o,)).view(sizes.heads, -1).sum(1)
        shared = lines.of(family, layer, (family.k, family.v), ()).view(sizes.kv_heads, -1).sum(1)
        size = sizes.heads // sizes.kv_heads
        heads.append(own + (shared / size).repeat_interleave(size))
    hidden = lines.sum(family.embedding, 1) + lines.sum(family.head, 1) + lines.sum(family.final_norm, 0)
    for layer in range(sizes.layers):
        hidden = hidden + lines.of(family, layer, (*family.norms, family.o, family.down), (family.q, family.k, family.v, family.gate, family.up))
    return Scores(heads=torch.stack(heads), hidden=hidden)


def mlp_scores(model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, step: Mlp, *_: Any) -> Scores:
    """MLP dimensions with their rows of gate_proj and up_proj and their column of down_proj."""
    family, layers = family_of(model.config), range(Sizes.of(model).layers)
    inner = tuple(family.layer.format(layer) + part for layer in layers for part in (family.gate, family.up, family.down))
    lines = _Lines(model, batches, softmax, step.taylor, [name for name, _ in model.named_parameters() if name.startswith(inner)])
    return Scores(mlp=torch.stack([lines.of(family, layer, (family.gate, family.up), (family.down,)) for layer in layers]))


class _Lines:
    """What a weight matters, summed over rows or columns of the parameters called `names`."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, order: Taylor, names: list[str]) -> None:
        self._vector = order == "vector"
        self._values = salience(model, batches, softmax, order, names)

    def sum(self, module: str, axis: int) -> Tensor:
        """Of a module's rows (`axis` 0, with the bias, if any) or columns (1), the absolute sums for `vector`; 0 where it has no weights."""
        found = torch.zeros(())
        for part in ("weight", "bias"):
            values = self._values.get(f"{module}.{part}")
            if values is not None and (part == "weight" or axis == 0):
                line = values.sum(1 - axis) if values.ndim == 2 else values
                found = found + (line.abs() if self._vector else line).double().cpu()
        return found

    def of(self, family: Family, layer: int, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
        """The sum over some parts of a layer of their rows and of others' columns."""
        prefix = family.layer.format(layer)
        lines = [self.sum(prefix + part, axis) for axis, parts in enumerate((rows, columns)) for part in parts]
        return torch.stack(lines).sum(0)


def salience(model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, order: Taylor, names: Sequence[str]) -> dict[str, Tensor]:
    """What each weight w of the parameters called `names` matters, g being its gradient of a sample's mean answer loss, in nats.

    `first`: |w E[g]|; `second`: w^2 E[g^2]; `mix`: |w E[g] - w^2 E[g^2] / 2|; `vector`: w E[g] with its sign. Means are over the samples of all
    processes. Where squares are asked for, samples go through the model one by one.
    """
    parameters = dict(model.named_parameters())
    weights = [parameters[name] for name in names]
    squared = order in ("second", "mix")
    means, squares = (
        [torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if needed else None for weight in weights]
        for needed in (order != "second", squared)
    )
    samples = total(torch.tensor(sum(len(batch["labels"]) for batch in batches))).to(model.device)
    with torch.enable_grad(), evaluating(model):
        for batch in _single(batches) if squared else batches:
            loss = answer_loss(answer_states(model, batch, softmax), model.get_output_embeddings().weight, batch["labels"], softmax)
            for mean, square, gradient in zip(means, squares, torch.autograd.grad(loss, weights), strict=True):
                if mean is not None:
                    mean += gradient
                if square is not None:
                    square += gradient.square()
    found = {}
    for name, weight, mean, square in zip(names, weights, means, squares, strict=True):
        terms = [sums if sums is None else weight.detach() ** power * total(sums) / samples for power, sums in ((1, mean), (2, square))]
        found[name] = _COMBINED[order](*terms)
    return found


_COMBINED: dict[str, Callable[..., Tensor]] = {  # from w E[g] and w^2 E[g^2]
    "first": lambda first, second: first.abs(),
    "second": lambda first, second: second,
    "mix": lambda first, second: (first - second / 2).abs(),
    "vector": lambda first, second: first,
}


def _single(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Batches of one sample each."""
    for batch in batches:
        for row in range(len(batch["labels"])):
            yield {key: values[row : row + 1] for key, values in batch.items()}
