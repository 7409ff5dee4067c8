"""Ranking items for histories, and recommending from a folder, against scoring every title of the catalogue by itself."""

import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from served_folder import CATALOGUE, POPULARITY, TITLES, TOKENIZER, write_served
from tiny import llama, qwen2
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking import recommender as module
from recbole_prunerec.ranking.recommender import Recommender
from recbole_prunerec.ranking.search import rank
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.settings import Ranking
from recbole_prunerec.text.prompts import TEMPLATES, Prompts
from recbole_prunerec.text.tokenizer import train_tokenizer

HISTORIES = [[1], [3, 5, 2], [10, 9, 8, 7, 6], [4, 4, 4], [6, 2], []]
BELOW = {"Heat": "m4 m1", "Amélie": "m6 m8"}  # those that share a title, the most popular first


@torch.no_grad()
def log_probability(model, prompt, answer) -> float:
    """Of a whole answer, by one plain forward pass."""
    logits = model(torch.from_numpy(np.concatenate([prompt, answer]))[None]).logits[0].double()
    steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return steps[torch.arange(len(answer)), torch.from_numpy(answer)].sum().item()


def by_brute_force(model, prompts: Prompts, history: list[int]) -> list[int]:
    """Items by the log-probability of their whole answer, then popularity, then id."""
    scores = {item: log_probability(model, prompts.prompt(history), prompts.answer(item)) for item in range(1, 11)}
    return sorted(scores, key=lambda item: (-round(scores[item], 9), -POPULARITY[item], item))


def recommender(model, template="list", **options) -> Recommender:
    prompts = Prompts(TOKENIZER, CATALOGUE, template, 512)
    return Recommender(model, prompts, Ranking(**options))


# All items, for evaluation


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", [qwen2, llama])
@pytest.mark.parametrize("options", [{"beams": 40}, {"search": "exact", "beams": 8}], ids=["beam", "exact"])
def test_with_enough_beams_the_order_is_that_of_the_whole_catalogue(template, family, options):
    model = family(vocab_size=len(TOKENIZER))
    served = recommender(model, template, **options)
    assert served.order(HISTORIES).tolist() == [by_brute_force(model, served.prompts, history) for history in HISTORIES]


@pytest.mark.parametrize("options", [{"beams": 40}, {"search": "exact", "beams": 8}, {"beams": 2}], ids=["beam", "exact", "few beams"])
def test_without_what_was_seen_the_others_keep_their_order_and_seen_items_come_last(options):
    """Of a title that two items share one may be seen, and the other not. Few beams are spent on what was not seen."""
    model = qwen2(vocab_size=len(TOKENIZER))
    served = recommender(model, **options)
    assert any(TITLES.count(TITLES[item - 1]) > 1 for history in HISTORIES for item in history)
    for history, order in zip(HISTORIES, served.order(HISTORIES, exclude_seen=True).tolist(), strict=True):
        expected = by_brute_force(model, served.prompts, history)
        unseen = [item for item in expected if item not in history]
        assert order[len(unseen) :] == sorted(set(history)) and sorted(order) == sorted(expected)
        if options["beams"] > 2:
            assert order[: len(unseen)] == unseen


def test_with_few_beams_the_rest_follows_by_its_bounds():
    served = recommender(qwen2(vocab_size=len(TOKENIZER)), beams=2)
    prompts = [served.prompts.prompt(history) for history in HISTORIES]
    found = rank(served.model, served.trie, prompts, Ranking(beams=2), 2, bounds=True)
    for items, titles, bounds in zip(served.order(HISTORIES).tolist(), found.titles.tolist(), found.bounds.tolist(), strict=True):
        first = [item for title in titles for item in CATALOGUE.items_of(title)]
        rest = [item for item in items if item not in first]
        assert items == first + rest and sorted(items) == list(range(1, 11))
        assert rest == sorted(rest, key=lambda item: (-bounds[CATALOGUE.title_of[item]], -POPULARITY[item], item))


def test_an_assistants_items_are_summed_by_title(monkeypatch):
    given, served = [], recommender(qwen2(vocab_size=len(TOKENIZER)), beams=8, assistant_weight=0.5)
    monkeypatch.setattr(module, "rank", lambda *args, assistant, **more: given.append(assistant) or rank(*args, assistant=assistant, **more))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(10), size=6)
    served.order(HISTORIES, np.concatenate([np.full((6, 1), 9.0), probabilities], 1))
    expected = [[sum(row[item] for item in range(10) if TITLES[item] == title) for title in CATALOGUE.distinct] for row in probabilities]
    assert given[0] == pytest.approx(np.array(expected))


