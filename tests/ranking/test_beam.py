"""Beam search against brute force over the catalogue, against a plain beam search, and against transformers' own."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from searching import best_titles, catalogue, plain_beam_search, prefix_scores, prompts, sharp
from tiny import every_model, llama, mistral, qwen2, qwen3

from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking import search
from recbole_prunerec.ranking.expand import Expansion
from recbole_prunerec.ranking.search import LARGEST_BATCH, rank
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.settings import Ranking


def beam_search(model, titles, users, beams, k=None, **options):
    keys = {key: options.pop(key) for key in ("length_penalty", "memory_mib", "assistant_weight") if key in options}
    return rank(model, Trie.build(titles), users, Ranking(beams=beams, **keys), k or beams, **options)


def assert_found(found, row, expected):
    titles, scores = expected
    assert found.titles[row].tolist() == titles
    torch.testing.assert_close(found.scores[row], torch.tensor(scores), atol=1e-5, rtol=1e-6)


@every_model
@pytest.mark.parametrize("softmax", ["vocabulary", "catalogue"])
def test_wide_search_equals_brute_force(make, softmax):
    model, titles = make(), catalogue()
    found = beam_search(model, titles, prompts(), len(titles), softmax=softmax)
    assert (found.titles.dtype, found.scores.dtype) == (torch.int64, torch.float32)
    for row, prompt in enumerate(prompts()):
        assert_found(found, row, best_titles(titles, prefix_scores(model, titles, prompt, softmax)))
    assert not found.proven.any() and found.bounds is None


@pytest.mark.parametrize("window", [1, 2, 9, 18, 19])
@pytest.mark.parametrize("make", [qwen2, qwen3, mistral])
def test_any_window_equals_brute_force(make, window):
    """In a title, in a prompt, and next to the 19 positions of the longest text: 14 of a prompt, and 5 of a title's 6, as the last is not fed."""
    model, titles = make(window=window), catalogue()
    users = [np.arange(1, 15), *prompts()]
    found, unlimited = (beam_search(each, titles, users, len(titles)) for each in (model, make()))
    for row, prompt in enumerate(users):
        assert_found(found, row, best_titles(titles, prefix_scores(model, titles, prompt)))
    matters = (found.scores != unlimited.scores).any(1)
    assert matters[0] == (window < 19) and (window > 2 or matters.all())


@pytest.mark.parametrize("beams", [1, 2, 3, 7])
@pytest.mark.parametrize("softmax", ["vocabulary", "catalogue"])
@every_model
def test_narrow_search_equals_plain_beam_search(make, beams, softmax):
    model, titles = sharp(make()), catalogue()
    found = beam_search(model, titles, prompts(), beams, softmax=softmax)
    for row, prompt in enumerate(prompts()):
        assert_found(found, row, plain_beam_search(titles, prefix_scores(model, titles, prompt, softmax), beams, settled=softmax == "catalogue"))


