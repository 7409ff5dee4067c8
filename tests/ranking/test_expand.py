"""What both searches share: excluded titles, D3's assistant, and the bounds of titles that are not found."""

import numpy as np
import pytest
import torch
from searching import best_titles, catalogue, plain_beam_search, prefix_scores, prompts, sharp
from tiny import every_family, qwen2

from recbole_prunerec.ranking.expand import INDEX, NONE, index_of, key_of, score_of
from recbole_prunerec.ranking.search import rank
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.settings import Ranking

TITLES = catalogue()
TRIE = Trie.build(TITLES)
USERS = prompts()


def close(found, row, expected, k):
    titles, scores = expected
    assert found.titles[row].tolist() == (titles[:k] + [-1] * k)[:k]
    torch.testing.assert_close(found.scores[row], torch.tensor((scores[:k] + [-torch.inf] * k)[:k]), atol=2e-5, rtol=1e-6)


def test_keys_order_by_score_then_index():
    scores = torch.tensor([-0.0, 0.0, -1e-38, -1.5, -1.5, -300.0, -torch.inf])
    indices = torch.tensor([5, 4, 0, 2, 1, (1 << 31) - 2, 3])
    keys = key_of(scores, indices)
    assert keys.argsort().tolist() == [1, 0, 2, 4, 3, 5, 6]
    assert score_of(keys).tolist() == scores.tolist() and index_of(keys).tolist() == [*indices.tolist()[:-1], -1]
    assert keys[-1] == NONE and (keys[:-1] | INDEX < NONE).all()


