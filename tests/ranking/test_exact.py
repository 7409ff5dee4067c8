"""Exact search against brute force over the whole catalogue, and the fewest prefixes that any proof needs."""

import numpy as np
import pytest
import torch
from searching import best_titles, catalogue, prefix_scores, prompts, sharp
from tiny import every_model, llama, qwen2

from recbole_prunerec.ranking import search
from recbole_prunerec.ranking.search import rank
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.settings import Ranking


def exact(model, titles, users, k, beams=3, budget=4096, **options):
    return rank(model, Trie.build(titles), users, Ranking(search="exact", beams=beams, budget=budget), k, **options)


def inner(titles):
    return {title[:length] for title in titles for length in range(1, len(title))}


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("softmax", ["vocabulary", "catalogue"])
@every_model
def test_equals_brute_force(make, softmax, k):
    model, titles = sharp(make()), catalogue()
    found = exact(model, titles, prompts(), k, softmax=softmax)
    assert found.proven.all()
    for row, prompt in enumerate(prompts()):
        order, scores = best_titles(titles, prefix_scores(model, titles, prompt, softmax))
        assert found.titles[row].tolist() == order[:k]
        torch.testing.assert_close(found.scores[row], torch.tensor(scores[:k]), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 5])
def test_one_at_a_time_it_expands_the_fewest_prefixes_that_prove_it(k):
    """Every prefix that scores above the k-th title, and no other: those below cannot matter, and any of those above might."""
    model, titles = sharp(qwen2()), catalogue()
    found = exact(model, titles, prompts(), k, beams=1)
    for row, prompt in enumerate(prompts()):
        scores = prefix_scores(model, titles, prompt)
        needed = [prefix for prefix in inner(titles) if scores[prefix] >= best_titles(titles, scores)[1][k - 1]]
        assert len(needed) <= found.expanded[row] < len(needed) + k  # it expands k at once


@pytest.mark.parametrize("budget", [1, 2, 5, 17, 60, 133, 134])
def test_a_budget_is_kept_and_lists_are_proven_only_if_they_are(monkeypatch, budget):
    model, titles, fed = qwen2(), catalogue(), []
    original = search.exact_search
    monkeypatch.setattr(search, "exact_search", lambda expansion, *rest: (original(expansion, *rest), fed.append(expansion.slots.fed.max()))[0])
    found = exact(model, titles, prompts(), 60, budget=budget)
    assert max(fed) <= budget
    assert found.proven.tolist() == [budget >= len(inner(titles))] * 5
    for row, prompt in enumerate(prompts()):
        scores = prefix_scores(model, titles, prompt)
        assert found.titles[row].tolist() == best_titles(titles, scores)[0]  # what the budget did not allow, a beam of all titles finds
        torch.testing.assert_close(found.scores[row], torch.tensor(best_titles(titles, scores)[1]), atol=1e-5, rtol=1e-6)


def test_a_list_that_is_not_proven_has_what_either_search_finds():
    model, titles, users = sharp(qwen2()), catalogue(), prompts(20)
    for budget in (1, 4, 12):
        found = exact(model, titles, users, 3, budget=budget)
        beam = rank(model, Trie.build(titles), users, Ranking(beams=3), 3)
        assert not found.proven.all() and (found.titles >= 0).all()
        assert (found.scores >= beam.scores - 1e-5).all() and (found.scores[:, :-1] >= found.scores[:, 1:]).all()
        assert all(len(set(row)) == 3 for row in found.titles.tolist())


def test_some_budgets_suffice_for_some_users():
    """A list is said to be proven exactly where it is the best, or could be by luck: never where it is wrong."""
    model, titles, users = sharp(qwen2()), catalogue(), prompts(20)
    proven, right = [], []
    for budget in (8, 24, 32, 64):
        found = exact(model, titles, users, 3, budget=budget)
        best = [best_titles(titles, prefix_scores(model, titles, prompt))[0][:3] for prompt in users]
        right.append([row == other for row, other in zip(found.titles.tolist(), best, strict=True)])
        proven.append(found.proven.tolist())
    assert all(good for row, goods in zip(proven, right, strict=True) for sure, good in zip(row, goods, strict=True) if sure)
    shares = [sum(row) for row in proven]
    assert shares == sorted(shares) and shares[0] < shares[1] < shares[3]


