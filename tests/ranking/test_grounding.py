"""Grounding against plain numpy: one history at a time, every distance and every weight by itself."""

import numpy as np
import pytest
import torch
from tiny import llama, mistral, qwen2
from transformers import GenerationConfig, PreTrainedModel

from recbole_prunerec.data.samples import Part
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking import grounding
from recbole_prunerec.ranking.grounding import Grounding, best_weight, weighed
from recbole_prunerec.settings import Ranking
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import TEMPLATES, Prompts
from recbole_prunerec.text.tokenizer import train_tokenizer

TITLES = ["Heat", 'Heat "and" Dust', "Toy Story", "Heat", "Toy Soldiers", "Seven", "The Net", "Seven", "Casino", "The Nutty Professor"]
POPULARITY = [0, 3, 1, 4, 9, 2, 5, 2, 5, 0, 7]
ITEMS = range(1, 11)
CATALOGUE = Catalogue.build([str(item) for item in range(11)], ["", *TITLES], POPULARITY)
TOKENIZER = train_tokenizer(TITLES, 320)
SIZES = {"vocab_size": len(TOKENIZER), "num_hidden_layers": 2}
HISTORIES = [[1], [3, 5, 2], [10, 9, 8, 7, 6], []]
GRID = [number / 100 for number in range(101)] + list(range(2, 100))


def options(weight: float | None = 0.5, memory: int | None = None) -> Ranking:
    return Ranking(search="grounding", popularity_weight=weight, memory_mib=memory)


def prompts_of(template: str = "list") -> Prompts:
    return Prompts(TOKENIZER, CATALOGUE, template, 512)


def alone(model, prompts: Prompts, history: list[int]) -> tuple[str, np.ndarray]:
    """What the model writes after one history, without padding, and the distance of every item's title to it."""
    prompt = torch.from_numpy(prompts.prompt(history))[None]
    longest = max(len(prompts.answer(item)) for item in ITEMS)
    how = {"num_beams": 4, "do_sample": False, "length_penalty": 0.0, "max_new_tokens": longest, "eos_token_id": prompts.terminators}
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **how)[0, prompt.shape[1] :]
    text = TOKENIZER.decode(written, skip_special_tokens=True)
    title = " ".join(text.removesuffix(prompts.template.closing).split())

    def embedding(title: str) -> np.ndarray:
        ids = torch.tensor([TOKENIZER.encode(title or '"', add_special_tokens=False)])
        return model(ids, output_hidden_states=True).hidden_states[-1][0, -1].detach().numpy()

    return title, np.array([np.linalg.norm(embedding(TITLES[item - 1]) - embedding(title)) for item in ITEMS])


def scored(distances: np.ndarray, weight: float) -> list[float]:
    """BIGRec's score of each item, by the formula, from one user's distances."""
    near, far = min(distances), max(distances)
    least, most = min(POPULARITY[1:]), max(POPULARITY[1:])
    shares = [(POPULARITY[item] - least) / (most - least) for item in ITEMS]
    return [(distance - near) / ((far - near) or 1) * (1 + share) ** -weight for distance, share in zip(distances, shares, strict=True)]


def ordered(distances: np.ndarray, weight: float) -> list[int]:
    scores = scored(distances, weight)
    return sorted(ITEMS, key=lambda item: (round(scores[item - 1], 9), -POPULARITY[item], item))


def llama_that_ends(**sizes) -> PreTrainedModel:
    """One that writes titles of unequal lengths: the end token comes often."""
    model = llama(**sizes)
    with torch.no_grad():
        model.lm_head.weight[0] *= 4
    return model


@pytest.mark.parametrize(("family", "template"), [(qwen2, "list"), (llama_that_ends, "bigrec"), (mistral, "list")])
def test_the_order_is_that_of_every_history_by_itself(family, template):
    model, prompts = family(**SIZES), prompts_of(template)
    expected = [alone(model, prompts, history) for history in HISTORIES]
    assert Grounding(model, prompts, options()).write(HISTORIES) == [title for title, _ in expected] and len({title for title, _ in expected}) > 1
    for weight in (0.0, 0.5, 9.0):
        assert Grounding(model, prompts, options(weight)).order(HISTORIES).tolist() == [ordered(distances, weight) for _, distances in expected]


