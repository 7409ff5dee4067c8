"""Importance of the residual stream's dimensions (METHOD 2, eq. 7), and what its norms need once it is narrower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of, state_of
from recbole_prunerec.backbone.forward import Batch, answer_mask, mean_by_row
from recbole_prunerec.importance.hooks import evaluating, watching

HiddenScore = Literal["product", "gradient", "embedding"]


def hidden_importance(model: PreTrainedModel, batches: Sequence[Batch], score: HiddenScore = "product") -> Tensor:
    """Mean |E * G| of each hidden dimension over the non-padded positions of all samples (eq. 7). Shape (hidden,), float64.

    E is the embedded input and G its gradient of a sample's mean answer loss, in nats; losses are summed over a batch, so that batching does not
    scale G. `gradient` gives the mean |G|, `embedding` the mean |weight| over the vocabulary. The parameters' `.grad` stays as it was.
    """
    embedding = model.get_input_embeddings()
    if score == "embedding":
        return state_of(model)[family_of(model.config).embedding + ".weight"].double().abs().mean(0).cpu()
    total = torch.zeros(Sizes.of(model).hidden, dtype=torch.float64)
    with torch.enable_grad(), evaluating(model):
        for batch in batches:
            embedded = embedding(batch["input_ids"]).detach().requires_grad_()
            gradient = torch.autograd.grad(_summed_loss(model, embedded, batch), embedded)[0].double()
            values = gradient if score == "gradient" else embedded.detach() * gradient
            total += values[batch["attention_mask"].bool()].abs().sum(0).cpu()
    return total / sum(int(batch["attention_mask"].sum()) for batch in batches)


def _summed_loss(model: PreTrainedModel, embedded: Tensor, batch: Batch) -> Tensor:
    """Sum over a batch's samples of each sample's mean cross-entropy over its answer tokens."""
    mask = answer_mask(batch["labels"])
    hidden = model.base_model(inputs_embeds=embedded, attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[mask])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(logits, batch["labels"][:, 1:][mask[:, :-1]], reduction="none")
    return mean_by_row(losses, mask.nonzero()[:, 0], len(mask)).sum()


def norm_scales(model: PreTrainedModel, batches: Sequence[Batch], keep: Sequence[int]) -> dict[str, float]:
    """For each norm on the residual stream, by module name, the mean over non-padded tokens of rms(kept dimensions) / rms(all) at its input.

    A norm that reads only the dimensions `keep` divides by their root mean square; this factor on its weight makes up for it.
    """
    names = family_of(model.config).residual_norms(Sizes.of(model).layers)
    sums = dict.fromkeys(names, 0.0)
    kept = torch.tensor(keep, device=model.device)
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            mask = batch["attention_mask"].bool()

            def see(name: str, stream: Tensor, output: Tensor, mask: Tensor = mask) -> None:
                squares = stream[mask].double().square()
                sums[name] += float((squares[:, kept].mean(1) / squares.mean(1)).sqrt().sum())

            with watching(model, names, see):
                model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return {name: value / tokens for name, value in sums.items()}
