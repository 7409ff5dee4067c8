"""Plain references: every logit of every position, then what is asked for."""

from typing import NamedTuple

import torch
from torch import Tensor

from recbole_prunerec.backbone.softmax import answer_mask
from recbole_prunerec.ranking.trie import Trie


class Answers(NamedTuple):
    """What a model says at a batch's answer positions, row by row, in order."""

    logits: Tensor  # (answer, vocab)
    targets: Tensor  # (answer,) the token that each position should predict
    rows: Tensor  # (answer,) the row of the batch that each position belongs to


def answer_logits(model, batch, trie: Trie | None = None) -> Answers:
    """Full logits at all answer positions; with a `trie`, -inf for every token that no title goes on with."""
    labels = batch["labels"]
    mask = answer_mask(labels)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if trie is not None:
        logits = logits + closed(labels, trie, logits.shape[-1]).to(logits)
    return Answers(logits[mask], labels[:, 1:][mask[:, :-1]], mask.nonzero()[:, 0])


def closed(labels: Tensor, trie: Trie, vocab: int) -> Tensor:
    """0 for tokens that may come at an answer position, -inf for others, walking the tree from label to label. Shape (batch, position, vocab)."""
    out = torch.zeros(*labels.shape, vocab)
    for row in range(len(labels)):
        node = 0
        for position in range(1, labels.shape[1]):
            token = int(labels[row, position])
            if token < 0:
                node = 0
                continue
            tokens, nodes = trie.children(node)
            out[row, position - 1] = -torch.inf
            out[row, position - 1, tokens.long()] = 0
            node = int(nodes[tokens.tolist().index(token)])
            node = node if len(trie.children(node)[0]) else 0  # the answer is whole, and the next may follow at once
    return out