def test_an_exact_search_says_for_how_many_it_is_proven():
    model = qwen2(vocab_size=len(TOKENIZER))
    exact = recommender(model, search="exact")
    assert exact.note is None
    exact.order(HISTORIES)
    assert exact.note == "proven for 100.0 % of rows"
    exact._proven -= 1
    assert exact.note == "proven for 83.3 % of rows"
    beam = recommender(model)
    beam.order(HISTORIES)
    assert beam.note is None


# In the hand


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_served(tmp_path_factory.mktemp("served"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def expected(folder, history: list[str], k: int, exclude_seen: bool) -> list[tuple[str, str, float]]:
    """By the saved model and tokenizer alone: score all titles, sort, leave out what was seen."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).double(), AutoTokenizer.from_pretrained(folder)
    texts = ["Chosen so far:\n", *(part for title in history for part in ('"', title + '"\n')), '"']
    prompt = np.concatenate([tokenizer.encode(text, add_special_tokens=False) for text in texts])
    rows = []
    for title in dict.fromkeys(TITLES):
        score = log_probability(model, prompt, np.array(tokenizer.encode(title + '"\n', add_special_tokens=False)))
        items = BELOW.get(title, f"m{TITLES.index(title) + 1}").split()
        rows += [] if exclude_seen and title in history else [(item, title, score) for item in items]
    return sorted(rows, key=lambda row: -row[2])[:k]


@pytest.mark.parametrize("search", ["beam", "exact"])
@pytest.mark.parametrize(("k", "exclude_seen"), [(3, True), (5, False), (20, True), (1000, False)])
def test_recommendations_are_the_best_of_the_whole_catalogue(folder, search, k, exclude_seen):
    served = Recommender.from_pretrained(folder, device="cpu", search=search, beams=12)
    histories = [["Heat", "Toy Story"], ["Amélie"], [], ["Brazil", "Casino", "Casino"], TITLES]
    answers = served.recommend(histories, k=k, exclude_seen=exclude_seen)
    for history, answer in zip(histories, answers, strict=True):
        wanted = expected(folder, history, k, exclude_seen)
        assert [(item, title) for item, title, _ in answer] == [(item, title) for item, title, _ in wanted]
        assert [score for *_, score in answer] == pytest.approx([score for *_, score in wanted], abs=1e-4)
    assert (answers[4] == []) == exclude_seen and len(answers[2]) == min(k, 10)


def test_white_space_does_not_hide_a_seen_title_and_case_does(folder):
    served = Recommender.from_pretrained(folder)
    spaced, plain = served.recommend([[" Toy\t Story\n"], ["Toy Story"]])
    assert [item.title for item in spaced] == [item.title for item in plain] and "Toy Story" not in [item.title for item in plain]
    (lower,) = served.recommend([["toy story"]])
    assert "Toy Story" in [item.title for item in lower]


def test_log_probabilities_have_no_length_penalty(folder):
    plain = Recommender.from_pretrained(folder).recommend([["Heat"]])[0]
    penal = Recommender.from_pretrained(folder, length_penalty=1.0).recommend([["Heat"]])[0]
    assert {item.item: item.log_probability for item in penal} == pytest.approx({item.item: item.log_probability for item in plain}, abs=1e-4)
    lengths = {title: len(TOKENIZER.encode(title + '"\n', add_special_tokens=False)) for title in TITLES}
    means = [item.log_probability / lengths[item.title] for item in penal]
    assert means == pytest.approx(sorted(means, reverse=True)) and [item.item for item in penal] != [item.item for item in plain]


def test_a_stream_is_answered_block_by_block(folder, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    served, pulled = Recommender.from_pretrained(folder), []
    histories = [[title] for title in TITLES]
    stream = served.stream(pulled.append(number) or history for number, history in enumerate(histories))
    first = next(stream)
    assert pulled == [0, 1, 2]
    assert [first.items, *(answer.items for answer in stream)] == served.recommend(histories)
    with pytest.raises(UserError, match=r"^histories\[4\]: got 5; "):
        served.recommend([*histories[:4], 5])


def test_the_stored_softmax_ranks(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "rank", lambda *args, softmax, **more: asked.append(softmax) or rank(*args, softmax=softmax, **more))
    Recommender.from_pretrained(write_served(tmp_path, softmax="catalogue")).recommend([["Heat"]])
    assert asked == ["catalogue"]


def test_generate_with_the_prefix_function_writes_titles_alone(folder):
    """Greedy search and beams, of left-padded rows, against walking the list of titles."""
    served = Recommender.from_pretrained(folder)
    prompts = [served.prompts.prompt_of(history) for history in (["Heat"], ["Casino", "The Net"])]
    width = max(map(len, prompts))
    ids = torch.from_numpy(np.stack([np.pad(prompt, (width - len(prompt), 0)) for prompt in prompts]))
    mask = torch.arange(width) >= torch.tensor([[width - len(prompt)] for prompt in prompts])
    allowed = served.prefix_allowed_tokens_fn(width)
    for beams in (1, 6):
        how = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": 0.0}
        written = served.model.generate(ids, attention_mask=mask.long(), prefix_allowed_tokens_fn=allowed, **how)
        titles = [TOKENIZER.decode(row).partition('"\n') for row in written[:, width:]]  # what follows is padding
        assert len(titles) == 2 * beams and {title for title, *_ in titles} <= set(TITLES) and all(end for _, end, _ in titles)
        assert len({title for title, *_ in titles[:beams]}) == beams
    best = [items[0].title for items in served.recommend([["Heat"], ["Casino", "The Net"]], k=1, exclude_seen=False)]
    assert [title for title, *_ in titles[::6]] == best
    spelt = [TOKENIZER.encode(title + '"\n', add_special_tokens=False) for title in set(TITLES)]
    prefix = TOKENIZER.encode("Toy", add_special_tokens=False)
    following = {answer[len(prefix)] for answer in spelt if answer[: len(prefix)] == prefix}
    assert set(allowed(0, torch.tensor([7] * width + prefix))) == following
    assert allowed(0, torch.tensor([7] * width + spelt[0])) == allowed(0, torch.tensor([7] * width + [*spelt[0], 5])) == [served.prompts.pad_id]


# What is refused, and what is mended


def test_bad_options_come_all_at_once(folder):
    with pytest.raises(UserError) as caught:
        Recommender.from_pretrained(folder, device="gpu", dtype="bfloat", beems=3, beams=0, search="exakt", assistant="SASRec")
    assert str(caught.value).splitlines() == [
        "beems is unknown; did you mean 'beams'?",
        "assistant is unknown; there are search, beams, length_penalty, budget, memory_mib, device, dtype, revision",
        "device=gpu: expected one of auto, cpu, cuda, cuda:<number>",
        "search=exakt: expected one of beam, exact, grounding; did you mean 'exact'?",
        "beams=0: expected at least 1",
        "dtype='bfloat': expected one of float32, bfloat16; did you mean 'bfloat16'?",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"search": "grounding"}, "search=grounding ranks by distance and knows no probabilities; choose search=beam or search=exact"),
        ({"search": "exact", "length_penalty": 0.5}, "length_penalty is read by search=beam alone, got search=exact; leave it out"),
        ({"device": "cuda:7"}, "device=cuda:7: there is no such GPU, torch sees 0; choose device=auto"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, monkeypatch, options, problem):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError) as caught:
        Recommender.from_pretrained(folder, **options)
    assert str(caught.value) == problem


def test_the_first_gpu_that_is_not_there_is_refused(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"^device=cuda:1: there is no such GPU, torch sees 1; choose device=auto$"):
        Recommender.from_pretrained(folder, device="cuda:1")


@pytest.mark.parametrize(
    ("histories", "k", "problem"),
    [
        (["Heat"], 3, "histories[0]: got 'Heat'; expected a list of titles, the oldest first"),
        ([["Heat"], [1]], 3, "histories[1]: got the title 1, which is not text; expected a list of titles, the oldest first"),
        ([["Heat", " "]], 3, "histories[0]: got the title ' ', which is blank; expected a list of titles, the oldest first"),
        ([["\ud800"]], 3, "histories[0]: got the title '\\ud800', which is not text in UTF-8; expected a list of titles, the oldest first"),
        ([["Heat"]], 0, "k=0: expected a whole number, at least 1"),
        ([["Heat"]], True, "k=true: expected a whole number, at least 1"),
    ],
)
def test_what_is_no_history_or_number_is_refused(folder, histories, k, problem):
    with pytest.raises(UserError) as caught:
        Recommender.from_pretrained(folder).recommend(histories, k=k)
    assert str(caught.value) == problem


@pytest.mark.parametrize("missing", ["catalogue.json", "prompts.json"])
def test_a_folder_without_catalogue_or_wording_is_refused(copy, missing):
    (copy / missing).unlink()
    with pytest.raises(UserError, match=rf"has no {missing}, .*; give the folder of a step, such as saved/latest/4-depth"):
        Recommender.from_pretrained(copy)


def test_no_model_is_told_before_anything_is_loaded(tmp_path):
    with pytest.raises(UserError, match=r"model=.* is a folder without config\.json"):
        Recommender.from_pretrained(tmp_path)


def test_a_tree_of_another_tokenizer_is_refused(copy):
    prompts = Prompts(train_tokenizer(["Film"], 270), CATALOGUE, "list", 512)
    prompts.trie.save(copy / "trie.safetensors", prompts.made_of)
    with pytest.raises(UserError, match=r"trie\.safetensors was made with another tokenizer or template than .* has; copy the folder again, whole"):
        Recommender.from_pretrained(copy)


def test_a_damaged_tree_is_refused_by_name(copy):
    path = copy / "trie.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"trie\.safetensors is damaged"):
        Recommender.from_pretrained(copy)


@pytest.mark.parametrize("state", ["missing", "of other titles"])
def test_a_tree_that_is_missing_or_of_other_titles_is_made_again_with_a_word(folder, copy, caplog, state):
    whole = Recommender.from_pretrained(folder).recommend([["Heat"]])
    assert caplog.text == ""
    if state == "missing":
        (copy / "trie.safetensors").unlink()
    else:
        stored = json.loads((copy / "catalogue.json").read_text())
        stored["titles"][3] = "Toy Box"
        (copy / "catalogue.json").write_text(json.dumps(stored))
    with caplog.at_level(logging.WARNING):
        made = Recommender.from_pretrained(copy)
    assert "is made again" in caplog.text
    titles = ["Toy Box" if title == "Toy Story" and state != "missing" else title for title in dict.fromkeys(TITLES)]
    answers = [TOKENIZER.encode(title + '"\n', add_special_tokens=False) for title in titles]
    assert all((getattr(made.trie, part) == getattr(Trie.build(answers), part)).all() for part in ("first", "tokens", "order"))
    assert (made.recommend([["Heat"]]) == whole) == (state == "missing")


def test_titles_of_a_loaded_folder_are_not_encoded_again(folder, monkeypatch):
    monkeypatch.setattr(Prompts, "_encode_answers", lambda self: pytest.fail("all titles were encoded"))
    assert len(Recommender.from_pretrained(folder).recommend([["Brazil"]], k=4)[0]) == 4


ALONE = """
import sys
for name in ("recbole", "pandas", "matplotlib", "tensorboard", "sklearn", "scipy", "tabulate"):
    sys.modules[name] = None  # as if it were not installed
from recbole_prunerec.ranking.recommender import Recommender
from recbole_prunerec.ranking.update import update_catalogue
(answer,) = Recommender.from_pretrained(sys.argv[1]).recommend([["Heat"]], k=2)
update_catalogue(sys.argv[1], add={"new": "Brazil"})
print(*(item.item for item in answer))
"""


def test_nothing_but_torch_and_transformers_is_needed(folder, copy):
    done = subprocess.run([sys.executable, "-c", ALONE, str(copy)], capture_output=True, text=True)
    assert done.stdout.split() == [item.item for item in Recommender.from_pretrained(folder).recommend([["Heat"]], k=2)[0]], done.stderr


def test_a_name_on_the_hub_is_fetched(folder, monkeypatch):
    monkeypatch.setattr(
        "recbole_prunerec.backbone.hub.hub_folder",
        lambda name, key, revision: folder if (name, key, revision) == ("some/one", "model", None) else None,
    )
    assert Recommender.from_pretrained("some/one").recommend([["Heat"]]) == Recommender.from_pretrained(folder).recommend([["Heat"]])


def test_in_bfloat16_and_float32(folder):
    for dtype in ("float32", "bfloat16"):
        served = Recommender.from_pretrained(folder, dtype=dtype)
        assert served.model.dtype == getattr(torch, dtype) and not served.model.training
