"""Importance by full forward passes with every logit, one part of the model at a time; and batches whose answers are titles of a small catalogue."""

from contextlib import ExitStack

import numpy as np
import torch
from naive import answer_logits

from recbole_prunerec.backbone.softmax import Catalogue, Vocabulary
from recbole_prunerec.importance.hooks import bypassed, suppressed
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.text.packing import collate
from recbole_prunerec.text.prompts import Example

END = 96


def titles(count: int = 40) -> list[list[int]]:
    """Distinct titles over few tokens, so that many begin alike and some places leave no choice; each ends with `END`."""
    generator = np.random.default_rng(0)
    found = {tuple(generator.integers(1, 7, size=generator.integers(1, 6)).tolist()) for _ in range(count)}
    return [[*title, END] for title in sorted(found)]


TITLES = titles()
TRIE = Trie.build(TITLES)
VOCABULARY, CATALOGUE = Vocabulary(97), Catalogue(TRIE)
SOFTMAXES = {"vocabulary": (VOCABULARY, None), "catalogue": (CATALOGUE, TRIE)}  # with what the functions below take for them


def title_batch(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Random prompts, each before a title, padded on the right."""
    generator = np.random.default_rng(seed)
    examples = []
    for _ in range(rows):
        prompt, answer = generator.integers(1, 97, size=generator.integers(5, 16)), TITLES[generator.integers(len(TITLES))]
        examples.append(Example(np.array([*prompt, *answer]), np.array([-100] * len(prompt) + answer)))
    return collate(examples, 0)


BATCHES = [title_batch(3, 1), title_batch(2, 2)]


def by_row(values: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
    """The `values` of each row of a batch."""
    return [values[rows == row] for row in range(int(rows.max()) + 1)]


@torch.no_grad()
def divergence(model, batches, changes, trie=None, positions="answer") -> float:
    """Mean over samples of the mean over answer positions of KL(p || p under `changes`), which are contexts such as `suppressed`."""
    means = []
    for batch in batches:
        before = answer_logits(model, batch, trie)
        with ExitStack() as stack:
            for change in changes:
                stack.enter_context(change())
            after = answer_logits(model, batch, trie)
        log_p, log_q = before.logits.log_softmax(-1), after.logits.log_softmax(-1)
        kl = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(-1)
        means += [row[: 1 if positions == "first" else None].mean() for row in by_row(kl, before.rows)]
    return float(torch.stack(means).mean())


def head_importance(model, batches, trie=None, epsilon=0.0, positions="answer", removed=()) -> torch.Tensor:
    """(layer, head) divergences; the heads `removed[layer]` are suppressed, too, while later layers are measured."""
    config, rows, before = model.config, [], []
    for layer in range(config.num_hidden_layers):
        changes = [[*before, lambda head=head, layer=layer: suppressed(model, layer, [head], epsilon)] for head in range(config.num_attention_heads)]
        rows.append([divergence(model, batches, change, trie, positions) for change in changes])
        if removed:
            before.append(lambda layer=layer: suppressed(model, layer, removed[layer], epsilon))
    return torch.tensor(rows, dtype=torch.float64)


def losses(model, batch, trie=None) -> list[torch.Tensor]:
    """The negative log-likelihoods of each row's answer tokens."""
    answers = answer_logits(model, batch, trie)
    return by_row(-answers.logits.log_softmax(-1).gather(1, answers.targets[:, None])[:, 0], answers.rows)


@torch.no_grad()
def nll(model, batches, trie=None, gone=()) -> float:
    """Mean over all answer tokens with the layers `gone` bypassed."""
    with bypassed(model, gone):
        return float(torch.cat([row for batch in batches for row in losses(model, batch, trie)]).mean())


def layer_rounds(model, batches, keep, trie=None) -> tuple[list[int], list[dict[int, float]]]:
    """The greedy search: the layers that stay, and what every round measured."""
    kept, rounds = list(range(model.config.num_hidden_layers)), []
    while len(kept) > keep:
        gone = set(range(model.config.num_hidden_layers)) - set(kept)
        rounds.append({layer: nll(model, batches, trie, gone | {layer}) for layer in kept})
        kept.remove(min(reversed(kept), key=rounds[-1].get))
    return kept, rounds
