"""What importance is compared with: full forward passes, one for each head or layer, with every logit of every position."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import answer_mask
from recbole_prunerec.importance.hooks import bypassed, evaluating, suppressed
from recbole_prunerec.ranking.trie import Trie


@torch.no_grad()
def head_scores(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    layers: Sequence[int],
    closed: Sequence[Tensor] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """KL(p || p_suppressed), in nats, of each head of `layers`. Shape (layer, head), float64.

    `closed` masks logits of each batch, (answer, vocab), for a softmax over the others. `progress` is called after each forward pass.
    """
    sizes = Sizes.of(model)
    kl = torch.zeros(len(layers), sizes.heads, dtype=torch.float64)
    with evaluating(model):
        for batch, other in zip(batches, closed or [None] * len(batches), strict=True):
            rows = answer_mask(batch["labels"]).nonzero()[:, 0]
            log_p = _log_probabilities(model, batch, other)
            for place, layer in enumerate(layers):
                for head in range(sizes.heads):
                    with suppressed(model, layer, [head], 0.0):
                        log_q = _log_probabilities(model, batch, other)
                    values = (log_p.exp() * (log_p - log_q)).sum(-1).double()
                    kl[place, head] += sum(values[rows == row].mean() for row in rows.unique())
                    progress()
    return kl / sum(len(batch["labels"]) for batch in batches)


@torch.no_grad()
def layer_rounds(
    model: PreTrainedModel, batches: Sequence[Batch], rounds: int, progress: Callable[[], object] = lambda: None
) -> list[dict[int, float]]:
    """The first `rounds` of the greedy search: the mean negative log-likelihood of an answer token with each layer bypassed that is left."""
    kept, found = list(range(Sizes.of(model).layers)), []
    with evaluating(model):
        for _ in range(rounds):
            gone, nll = set(range(Sizes.of(model).layers)) - set(kept), {}
            for layer in kept:
                with bypassed(model, gone | {layer}):
                    losses = [-_log_probabilities(model, batch).gather(1, _targets(batch)[:, None]) for batch in batches]
                nll[layer] = float(torch.cat(losses).double().mean())
                progress()
            found.append(nll)
            kept.remove(min(reversed(kept), key=nll.__getitem__))
    return found


def closed_tokens(batch: Batch, trie: Trie, vocab: int) -> Tensor:
    """True for the tokens that no title goes on with, at each answer position of a batch whose rows have one answer each. Shape (answer, vocab)."""
    closed = torch.ones(len(_targets(batch)), vocab, dtype=torch.bool)
    place = 0
    for labels in batch["labels"].tolist():
        node = 0
        for token in (label for label in labels if label >= 0):
            tokens, nodes = trie.children(node)
            closed[place, tokens.long()] = False
            node, place = int(nodes[tokens.tolist().index(token)]), place + 1
    return closed


def _targets(batch: Batch) -> Tensor:
    return batch["labels"][:, 1:][batch["labels"][:, 1:] >= 0]


def _log_probabilities(model: PreTrainedModel, batch: Batch, closed: Tensor | None = None) -> Tensor:
    """(answer, vocab), from the logits of all positions."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[answer_mask(batch["labels"])]
    if closed is not None:
        logits = logits.masked_fill(closed, torch.finfo(logits.dtype).min)
    return logits.log_softmax(-1)
