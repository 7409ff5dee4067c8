"""Layer importance: how much worse the answers are predicted with a layer bypassed (METHOD 4, eq. 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch, answer_count, answer_states
from recbole_prunerec.backbone.softmax import Part, Softmax, summed_loss
from recbole_prunerec.distributed import total
from recbole_prunerec.errors import UserError
from recbole_prunerec.importance.hooks import Progress, bypassed, evaluating
from recbole_prunerec.importance.streams import after_layer, embedded, final_states

Search = Literal["greedy", "oneshot"]


@dataclass(frozen=True)
class LayerSearch:
    """The layers that stay, in order, and what was measured on the way: one round for `oneshot`, one a removed layer for `greedy`."""

    kept: list[int]
    base: float  # mean negative log-likelihood of an answer token in the uncut model, nats; exp of it is the perplexity
    rounds: list[dict[int, float]]  # for each layer still there, the same with it bypassed too


def layer_order(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    softmax: Softmax,
    keep: int,
    search: Search = "greedy",
    progress: Progress | None = None,
) -> LayerSearch:
    """Remove the layer whose absence costs the least perplexity, until `keep` are left; a tie goes to the higher index.

    `greedy` measures again after each removal, `oneshot` once. `progress` wraps the loop over the rounds. Raises `UserError` where the model does
    not have `keep` layers.
    """
    count = Sizes.of(model).layers
    if not 1 <= keep <= count:
        raise UserError(f"layers={keep} is not between 1 and {count}, the layers of the model")
    base, kept = mean_nll(model, batches, softmax), list(range(count))
    rounds: list[dict[int, float]] = []
    times, at_once = (count - keep, 1) if search == "greedy" else (1, count - keep)
    for _ in (progress or iter)(range(times)):
        rounds.append(bypassed_nll(model, batches, softmax, kept))
        removed = sorted(kept, key=lambda layer: (rounds[-1][layer], -layer))[:at_once]
        kept = [layer for layer in kept if layer not in removed]
    return LayerSearch(kept, base, rounds)


def bypassed_nll(model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax, kept: Sequence[int]) -> dict[int, float]:
    """`mean_nll` of the layers `kept`, ascending, with each of them bypassed in turn.

    The stream goes up once: where it enters a layer, the layers after that run on it, and then the layer itself.
    """
    gone = set(range(Sizes.of(model).layers)) - set(kept)
    sums = torch.zeros(len(kept), dtype=torch.float64)
    with torch.no_grad(), evaluating(model), bypassed(model, gone):
        for batch in batches:
            stream, mask = embedded(model, batch), softmax.positions(batch["labels"])
            for place, layer in enumerate(kept):
                sums[place] += answer_nll(model, final_states(model, layer + 1, stream)[mask], batch, softmax)
                stream = after_layer(model, layer, stream)
    return dict(zip(kept, (total(sums) / answer_tokens(batches)).tolist(), strict=True))


def mean_nll(model: PreTrainedModel, batches: Sequence[Batch], softmax: Softmax) -> float:
    """Mean negative log-likelihood, in nats, over all answer tokens of the samples of all processes."""
    with torch.no_grad(), evaluating(model):
        summed = sum(answer_nll(model, answer_states(model, batch, softmax), batch, softmax) for batch in batches)
    return float(total(torch.tensor(summed, dtype=torch.float64)) / answer_tokens(batches))


def answer_nll(model: PreTrainedModel, states: Tensor, batch: Batch, softmax: Softmax) -> float:
    """The negative log-likelihood, in nats, summed over a batch's answer tokens, from the final hidden states (answer, hidden)."""

    def loss(part: Part, logits: Tensor) -> Tensor:
        return cross_entropy(logits, part.targets, reduction="none").double().sum()[None]

    parts = softmax.parts(batch["labels"], states.shape[-1])
    return float(summed_loss(states, model.get_output_embeddings().weight, parts, loss))


def answer_tokens(batches: Sequence[Batch]) -> Tensor:
    """Answer tokens of the samples of all processes."""
    return total(torch.tensor(sum(int(answer_count(batch["labels"])) for batch in batches)))
