"""Importance of the residual stream's dimensions (METHOD 2, eq. 7), and what its norms need once it is narrower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of, state_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import Part, Softmax, answer_mask, summed_loss
from recbole_prunerec.distributed import total
from recbole_prunerec.importance.hooks import evaluating, watching
from recbole_prunerec.importance.inputs import position_count
from recbole_prunerec.importance.streams import embedded, final_states

HiddenScore = Literal["product", "gradient", "embedding"]


def hidden_importance(model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, score: HiddenScore = "product") -> Tensor:
    """Mean |E * G| of each hidden dimension over the non-padded positions of the samples of all processes (eq. 7). Shape (hidden,), float64.

    E is the embedded input and G its gradient of a sample's mean answer loss, in nats; losses are summed over a batch, so that batching does not
    scale G. `gradient` gives the mean |G|, `embedding` the mean |weight| over the vocabulary. The parameters' `.grad` stays as it was.
    """
    if score == "embedding":
        return state_of(model)[family_of(model.config).embedding + ".weight"].double().abs().mean(0).cpu()
    sums = torch.zeros(Sizes.of(model).hidden, dtype=torch.float64)
    with torch.enable_grad(), evaluating(model):
        for batch in batches:
            entering = embedded(model, batch).detach().requires_grad_()
            states = final_states(model, 0, entering)[softmax.positions(batch["labels"])]
            loss = answer_loss(states, model.get_output_embeddings().weight.detach(), batch["labels"], softmax)
            gradient = torch.autograd.grad(loss, entering)[0].double()
            values = gradient if score == "gradient" else entering.detach() * gradient
            sums += values[batch["attention_mask"].bool()].abs().sum(0).cpu()
    return total(sums) / position_count(batches)


def answer_loss(states: Tensor, head: Tensor, labels: Tensor, softmax: Softmax) -> Tensor:
    """Sum over a batch's samples of each sample's mean cross-entropy over its answer tokens, from the final hidden states (answer, hidden) and the
    output head's weight."""
    count = answer_mask(labels).sum(1).repeat_interleave(softmax.positions(labels).sum(1))  # answer positions of a position's sample

    def loss(part: Part, logits: Tensor) -> Tensor:
        return (cross_entropy(logits, part.targets, reduction="none") / count[part.places]).sum()[None]

    return summed_loss(states, head, softmax.parts(labels, head.shape[-1]), loss)[0]


def norm_scales(model: PreTrainedModel, batches: Sequence[Batch], keep: Sequence[int]) -> dict[str, float]:
    """For each norm on the residual stream, by module name, the mean over all non-padded tokens of rms(kept dimensions) / rms(all) at its input.

    A norm that reads only the dimensions `keep` divides by their root mean square; this factor on its weight makes up for it.
    """
    names = family_of(model.config).residual_norms(Sizes.of(model).layers)
    sums = torch.zeros(len(names), dtype=torch.float64)
    kept = torch.tensor(keep, device=model.device)
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            mask = batch["attention_mask"].bool()

            def see(name: str, stream: Tensor, output: Tensor, mask: Tensor = mask) -> None:
                squares = stream[mask].double().square()
                sums[names.index(name)] += (squares[:, kept].mean(1) / squares.mean(1)).sqrt().sum().cpu()

            with watching(model, names, see):
                model.base_model(input_ids=batch["input_ids"], use_cache=False)
    return dict(zip(names, (total(sums) / position_count(batches)).tolist(), strict=True))
