"""What a teacher says against scoring every title by hand, its files after a cut or damage, and who may teach."""

from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch

from recbole_prunerec.backbone.load import save_step
from recbole_prunerec.compared import teacher as module
from recbole_prunerec.compared.teacher import Teacher, check_catalogue
from recbole_prunerec.data.samples import Part
from recbole_prunerec.errors import UserError
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.text.wording import Wording

TITLES = [*(f"Film {letter}" for letter in "ABCDEFGHIJ"), "Film A", "Film C"]  # the last two share a title with the first and the third
CATALOGUE = Catalogue.build(["[PAD]", *(f"i{item}" for item in range(12))], ["", *TITLES], [0, *range(12)])
CPU = torch.device("cpu")


def write_teacher(folder: Path, softmax: str = "vocabulary", catalogue: Catalogue = CATALOGUE) -> Path:
    folder.mkdir(parents=True)
    prompts = Prompts(tiny_run.TOKENIZER, catalogue, "list", 512)
    save_step(folder, tiny_run.backbone(), tiny_run.TOKENIZER, prompts.terminators, prompts.prompt([1]))
    prompts.save(folder)
    Wording(template="list", max_prompt_tokens=512, softmax=softmax).save(folder)
    return folder


def samples(count: int = 30) -> Part:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 5, count)
    histories = np.where(np.arange(4) < lengths[:, None], draw.integers(1, 13, (count, 4)), 0)
    return Part(np.arange(count), histories, lengths, draw.integers(1, 13, count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "1-finetune")


def teacher_of(folder: Path, cache: Path) -> Teacher:
    return Teacher(folder, CATALOGUE, CPU, cache, show_progress=False)


@torch.no_grad()
def log_probability(history: list[int], title: str) -> float:
    """Of a title after the prompt of a history, token by token, over the whole vocabulary."""
    prompts, model = Prompts(tiny_run.TOKENIZER, CATALOGUE, "list", 512), tiny_run.backbone()
    prompt, answer = prompts.prompt(history), prompts.answers[CATALOGUE.position[title]]
    logits = model(torch.from_numpy(np.concatenate([prompt, answer]))[None]).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer.tolist()))


def test_lists_are_the_best_items_of_the_whole_catalogue(folder, tmp_path):
    """Of items that share a title the more popular, which here is the later, comes first, with the same log-probability."""
    part = samples(6)
    lists = teacher_of(folder, tmp_path).lists(part, 100, 10, 0)
    found = lists.find(part.histories)
    assert (found >= 0).all()
    for sample, row in enumerate(found.tolist()):
        history = part.history(sample).tolist()
        by_item = {item: log_probability(history, TITLES[item - 1]) for item in range(1, 13)}
        best = sorted(by_item, key=lambda item: (-by_item[item], -item))[:10]
        assert lists.items[row].tolist() == best
        np.testing.assert_allclose(lists.log_probabilities[row], [by_item[item] for item in best], atol=1e-4)


def test_a_list_that_is_longer_than_the_catalogue_ends_with_nothing(folder, tmp_path):
    lists = teacher_of(folder, tmp_path).lists(samples(3), 100, 14, 0)
    assert all(sorted(row) == [0, 0, *range(1, 13)] for row in lists.items.tolist())
    assert (torch.isinf(lists.log_probabilities) == (lists.items == 0)).all()


def test_embeddings_are_the_last_hidden_states_of_titles_alone(folder, tmp_path):
    found, model = teacher_of(folder, tmp_path).embeddings(), tiny_run.backbone()
    assert found.shape == (13, model.config.hidden_size) and not found[0].any()
    with torch.no_grad():
        for item, title in enumerate(TITLES, 1):
            alone = model.base_model(torch.tensor(tiny_run.TOKENIZER(title).input_ids)[None]).last_hidden_state[0, -1]
            torch.testing.assert_close(found[item], alone, atol=1e-5, rtol=0)