def test_without_what_was_seen_the_others_keep_their_order_and_choose_the_weight():
    ground = Grounding(qwen2(**SIZES), prompts_of(), options(0.5))
    for history, whole, order in zip(HISTORIES, ground.order(HISTORIES).tolist(), ground.order(HISTORIES, exclude_seen=True).tolist(), strict=True):
        assert order == [item for item in whole if item not in history] + sorted(set(history))
    distances, popularity = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), np.array([9, 3, 1])
    seen = np.array([[True, False, False], [False, False, True]])
    assert best_weight(distances, popularity, np.array([1, 1]), seen) == 0  # then it is the first of both
    assert best_weight(distances, popularity, np.array([1, 0]), seen) > 0 == best_weight(distances, popularity, np.array([1, 1]), seen)


def test_batches_by_length_change_nothing(monkeypatch):
    model, shapes = mistral(**SIZES, window=8), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda ids, **more: shapes.append(tuple(ids.shape)) or generate(ids, **more))
    small, large = (Grounding(model, prompts_of(), options(memory=memory)) for memory in (1, 1024))
    np.testing.assert_allclose(small._table, large._table, atol=1e-12)
    assert small.write(HISTORIES) == large.write(HISTORIES)
    longest, rows, widths = max(len(prompts_of().prompt(history)) for history in HISTORIES), *zip(*shapes[:-1], strict=True)
    assert shapes[-1] == (4, longest) and shapes[0] == (1, longest) and sum(rows) == 4 and list(widths) == sorted(widths, reverse=True)
    np.testing.assert_allclose(small._distances(HISTORIES), large._distances(HISTORIES), atol=1e-12)


def test_a_written_title_of_the_catalogue_comes_first_and_items_that_share_it_are_equally_near(monkeypatch):
    ground = Grounding(qwen2(**SIZES), prompts_of(), options())
    monkeypatch.setattr(ground, "write", lambda histories: ["Seven", "Toy Story", "Heat"])
    order = ground.order(HISTORIES[:3])
    assert [items[:2].tolist() for items in order] == [[6, 8], [3, order[1, 1]], [4, 1]]
    assert (ground._distances(HISTORIES[:3]).min(1) == 0).all()


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_spells_its_title_whatever_follows(template):
    """Quotes inside stay; what stands behind the terminator, or is cut before it, is no part of it."""
    prompts = prompts_of(template)
    ground = Grounding(qwen2(**SIZES), prompts, options())
    for item in ITEMS:
        answer = prompts.answer(item).tolist()
        assert ground._title([*answer, 5, 6, 7]) == TITLES[item - 1]
    assert ground._title(TOKENIZER.encode("Toy  Sol")) == "Toy Sol"


def test_a_blank_title_is_embedded_as_a_quote():
    ground = Grounding(qwen2(**SIZES), prompts_of(), options())
    assert torch.equal(*ground._embed(["", '"']))


def test_settings_for_generation_that_come_with_a_model_are_not_read_and_stay():
    plain, own = qwen2(**SIZES), qwen2(**SIZES)
    own.generation_config = GenerationConfig(repetition_penalty=9.0, do_sample=True, top_k=3, no_repeat_ngram_size=1, max_length=7)
    written = [Grounding(model, prompts_of(), options()).write(HISTORIES) for model in (plain, own)]
    assert written[0] == written[1]
    assert (own.generation_config.repetition_penalty, own.generation_config.top_k) == (9.0, 3)


# Popularity


def test_scores_follow_the_formula_and_a_row_of_equal_distances_is_all_zeros():
    distances = np.random.default_rng(0).uniform(size=(3, 10))
    distances[1] = 0.7
    popularity = np.array(POPULARITY[1:])
    for weight in (0.0, 0.3, 40.0):
        np.testing.assert_allclose(weighed(distances, popularity, weight), [scored(row, weight) for row in distances], rtol=1e-12)
    assert (weighed(distances, np.full(10, 4), 7.0)[0] == weighed(distances, popularity, 0.0)[0]).all()