def test_users_that_need_more_go_again(monkeypatch):
    """With a small first budget the lists stay the same, and only users that need more are fed twice."""
    model, titles, users = sharp(qwen2()), catalogue(), prompts(20)
    whole = exact(model, titles, users, 5)
    monkeypatch.setattr(search, "FIRST_BUDGET", 8)
    rounds = []
    original = search._Ranker.batch

    def batch(self, rows, beginning, budget, *rest):
        rounds.append((budget, len(rows)))
        return original(self, rows, beginning, budget, *rest)

    monkeypatch.setattr(search._Ranker, "batch", batch)
    done = []
    found = exact(model, titles, users, 5, budget=100, progress=done.append)
    assert found.titles.tolist() == whole.titles.tolist() and found.proven.all() and sum(done) == 20
    assert [budget for budget, _ in rounds] == [8, 32, 100][: len(rounds)]
    assert [count for _, count in rounds] == [20, *[int((whole.expanded > budget).sum()) for budget in (8, 32)]][: len(rounds)]
    assert found.expanded.tolist() == [sum(budget for budget in (8, 32) if count > budget) + count for count in whole.expanded.tolist()]


def test_ties_are_searched():
    model, titles = llama(), catalogue()
    torch.nn.init.zeros_(model.lm_head.weight)  # titles of equal length tie exactly
    found = exact(model, titles, prompts(), 7)
    assert found.titles.tolist() == [sorted(range(len(titles)), key=lambda title: (len(titles[title]), title))[:7]] * 5


def test_a_tie_with_the_worst_title_found_is_searched():
    """All titles have the same score, the assistant's, and only title 0 may be found, whose prefix is still to be expanded when title 1 ends."""
    options = Ranking(search="exact", beams=1, assistant="SASRec", assistant_weight=1)
    found = rank(qwen2(), Trie.build([(1, 2, 2), (3,)]), prompts(1), options, 1, assistant=np.array([[0.5, 0.5]]))
    assert found.titles.tolist() == [[0]]


@pytest.mark.parametrize("budget", [4, 5, 7, 8])
def test_prefixes_beyond_the_budget_are_not_forgotten(budget):
    """Eight prefixes have to be expanded: with fewer nothing is proven, even where what the budget allows has all been expanded."""
    found = exact(qwen2(), [(first, second) for first in range(1, 9) for second in (1, 2)], prompts(), 16, beams=2, budget=budget)
    assert found.proven.tolist() == [budget == 8] * 5


def test_beam_search_may_miss_what_exact_search_finds():
    """Else the tests here would say little."""
    model, titles, users = sharp(qwen2()), catalogue(), prompts(20)
    beam = rank(model, Trie.build(titles), users, Ranking(beams=3), 3)
    found = exact(model, titles, users, 3)
    assert (found.titles != beam.titles).any(1).sum() > 3
    assert (found.scores >= beam.scores - 1e-5).all()


def test_expanded_prefixes_of_one_token_titles():
    found = exact(qwen2(), [(token,) for token in range(1, 60)], prompts(), 10)
    assert found.expanded.tolist() == [0] * 5 and found.proven.all()
    assert found.titles.tolist() == [
        best_titles([(token,) for token in range(1, 60)], prefix_scores(qwen2(), [(token,) for token in range(1, 60)], prompt))[0][:10]
        for prompt in prompts()
    ]


def test_nodes_of_many_children():
    generator = np.random.default_rng(0)
    titles = sorted({tuple(generator.integers(1, 97, 2).tolist()) for _ in range(3000)}, key=hash)
    model = sharp(qwen2())
    found = exact(model, titles, prompts(3), 20)
    for row, prompt in enumerate(prompts(3)):
        assert found.titles[row].tolist() == best_titles(titles, prefix_scores(model, titles, prompt))[0][:20]
