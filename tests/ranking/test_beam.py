import numpy as np
import pytest
import torch
from tiny import every_model, llama, mistral, qwen2, qwen3

from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking import beam
from recbole_prunerec.ranking.beam import beam_search, rank
from recbole_prunerec.ranking.trie import Trie


def catalogue(count=60, seed=0):
    """Distinct titles of 1..6 tokens from few tokens, so that prefixes are shared; none is a prefix of another."""
    generator = np.random.default_rng(seed)
    titles = []
    while len(titles) < count:
        new = tuple(generator.integers(1, 9, generator.choice([1, 2, 3, 4, 5, 6], p=[0.01, 0.04, 0.2, 0.25, 0.25, 0.25])).tolist())
        if not any(new[: len(old)] == old[: len(new)] for old in titles):
            titles.append(new)
    assert {len(title) for title in titles} == {1, 2, 3, 4, 5, 6}
    return titles


def prompts(count=5, low=3, high=15, seed=1):
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 97, generator.integers(low, high)).astype(np.int32) for _ in range(count)]


@torch.no_grad()
def log_probabilities(model, rows):
    """(row, position, vocab) for sequences of one length, without a cache or padding."""
    return model(torch.tensor(rows)).logits.float().log_softmax(-1)


def brute_force(model, titles, prompt):
    """Every title's score, by a plain forward pass over prompt and title, best first."""
    scores = [0.0] * len(titles)
    for length in set(map(len, titles)):
        those = [number for number, title in enumerate(titles) if len(title) == length]
        logp = log_probabilities(model, [[*prompt.tolist(), *titles[number]] for number in those])
        for row, number in zip(logp, those, strict=True):
            scores[number] = sum(float(row[len(prompt) - 1 + step, token]) for step, token in enumerate(titles[number]))
    order = sorted(range(len(titles)), key=lambda title: (-scores[title], title))
    return order, [scores[title] for title in order]


def plain_beam_search(model, titles, prompt, beams):
    """One user, lists of Python, no cache; no prefix is ever dropped early, which must make no difference."""
    index = {title: number for number, title in enumerate(titles)}
    live, done = [((), 0.0)], []
    while live:
        candidates = []
        logp = log_probabilities(model, [[*prompt.tolist(), *prefix] for prefix, _ in live])[:, -1]
        for (prefix, score), row in zip(live, logp, strict=True):
            tokens = sorted({title[len(prefix)] for title in titles if title[: len(prefix)] == prefix})
            candidates += [((*prefix, token), score + float(row[token])) for token in tokens]
        done += [(-score, index[prefix]) for prefix, score in candidates if prefix in index]
        live = sorted((item for item in candidates if item[0] not in index), key=lambda item: -item[1])[:beams]
    done = sorted(done)[:beams]
    return [title for _, title in done], [-score for score, _ in done]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@every_model
def test_wide_search_equals_brute_force(make, attention):
    model, titles = make(attn_implementation=attention), catalogue()
    found = beam_search(model, Trie.build(titles), prompts(), beams=len(titles))
    assert (found.titles.dtype, found.scores.dtype) == (torch.int64, torch.float32)
    for row, prompt in enumerate(prompts()):
        order, scores = brute_force(model, titles, prompt)
        assert found.titles[row].tolist() == order
        torch.testing.assert_close(found.scores[row], torch.tensor(scores), atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [1, 2, 9, 18, 19])
@pytest.mark.parametrize("make", [qwen2, qwen3, mistral])
def test_any_window_equals_brute_force(make, window):
    """In a title, in a prompt, and next to the 19 positions of the longest text: 14 of a prompt, and 5 of a title's 6, as the last is not fed."""
    model, titles = make(window=window), catalogue()
    users = [np.arange(1, 15), *prompts()]
    found, unlimited = (beam_search(each, Trie.build(titles), users, beams=len(titles)) for each in (model, make()))
    for row, prompt in enumerate(users):
        order, scores = brute_force(model, titles, prompt)
        assert found.titles[row].tolist() == order
        torch.testing.assert_close(found.scores[row], torch.tensor(scores), atol=1e-5, rtol=0)
    matters = (found.scores != unlimited.scores).any(1)
    assert matters[0] == (window < 19) and (window > 2 or matters.all())


@pytest.mark.parametrize(
    ("model", "masks_a_step"),
    [(qwen2(), 1), (llama(), 1), (mistral(), 1), (mistral(window=19), 1), (qwen3(window=19), 1), (mistral(window=18), 2), (qwen3(window=18), 2)],
)
def test_only_a_window_within_reach_costs_a_second_mask(monkeypatch, model, masks_a_step):
    built, steps, additive = [], [], beam._additive
    monkeypatch.setattr(beam, "_additive", lambda *args: built.append(1) or additive(*args))
    handle = model.base_model.register_forward_hook(lambda *_: steps.append(1))
    beam_search(model, Trie.build(catalogue()), [np.arange(1, 15)], beams=3)
    handle.remove()
    assert len(steps) > 2 and len(built) == (len(steps) - 1) * masks_a_step


def sharp(model):
    """Spread the logits, so that a few tokens take most of the probability and narrow searches miss the best titles."""
    with torch.no_grad():
        model.model.norm.weight.mul_(3)
    return model