def test_equal_distances_rank_by_popularity_then_id(monkeypatch):
    ground = Grounding(qwen2(**SIZES), prompts_of(), options())
    monkeypatch.setattr(ground, "_distances", lambda histories: np.full((1, 10), 3.0))
    assert ground.order([[1]]).tolist() == [[4, 10, 6, 8, 3, 1, 5, 7, 2, 9]]


def by_brute_force(distances: np.ndarray, popularity: np.ndarray, targets: np.ndarray) -> float:
    """The best weight of the grid, every item of every row being ranked."""
    shares = (popularity - popularity.min()) / (popularity.max() - popularity.min())
    best, chosen = -1.0, None
    for weight in GRID:
        total = 0.0
        for row, target in zip(distances, targets, strict=True):
            near = (row - row.min()) / (row.max() - row.min())
            rank = 1 + sorted(range(len(row)), key=lambda item: (near[item] * (1 + shares[item]) ** -weight, item)).index(target)
            total += 1 / np.log2(rank + 1) if rank <= 10 else 0
        if total > best + 1e-12:
            best, chosen = total, weight
    return chosen


@pytest.mark.parametrize(("pull", "low", "high"), [(0.0, 0, 0.1), (0.6, 0.1, 0.99), (3.0, 1, 99)])
def test_the_weight_is_the_best_of_the_grid(pull, low, high):
    """Targets are what comes second once popularity has pulled this much: the nearest item stays first whatever the weight."""
    draw = np.random.default_rng(1)
    distances, popularity = draw.uniform(size=(12, 30)).round(2), draw.integers(0, 50, 30)
    targets = weighed(distances, popularity, pull).argsort(1)[:, 1]
    weight = best_weight(distances, popularity, targets)
    assert weight == by_brute_force(distances, popularity, targets) and low <= weight <= high


def test_validation_samples_choose_the_weight(monkeypatch):
    """Those of the seed, where there are many."""
    model, prompts = qwen2(**SIZES), prompts_of()
    histories = np.array([[item, 1 + item % 10, 0] for item in ITEMS])
    valid = Part(users=np.arange(10), histories=histories, lengths=np.full(10, 2), targets=np.array([4, 10, 6, 8, 4, 4, 3, 2, 9, 10]))
    monkeypatch.setattr(grounding, "VALID_ROWS", 6)
    drawn = np.sort(np.random.default_rng(7).permutation(10)[:6])
    ground = Grounding(model, prompts, options(None), valid, seed=7)
    items = sorted(ITEMS, key=lambda item: (-POPULARITY[item], item))
    distances = np.array([alone(model, prompts, histories[row, :2].tolist())[1] for row in drawn])[:, np.array(items) - 1]
    expected = by_brute_force(distances, np.array(POPULARITY)[items], np.array([items.index(valid.targets[row]) for row in drawn]))
    assert expected > 0 and ground.note == f"popularity weight {expected:g}, by validation"
    assert (ground.order(HISTORIES) == Grounding(model, prompts, options(expected)).order(HISTORIES)).all()
    assert Grounding(model, prompts, options(0.25), valid).note == "popularity weight 0.25"


def test_a_weight_that_nothing_chooses_is_refused():
    with pytest.raises(UserError, match=r"ranking\.popularity_weight is chosen on validation samples, and there are none; give one, such as 1"):
        Grounding(qwen2(**SIZES), prompts_of(), options(None))


def test_numbers_that_are_not_finite_are_told():
    model = qwen2(**SIZES)
    ground = Grounding(model, prompts_of(), options())
    ground._table = torch.full_like(ground._table, torch.nan)
    with pytest.raises(UserError, match=r"the model \(torch.float64\) embeds titles as numbers that are not finite"):
        ground.order(HISTORIES)
