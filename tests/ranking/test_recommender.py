"""Ranking items for histories against scoring every title of the catalogue by itself."""

import numpy as np
import pytest
import torch
from tiny import llama, qwen2

from recbole_prunerec.ranking.recommender import Recommender
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import TEMPLATES, Prompts
from recbole_prunerec.text.tokenizer import train_tokenizer

TITLES = ["Heat", "Heat and Dust", "Toy Story", "Heat", "Toy Soldiers", "Seven", "The Net", "Seven", "Casino", "The Nutty Professor"]
POPULARITY = [0, 3, 1, 4, 9, 2, 5, 2, 5, 0, 7]
CATALOGUE = Catalogue.build([str(item) for item in range(11)], ["", *TITLES], POPULARITY)
TOKENIZER = train_tokenizer(TITLES, 275)
HISTORIES = [[1], [3, 5, 2], [10, 9, 8, 7, 6], [4, 4, 4], [6, 2]]


def by_brute_force(model, prompts: Prompts, history: list[int]) -> list[int]:
    """Items by the log-probability of their whole answer, then popularity, then id."""
    scores = {}
    for item in range(1, 11):
        prompt, answer = prompts.prompt(history), prompts.answer(item)
        logits = model(torch.from_numpy(np.concatenate([prompt, answer]))[None]).logits[0]
        steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
        scores[item] = steps[torch.arange(len(answer)), torch.from_numpy(answer)].sum().item()
    return sorted(scores, key=lambda item: (-round(scores[item], 9), -POPULARITY[item], item))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", [qwen2, llama])
def test_with_enough_beams_the_order_is_that_of_the_whole_catalogue(template, family):
    model, prompts = family(vocab_size=len(TOKENIZER)), Prompts(TOKENIZER, CATALOGUE, template, 512)
    order = Recommender(model, prompts, beams=40, batch_size=2).order(HISTORIES)
    assert order.tolist() == [by_brute_force(model, prompts, history) for history in HISTORIES]


def test_with_few_beams_the_rest_follows_by_popularity():
    model, prompts = qwen2(vocab_size=len(TOKENIZER)), Prompts(TOKENIZER, CATALOGUE, "list", 512)
    order = Recommender(model, prompts, beams=2, batch_size=8).order(HISTORIES)
    for items in order.tolist():
        assert sorted(items) == list(range(1, 11))
        titles = list(dict.fromkeys(TITLES[item - 1] for item in items))
        found = [item for item in items if TITLES[item - 1] in titles[:2]]
        rest = [item for item in items if item not in found]
        assert items == found + rest and rest == sorted(rest, key=lambda item: (-POPULARITY[item], item))