@pytest.mark.parametrize("beams", [1, 2, 3, 7])
@every_model
def test_narrow_search_equals_plain_beam_search(make, beams):
    model, titles = sharp(make()), catalogue()
    found = beam_search(model, Trie.build(titles), prompts(), beams)
    for row, prompt in enumerate(prompts()):
        order, scores = plain_beam_search(model, titles, prompt, beams)
        assert found.titles[row].tolist() == order
        torch.testing.assert_close(found.scores[row], torch.tensor(scores), atol=1e-5, rtol=1e-6)


def test_narrow_search_differs_from_brute_force_and_between_users():
    """Else the test above would say little."""
    model, titles = sharp(qwen2()), catalogue()
    found = beam_search(model, Trie.build(titles), prompts(), beams=3).titles.tolist()
    best = [brute_force(model, titles, prompt)[0][:3] for prompt in prompts()]
    assert sum(row != other for row, other in zip(found, best, strict=True)) >= 2
    assert len(set(map(tuple, found))) >= 4


def test_more_beams_than_titles_are_padded():
    model, titles = llama(), catalogue()[:4]
    found = beam_search(model, Trie.build(titles), prompts(), beams=7)
    assert found.titles[:, :4].sort(1).values.tolist() == [[0, 1, 2, 3]] * 5
    assert found.titles[:, 4:].eq(-1).all()
    assert found.scores[:, 4:].eq(-torch.inf).all()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_batching_and_padding_change_nothing(batch_size):
    model, trie, users, done = qwen2(), Trie.build(catalogue()), prompts(11, high=40), []
    found = rank(model, trie, users, 6, batch_size, pad_id=5, progress=done.append)
    alone = [beam_search(model, trie, [user], 6) for user in users]
    assert found.titles.tolist() == [row.titles[0].tolist() for row in alone]
    torch.testing.assert_close(found.scores, torch.cat([row.scores for row in alone]), atol=1e-5, rtol=0)
    assert done == [min(batch_size, 11 - start) for start in range(0, 11, batch_size)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_low_precision_is_close_to_float64(dtype, tolerance, attention):
    titles = catalogue()
    model = qwen2(dtype=dtype, attn_implementation=attention)
    found = beam_search(model, Trie.build(titles), prompts(), beams=len(titles))
    model = model.double()
    for row, prompt in enumerate(prompts()):
        order, scores = brute_force(model, titles, prompt)
        expected = torch.tensor(scores)[torch.tensor(order).argsort()]
        torch.testing.assert_close(found.scores[row], expected[found.titles[row]], atol=tolerance, rtol=0)
        assert found.scores.dtype == torch.float32


def uniform_model(dtype=torch.float64):
    """Every token has the same probability everywhere, so that titles of equal length tie exactly."""
    model = llama(dtype=dtype)
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_log_softmax_is_float32_whatever_the_models_type(dtype):
    titles = catalogue()
    found = beam_search(uniform_model(dtype), Trie.build(titles), prompts(), beams=len(titles))
    lengths = torch.tensor([len(title) for title in titles])[found.titles]
    torch.testing.assert_close(found.scores, -lengths * np.log(97).astype(np.float32), atol=1e-5, rtol=0)


def test_ties_go_to_the_lower_title():
    titles = catalogue()
    found = beam_search(uniform_model(), Trie.build(titles), prompts(), beams=len(titles))
    assert found.titles.tolist() == [sorted(range(len(titles)), key=lambda title: len(titles[title]))] * 5


@pytest.mark.parametrize("beams", [1, 4, 9])
def test_ties_between_prefixes_go_to_the_better_parent_then_the_lower_token(beams):
    titles, model = catalogue(), uniform_model()
    found = beam_search(model, Trie.build(titles), prompts(2), beams)
    for row, prompt in enumerate(prompts(2)):
        assert found.titles[row].tolist() == plain_beam_search(model, titles, prompt, beams)[0]


def test_stops_when_no_prefix_can_beat_the_finished_titles():
    model, calls = uniform_model(), []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    found = beam_search(model, Trie.build([(1,), (2,), (3, 4, 5, 6, 7)]), prompts(), beams=2)
    assert found.titles.tolist() == [[0, 1]] * 5
    assert len(calls) == 2  # the prompt, and one step for the prefix (3,), which ties until then


@pytest.mark.parametrize("beams", [9, 41])
def test_dead_beams_have_no_candidates(beams):
    """In a batch, each step is as wide as the user with most live beams needs: dead beams of the others never come back to life."""
    model, trie, widths = sharp(sharp(qwen2())), Trie.build(catalogue()), []
    model.model.embed_tokens.register_forward_hook(lambda module, ids, output: widths[-1].append(ids[0].shape[1]))

    def steps(users):
        widths.append([])
        beam_search(model, trie, users, beams)
        return widths.pop()[1:] + [0] * trie.depth

    alone = [steps([user]) for user in prompts()]
    assert len(set(map(tuple, alone))) > 1
    together = steps(prompts())
    assert together[: trie.depth] == [max(column) for column in zip(*(row[: trie.depth] for row in alone), strict=True)]


def test_empty_prompts_are_refused():
    with pytest.raises(UserError, match="1 of 2 prompts are empty"):
        beam_search(llama(), Trie.build([(1,), (2,)]), [np.array([3]), np.array([], dtype=np.int64)], beams=2)


def test_scores_that_are_not_finite_are_refused():
    model = llama()
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(UserError, match="not finite"):
        beam_search(model, Trie.build(catalogue()), prompts(), beams=3)