@pytest.mark.parametrize("beams", [4, 20])
@torch.no_grad()
def test_equals_generate(beams):
    """transformers' beam search with the same constraint, which ends a title with its last token. All titles end with the token 9."""
    model = sharp(sharp(qwen2(dtype=torch.float32)))
    titles = [(*title, 9) for title in catalogue(90)]
    starts = {title[:length] for title in titles for length in range(len(title))}
    allowed = {start: sorted({title[len(start)] for title in titles if title[: len(start)] == start}) for start in starts}
    found = beam_search(model, titles, prompts(), beams)
    missed = 0
    for row, prompt in enumerate(prompts()):
        out = model.generate(
            torch.from_numpy(prompt)[None].long(),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            max_new_tokens=8,
            eos_token_id=9,
            pad_token_id=0,
            prefix_allowed_tokens_fn=lambda _, ids, prompt=prompt: allowed.get(tuple(ids[len(prompt) :].tolist()), [9]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        theirs = [tuple(ids[len(prompt) :].tolist()[: ids[len(prompt) :].tolist().index(9) + 1]) for ids in out.sequences]
        assert [titles[title] for title in found.titles[row].tolist()] == theirs
        torch.testing.assert_close(found.scores[row], out.sequences_scores, atol=1e-4, rtol=0)
        missed += found.titles[row].tolist() != best_titles(titles, prefix_scores(model, titles, prompt))[0][:beams]
    assert missed  # else brute force would do as a reference


def test_narrow_search_differs_from_brute_force_and_between_users():
    """Else the tests of narrow searches would say little."""
    model, titles = sharp(qwen2()), catalogue()
    found = beam_search(model, titles, prompts(), 3).titles.tolist()
    best = [best_titles(titles, prefix_scores(model, titles, prompt))[0][:3] for prompt in prompts()]
    assert sum(row != other for row, other in zip(found, best, strict=True)) >= 2
    assert len(set(map(tuple, found))) >= 4


def test_titles_that_end_outside_the_beam_are_not_found():
    """Hugging Face's rule: here title 2 ends third of three candidates, and is better than what the beam of two finds later."""
    model = llama()
    titles = [(1, 1), (2, 1), (3,)]
    scores = prefix_scores(model, titles, prompts(1)[0])
    order = sorted([(1,), (2,), (3,)], key=lambda prefix: -scores[prefix])
    titles = [(*prefix, 1) if place < 2 else prefix for place, prefix in enumerate(order)]  # the last of the first step is the one that ends
    scores = prefix_scores(model, titles, prompts(1)[0])
    assert scores[titles[2]] > min(scores[titles[0]], scores[titles[1]])
    found = beam_search(model, titles, prompts(1), 2)
    assert_found(found, 0, plain_beam_search(titles, scores, 2))
    assert 2 not in found.titles[0]


def test_fewer_titles_than_beams_find_the_same():
    """With k below the beams, prefixes are dropped earlier, and nothing else changes."""
    model, titles, fed = sharp(qwen2()), catalogue(), []
    for k in (1, 3, 7):
        found, whole = beam_search(model, titles, prompts(), 7, k=k), beam_search(model, titles, prompts(), 7)
        assert found.titles.tolist() == whole.titles[:, :k].tolist()
        fed.append(int(found.expanded.sum()))
    assert fed[0] < fed[1] < fed[2] == int(whole.expanded.sum())


def test_more_beams_than_titles_are_padded():
    model, titles = llama(), catalogue()[:4]
    found = beam_search(model, titles, prompts(), 7)
    assert found.titles[:, :4].sort(1).values.tolist() == [[0, 1, 2, 3]] * 5
    assert found.titles[:, 4:].eq(-1).all()
    assert found.scores[:, 4:].eq(-torch.inf).all()


@pytest.mark.parametrize("users", [1, 3, 4, 1000])
@pytest.mark.parametrize("kind", ["beam", "exact"])
def test_batching_changes_nothing(monkeypatch, users, kind):
    monkeypatch.setitem(LARGEST_BATCH, "cpu", users)
    model, trie, rows, done = qwen2(), Trie.build(catalogue()), prompts(11, high=40), []
    options = Ranking(search=kind, beams=6)
    found = rank(model, trie, rows, options, 6, progress=done.append)
    alone = [rank(model, trie, [row], options, 6) for row in rows]
    assert found.titles.tolist() == [row.titles[0].tolist() for row in alone]
    assert found.expanded.tolist() == [row.expanded[0].item() for row in alone]
    torch.testing.assert_close(found.scores, torch.cat([row.scores for row in alone]), atol=1e-5, rtol=0)
    assert sum(done) == 11 and len(done) == -(-11 // users)


def test_batches_fit_into_memory():
    """What a batch stores, counted by hand: keys and values of the prompt and six times the beams, in three layers, for 2 heads of 8."""
    model, trie = qwen2(), Trie.build(catalogue())
    stored = 2 * 3 * 2 * 8 * (100 + 6 * 6) * 8
    for memory in (1, 4):
        done = []
        rank(model, trie, prompts(60, low=100, high=101), Ranking(beams=6, memory_mib=memory), 6, progress=done.append)
        assert 0.6 < done[0] * stored / (memory * 2**20) <= 1
        assert len(set(done[:-1])) == 1 and sum(done) == 60


def test_long_prompts_are_ranked_with_long_ones():
    model, trie, lengths = qwen2(), Trie.build(catalogue()), []
    original = search._Ranker.batch

    def batch(self, rows, *rest):
        lengths.append([len(row) for row in rows])
        return original(self, rows, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LARGEST_BATCH, "cpu", 4)
        patch.setattr(search._Ranker, "batch", batch)
        rank(model, trie, prompts(11, high=40), Ranking(beams=3), 3)
    assert list(chain(*lengths)) == sorted(map(len, prompts(11, high=40)), reverse=True)


@pytest.mark.parametrize("shared", [0, 1, 6])
def test_what_all_prompts_begin_with_goes_through_the_model_once(shared):
    model, titles, seen = qwen2(), catalogue(), []
    users = [np.concatenate([np.arange(10, 10 + shared), [20 + user], prompt]) for user, prompt in enumerate(prompts())]
    handle = model.model.embed_tokens.register_forward_hook(lambda module, ids, output: seen.append(ids[0].numel()))
    found = beam_search(model, titles, users, 3)
    handle.remove()
    assert sum(seen) == shared + sum(len(user) - shared for user in users) + int(found.expanded.sum())
    for row, prompt in enumerate(users):
        assert_found(found, row, plain_beam_search(titles, prefix_scores(model, titles, prompt), 3))


def test_equal_prompts_keep_a_token_of_their_own():
    model, titles = qwen2(), catalogue()
    found = beam_search(model, titles, [np.array([7, 8, 9]), np.array([7, 8, 9])], 4)
    for row in range(2):
        assert_found(found, row, plain_beam_search(titles, prefix_scores(model, titles, np.array([7, 8, 9])), 4))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_low_precision_is_close_to_float64(dtype, tolerance):
    titles = catalogue()
    model = qwen2(dtype=dtype)
    found = beam_search(model, titles, prompts(), len(titles))
    model = model.double()
    for row, prompt in enumerate(prompts()):
        scores = prefix_scores(model, titles, prompt)
        expected = torch.tensor([scores[titles[title]] for title in found.titles[row]])
        torch.testing.assert_close(found.scores[row], expected, atol=tolerance, rtol=0)
        assert found.scores.dtype == torch.float32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_model_is_given_back_as_it_came(attention):
    model = qwen2(attn_implementation=attention)
    beam_search(model, catalogue(), prompts(), 2)
    assert model.config._attn_implementation == attention
    with pytest.raises(UserError):
        beam_search(model, catalogue(), [np.array([], dtype=np.int64)], 2)
    assert model.config._attn_implementation == attention


def uniform_model(dtype=torch.float64):
    """Every token has the same probability everywhere, so that titles of equal length tie exactly."""
    model = llama(dtype=dtype)
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_log_softmax_is_float32_whatever_the_models_type(dtype):
    titles = catalogue()
    found = beam_search(uniform_model(dtype), titles, prompts(), len(titles))
    lengths = torch.tensor([len(title) for title in titles])[found.titles]
    torch.testing.assert_close(found.scores, -lengths * np.log(97).astype(np.float32), atol=1e-5, rtol=0)


def test_ties_go_to_the_lower_title():
    titles = catalogue()
    found = beam_search(uniform_model(), titles, prompts(), len(titles))
    assert found.titles.tolist() == [sorted(range(len(titles)), key=lambda title: len(titles[title]))] * 5


@pytest.mark.parametrize("beams", [1, 4, 9])
def test_ties_between_prefixes_go_to_the_better_parent_then_the_lower_token(beams):
    titles, model = catalogue(), uniform_model()
    found = beam_search(model, titles, prompts(2), beams)
    for row, prompt in enumerate(prompts(2)):
        assert found.titles[row].tolist() == plain_beam_search(titles, prefix_scores(model, titles, prompt), beams)[0]


@pytest.mark.parametrize("penalty", [-1.0, 0.5, 2.0])
def test_a_length_penalty_divides_and_nothing_is_dropped(penalty):
    model, titles = sharp(qwen2()), catalogue()
    found = beam_search(model, titles, prompts(), len(titles), length_penalty=penalty)
    for row, prompt in enumerate(prompts()):
        scores = {title: score / max(len(title), 1) ** penalty for title, score in prefix_scores(model, titles, prompt).items()}
        assert_found(found, row, best_titles(titles, scores))
    prefixes = {title[:length] for title in titles for length in range(1, len(title))}
    assert found.expanded.tolist() == [len(prefixes)] * 5
    assert beam_search(model, titles, prompts(), len(titles), k=1, length_penalty=penalty).expanded.tolist() == [len(prefixes)] * 5


def test_a_length_penalty_counts_all_tokens_of_a_title_that_is_settled_early():
    model, titles = sharp(qwen2()), catalogue()
    found = beam_search(model, titles, prompts(), len(titles), softmax="catalogue", length_penalty=1.0)
    for row, prompt in enumerate(prompts()):
        scores = {title: score / max(len(title), 1) for title, score in prefix_scores(model, titles, prompt, "catalogue").items()}
        assert_found(found, row, best_titles(titles, scores))


def test_stops_when_no_prefix_can_beat_the_finished_titles():
    model, calls = uniform_model(), []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    found = beam_search(model, [(1,), (2,), (3, 4, 5, 6, 7)], prompts(), 2)
    assert found.titles.tolist() == [[0, 1]] * 5
    assert len(calls) == 2  # the prompts, and one step for the prefix (3,), which ties until then


def test_users_that_are_done_hold_nobody_up():
    """Each step feeds exactly the prefixes that each user would feed alone: no padding, no dead beams."""
    model, titles, fed = sharp(sharp(qwen2())), catalogue(), []
    model.model.embed_tokens.register_forward_hook(lambda module, ids, output: fed[-1].append(ids[0].numel()))

    def steps(users):
        fed.append([])
        found = beam_search(model, titles, users, 9)
        return fed.pop()[1:] + [0] * 9, int(found.expanded.sum())

    alone = [steps([user])[0][:6] for user in prompts()]
    assert len(set(map(tuple, alone))) > 1
    together, expanded = steps(prompts())
    assert together[:6] == [sum(column) for column in zip(*alone, strict=True)] and sum(together) == expanded


def test_catalogue_softmax_ends_a_title_as_soon_as_it_is_settled():
    found = {softmax: beam_search(qwen2(), catalogue(), prompts(), 60, softmax=softmax) for softmax in ("vocabulary", "catalogue")}
    assert found["catalogue"].expanded.max() < found["vocabulary"].expanded.min() / 2
    torch.testing.assert_close(found["catalogue"].scores.double().exp().sum(1), torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_nodes_of_many_children():
    """More than fit into one block, and some than into `beams` blocks."""
    generator = np.random.default_rng(0)
    titles = sorted({tuple(generator.integers(1, 97, 2).tolist()) for _ in range(3000)}, key=hash)
    model = sharp(qwen2())
    for beams in (1, 5, 40):
        found = beam_search(model, titles, prompts(3), beams)
        for row, prompt in enumerate(prompts(3)):
            assert_found(found, row, plain_beam_search(titles, prefix_scores(model, titles, prompt), beams))


def test_empty_prompts_are_refused():
    with pytest.raises(UserError, match="1 of 2 prompts are empty"):
        beam_search(llama(), [(1,), (2,)], [np.array([3]), np.array([], dtype=np.int64)], 2)


@pytest.mark.parametrize("kind", ["beam", "exact"])
def test_scores_that_are_not_finite_are_refused(kind):
    model = llama()
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(UserError, match="not finite"):
        rank(model, Trie.build(catalogue()), prompts(), Ranking(search=kind, beams=3), 3)


READS = ("tolist", "item", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__index__", "__float__")


@pytest.mark.parametrize(("kind", "more"), [("beam", 0), ("exact", 1)])
def test_the_device_is_waited_for_once_an_expansion(monkeypatch, kind, more):
    """A read makes the host wait for a GPU: one tells how many prefixes live, and exact search cuts what waits with another."""
    reads, expansions = Counter(), []
    searching, expand = getattr(search, f"{kind}_search"), Expansion.expand

    def counted(*args):
        with monkeypatch.context() as patch:
            for name in READS:
                original = getattr(torch.Tensor, name)
                patch.setattr(torch.Tensor, name, lambda self, *rest, name=name, original=original: reads.update([name]) or original(self, *rest))
            return searching(*args)

    monkeypatch.setattr(search, f"{kind}_search", counted)
    monkeypatch.setattr(Expansion, "expand", lambda self, *args: expansions.append(1) or expand(self, *args))
    rank(qwen2(), Trie.build(catalogue()), prompts(), Ranking(search=kind, beams=5), 5)
    assert len(expansions) > 3 and reads.pop("tolist") == len(expansions)
    assert reads.total() == len(expansions) * more + 1  # and the number of the root's children
