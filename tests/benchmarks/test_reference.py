import numpy as np
import pytest
import reference
import torch
from reference import SAME, Generate, alike, seconds_per_token, title_scores
from tiny import llama, qwen2
from transformers import GenerationConfig

PAD = 12  # stands in prompts, too, so that only a mask tells
END = 90  # ends every title, and stands nowhere else
TITLES = [np.array([*title, END]) for title in ([1], [2, 3], [2, 4], [2, 4, 5], [6, 1, 7, 1], [6, 1, 7, 2], [6, 2], [1, 2, 3, 4, 5])]
PROMPTS = [np.array(prompt) for prompt in ([11, 12, 13, 14, 15], [31, 12], [14, 13, 22, 35, 36, 17, 18])]


def sharp(model):
    """Logits spread so far that narrow searches miss good titles."""
    with torch.no_grad():
        model.model.norm.weight.mul_(6)
    return model


@torch.no_grad()
def next_token(model, ids):
    return model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)


def brute_force(model, prompt):
    """Each title's score, token by token, without a cache."""
    return [sum(float(next_token(model, [*prompt, *title[:place]])[token]) for place, token in enumerate(title)) for title in map(list, TITLES)]


def plain_beam_search(model, prompt, beams):
    """Prefixes and finished titles compete for the `beams` places of a step, as in `generate`."""
    titles = [tuple(title.tolist()) for title in TITLES]
    live, done = [((), 0.0)], []
    while live:
        candidates = []
        for prefix, score in live:
            step = next_token(model, [*prompt, *prefix])
            candidates += [((*prefix, t), score + float(step[t])) for t in {title[len(prefix)] for title in titles if title[: len(prefix)] == prefix}]
        candidates.sort(key=lambda item: -item[1])
        done += [item for item in candidates[:beams] if item[0][-1] == END]
        live = [item for item in candidates if item[0][-1] != END][:beams]
    return [titles.index(title) for title, _ in sorted(done, key=lambda item: -item[1])[:beams]]


def test_with_as_many_beams_as_titles_generate_finds_them_by_score():
    model = llama(dtype=torch.float32)
    found = Generate(model, TITLES, [END], PAD).rank(PROMPTS, len(TITLES))
    assert found == [sorted(range(len(TITLES)), key=lambda title: -scores[title]) for scores in (brute_force(model, prompt) for prompt in PROMPTS)]


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_with_few_beams_generate_is_plain_beam_search(beams):
    model = sharp(qwen2(dtype=torch.float32))
    found = Generate(model, TITLES, [END], PAD).rank(PROMPTS, beams)
    expected = [plain_beam_search(model, prompt, beams) for prompt in PROMPTS]
    assert [[title for title in row if title >= 0] for row in found] == expected
    best = [sorted(range(len(TITLES)), key=lambda title: -scores[title])[:beams] for scores in (brute_force(model, prompt) for prompt in PROMPTS)]
    assert beams == 3 or expected != best  # else any search would do


def test_the_models_own_generation_config_changes_nothing():
    model = qwen2(dtype=torch.float32)
    expected = Generate(model, TITLES, [END], PAD).rank(PROMPTS, 4)
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=9.0, eos_token_id=1, pad_token_id=5)
    assert Generate(model, TITLES, [END], PAD).rank(PROMPTS, 4) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_change_nothing_but_the_order_of_work(batch_size):
    model, done = qwen2(dtype=torch.float32), []
    generate = Generate(model, TITLES, [END], PAD)
    assert generate.rank_all(PROMPTS, 4, batch_size, done.append) == [generate.rank([prompt], 4)[0] for prompt in PROMPTS]
    assert done == {1: [1, 1, 1], 2: [2, 1], 5: [3]}[batch_size]


@pytest.mark.parametrize("titles", [1, 3, 100])
def test_title_scores_equal_brute_force(titles, monkeypatch):
    monkeypatch.setattr(reference, "TITLES", titles)
    model = llama(dtype=torch.float32)
    for prompt in PROMPTS:
        torch.testing.assert_close(title_scores(model, prompt, TITLES), torch.tensor(brute_force(model, prompt)), atol=1e-4, rtol=0)


def test_only_titles_of_nearly_equal_scores_may_change_places():
    scores = {0: -1.0, 1: -2.0, 2: -2.0 - SAME / 2, 3: -2.0 - SAME * 2, 4: -2.0 - SAME / 4}
    assert alike([0, 1, 2], [0, 1, 2], scores.__getitem__)
    assert alike([0, 2, 1], [0, 1, 2], scores.__getitem__)
    assert alike([0, 1, 4], [0, 1, 2], scores.__getitem__)  # at the end one may stand for another
    assert not alike([0, 3, 1], [0, 1, 3], scores.__getitem__)
    assert not alike([1, 0, 2], [0, 1, 2], scores.__getitem__)
    assert not alike([0, 1], [0, 1, 2], scores.__getitem__)
    assert not alike([0, 1, 1], [0, 1, 2], scores.__getitem__)
    assert not alike([0, 1, -1], [0, 1, 2], scores.__getitem__)


def test_the_floor_is_the_fastest_shapes(monkeypatch):
    """A clock that only the model moves: a call takes 16 ms, and each token 1 ms more, 2 in long rows."""
    now, calls = [0.0], []

    def model(input_ids, use_cache):
        calls.append(tuple(input_ids.shape))
        now[0] += 0.016 + input_ids.numel() * (0.002 if input_ids.shape[1] > 16 else 0.001)

    model.config = qwen2().config
    monkeypatch.setattr(reference.time, "perf_counter", lambda: now[0])
    assert seconds_per_token(model, [(1, 10), (4, 16), (4, 32)]) == pytest.approx(0.001 + 0.016 / 64)
    assert calls.count((1, 10)) == 8 and calls.count((4, 32)) == 1  # for a fifth of a second each