def test_as_many_samples_are_asked_as_are_allowed_and_the_others_have_no_list(folder, tmp_path):
    part = samples()
    lists = teacher_of(folder, tmp_path).lists(part, 5, 10, 7)
    drawn = np.random.default_rng(7).permutation(30)[:5]
    asked = {part.histories[sample].tobytes() for sample in drawn}
    assert set(lists.rows) == asked
    assert [row >= 0 for row in lists.find(part.histories).tolist()] == [history.tobytes() in asked for history in part.histories]


def count_asked(monkeypatch) -> list[int]:
    """Histories that go through a teacher from now on, call by call."""
    asked, rank = [], module.rank

    def counted(model, trie, prompts, *given, **more):
        asked.append(len(prompts))
        return rank(model, trie, prompts, *given, **more)

    monkeypatch.setattr(module, "rank", counted)
    return asked


def test_lists_are_made_once_and_go_on_where_they_were_cut(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOGETHER", 8)
    part = samples()
    whole = teacher_of(folder, tmp_path / "whole").lists(part, 100, 10, 0)
    distinct = len(whole.rows)
    calls, rank = [], module.rank

    def cut(*given, **more):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(0)
        return rank(*given, **more)

    with monkeypatch.context() as cutting:
        cutting.setattr(module, "rank", cut)
        with pytest.raises(KeyboardInterrupt):
            teacher_of(folder, tmp_path / "cut").lists(part, 100, 10, 0)
    asked = count_asked(monkeypatch)
    again = teacher_of(folder, tmp_path / "cut").lists(part, 100, 10, 0)
    assert sum(asked) == distinct - 16
    assert torch.equal(again.items, whole.items) and torch.equal(again.log_probabilities, whole.log_probabilities)
    teacher_of(folder, tmp_path / "cut").lists(part, 100, 10, 0)
    assert sum(asked) == distinct - 16


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:-3] + b"xyz", lambda data: b""], ids=["short", "changed", "empty"])
def test_a_damaged_file_is_made_again(folder, tmp_path, monkeypatch, damage, caplog):
    first = teacher_of(folder, tmp_path).lists(samples(), 100, 10, 0)
    (path,) = tmp_path.glob("lists-*/*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    asked = count_asked(monkeypatch)
    again = teacher_of(folder, tmp_path).lists(samples(), 100, 10, 0)
    assert torch.equal(first.items, again.items) and sum(asked) == len(first.rows)
    assert f"{path} is damaged; it is made again" in caplog.text


@pytest.mark.parametrize("other", [{"softmax": "catalogue"}, {"length": 11}, {"seed": 1}, {"count": 12}])
def test_other_lists_lie_in_other_files(folder, tmp_path, monkeypatch, other):
    made = {"softmax": "vocabulary", "length": 10, "seed": 0, "count": 10}
    for asking in (made, {**made, **other}):
        teacher = write_teacher(tmp_path / asking["softmax"] / "1-finetune", asking["softmax"]) if "softmax" in other else folder
        teacher_of(teacher, tmp_path / "cache").lists(samples(), asking["count"], asking["length"], asking["seed"])
    assert len(list((tmp_path / "cache").glob("lists-*"))) == 2


@pytest.mark.parametrize(
    ("tokens", "titles", "same"),
    [
        (CATALOGUE.tokens, ["", *TITLES[:-1], "Film K"], 11),
        (CATALOGUE.tokens[:-1], ["", *TITLES[:-1]], 11),
        (["", *"abcdefghijkl"], ["", *TITLES], 0),
    ],
)
def test_a_teacher_of_another_catalogue_is_refused(folder, tokens, titles, same):
    other = Catalogue.build(list(tokens), titles, [0] * len(titles))
    with pytest.raises(UserError) as error:
        check_catalogue(folder, other)
    assert f"it has 12 items, this dataset has {len(titles) - 1}, and {same} of them have the same name and title" in str(error.value)


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path):
    from recbole_prunerec.text.tokenizer import train_tokenizer

    folder = write_teacher(tmp_path / "1-finetune")
    train_tokenizer(TITLES, 270).save_pretrained(folder)
    with pytest.raises(UserError, match=r"trie.safetensors was made with another tokenizer or template than .* has"):
        teacher_of(folder, tmp_path / "cache")