@pytest.mark.parametrize("softmax", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("search", ["beam", "exact"])
@pytest.mark.parametrize("beams", [3, 60])
def test_excluded_titles_are_as_if_they_were_not_in_the_tree(search, beams, softmax):
    """Which lets others into the beam. Probabilities stay those of the whole tree."""
    model, generator = sharp(qwen2()), np.random.default_rng(0)
    excluded = [generator.choice(60, count, replace=True).tolist() for count in (0, 1, 8, 30, 59)]
    found = rank(model, TRIE, USERS, Ranking(search=search, beams=beams), 3, softmax=softmax, excluded=excluded)
    for row, prompt in enumerate(USERS):
        scores = prefix_scores(model, TITLES, prompt, softmax)
        left = [index for index in range(60) if index not in excluded[row]]
        titles = [TITLES[index] for index in left]
        if search == "exact" or beams == 60:
            order, values = best_titles(titles, scores)
        else:
            order, values = plain_beam_search_on(titles, scores, beams, softmax)
        close(found, row, ([left[title] for title in order], values), 3)


def plain_beam_search_on(titles, scores, beams, softmax):
    """A title is settled where no other of the whole tree shares its prefix; one that is alone only among those left goes on."""
    if softmax == "vocabulary":
        return plain_beam_search(titles, scores, beams)
    shared = {title[:length] for title in TITLES for length in range(len(title)) if sum(t[:length] == title[:length] for t in TITLES) > 1}
    cut = [next(title[:length] for length in range(1, len(title) + 1) if title[:length] not in shared) for title in titles]
    return plain_beam_search(cut, scores, beams)


def test_all_titles_excluded_but_few_gives_few():
    excluded = [list(range(60)), list(range(58)), [], [], []]
    for search in ("beam", "exact"):
        found = rank(qwen2(), TRIE, USERS, Ranking(search=search, beams=5), 5, excluded=excluded)
        assert (found.titles >= 0).sum(1).tolist() == [0, 2, 5, 5, 5]


PROBABILITIES = np.random.default_rng(3).dirichlet(np.full(60, 0.2), size=5)


@pytest.mark.parametrize("softmax", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("search", ["beam", "exact"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@every_family
def test_d3_mixes_the_assistant_in_at_every_prefix(make, weight, search, softmax):
    model = sharp(make())
    floored = np.maximum(PROBABILITIES, 1e-12)
    options = Ranking(search=search, beams=60, assistant="SASRec", assistant_weight=weight)
    found = rank(model, TRIE, USERS, options, 60, softmax=softmax, assistant=PROBABILITIES)
    for row, prompt in enumerate(USERS):
        scores = prefix_scores(model, TITLES, prompt, softmax, floored[row] / floored[row].sum(), weight)
        close(found, row, best_titles(TITLES, scores), 60)
        # The conditional probabilities of a path multiply to the title's.
        alone = prefix_scores(model, TITLES, prompt, softmax)
        for title, score in zip(found.titles[row].tolist()[:9], found.scores[row].tolist(), strict=False):
            assert score == pytest.approx((1 - weight) * alone[TITLES[title]] + weight * np.log(floored[row, title]), abs=1e-4)


def test_d3_in_a_narrow_beam():
    model = sharp(qwen2())
    found = rank(model, TRIE, USERS, Ranking(beams=3, assistant="SASRec", assistant_weight=0.4), 3, assistant=PROBABILITIES)
    without = rank(model, TRIE, USERS, Ranking(beams=3), 3)
    for row, prompt in enumerate(USERS):
        close(found, row, plain_beam_search(TITLES, prefix_scores(model, TITLES, prompt, "vocabulary", PROBABILITIES[row], 0.4), 3), 3)
    assert (found.titles != without.titles).any(1).sum() > 2


def test_an_assistant_of_weight_zero_changes_nothing_and_one_without_a_chance_is_no_nan():
    nothing = np.zeros((5, 60))
    nothing[:, 7] = 1
    for weight in (0.0, 1.0):
        found = rank(qwen2(), TRIE, USERS, Ranking(beams=60, assistant="SASRec", assistant_weight=weight), 60, assistant=nothing)
        assert (found.titles.sort(1).values == torch.arange(60)).all() and found.scores.isfinite().all()
        if weight:
            assert (found.titles[:, 0] == 7).all() and (found.scores[:, 1:] < -20).all()
        else:
            assert torch.equal(found.scores, rank(qwen2(), TRIE, USERS, Ranking(beams=60), 60).scores)


@pytest.mark.parametrize("softmax", ["vocabulary", "catalogue"])
@pytest.mark.parametrize(("search", "beams"), [("beam", 1), ("beam", 4), ("exact", 2)])
def test_bounds_are_the_scores_of_the_deepest_scored_prefixes(search, beams, softmax):
    model, fed = sharp(qwen2()), []
    found = rank(model, TRIE, USERS, Ranking(search=search, beams=beams), beams, softmax=softmax, bounds=True)
    assert found.bounds.shape == (5, 60)
    for row, prompt in enumerate(USERS):
        scores = prefix_scores(model, TITLES, prompt, softmax)
        for title, bound in zip(TITLES, found.bounds[row].tolist(), strict=True):
            fitting = [length for length in range(1, len(title) + 1) if scores[title[:length]] == pytest.approx(bound, abs=1e-5)]
            assert fitting and bound >= scores[title] - 1e-5
            fed.append(fitting[-1] < len(title))
        inside = found.titles[row]
        torch.testing.assert_close(found.bounds[row, inside], found.scores[row], rtol=0, atol=0)
    assert 0 < sum(fed) < len(fed)  # some titles are scored to their ends, others are not


def test_bounds_go_as_deep_as_was_scored():
    """A beam of one scores all children of one prefix a step: a title's bound is at where it leaves that path."""
    model = sharp(qwen2())
    found = rank(model, TRIE, USERS, Ranking(beams=1), 1, bounds=True)
    for row, prompt in enumerate(USERS):
        scores = prefix_scores(model, TITLES, prompt)
        path, best = (), -np.inf
        while True:
            children = sorted({title[: len(path) + 1] for title in TITLES if title[: len(path)] == path and len(title) > len(path)})
            going = [child for child in children if child not in TITLES]
            top = max(children, key=lambda child: scores[child])
            best = max(best, scores[top] if top in TITLES else -np.inf)
            going = [child for child in going if scores[child] >= best]
            if not going:
                break
            path = max(going, key=lambda child: scores[child])
        for title, bound in zip(TITLES, found.bounds[row].tolist(), strict=True):
            common = next((i for i in range(len(path)) if i >= len(title) or title[i] != path[i]), len(path))
            assert bound == pytest.approx(scores[title[: common + 1]], abs=1e-5)
