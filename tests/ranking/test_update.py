"""A catalogue that changes under a trained model: what it then recommends, against a catalogue made anew, and kills at every moment."""

import json
import os
import shutil

import pytest
from served_folder import POPULARITY, TITLES, TOKENIZER, write_served
from tiny_run import SETTINGS, backbone, samples
from tiny_run import TOKENIZER as RUN_TOKENIZER

from recbole_prunerec import pipeline
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking.recommender import Recommender
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.ranking.update import update_catalogue
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.text.wording import Wording

NEW = {"n1": "Brazil", "n2": "Heat", "n3": " The  Nutcracker"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_served(tmp_path_factory.mktemp("served"), "bigrec", "catalogue")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def test_what_is_added_and_removed_is_what_a_new_catalogue_would_have(folder):
    update_catalogue(folder, NEW, ["m3", "m6"])
    kept = [item for item in range(1, 11) if item not in (3, 6)]
    titles = [TITLES[item - 1] for item in kept] + ["Brazil", "Heat", "The Nutcracker"]
    made = Catalogue.build(
        ["[PAD]", *(f"m{item}" for item in kept), "n1", "n2", "n3"], ["", *titles], [0, *(POPULARITY[item] for item in kept), 0, 0, 0]
    )
    assert Catalogue.load(folder) == made and Wording.load(folder) == Wording(template="bigrec", max_prompt_tokens=512, softmax="catalogue")
    anew, (trie, made_of) = Prompts(TOKENIZER, made, "bigrec", 512), Trie.load(folder / "trie.safetensors")
    assert made_of == anew.made_of
    assert all((getattr(trie, part) == getattr(anew.trie, part)).all() for part in ("first", "tokens", "low", "high", "order", "lengths"))
    (answer,) = Recommender.from_pretrained(folder, beams=40).recommend([["Casino"]], k=40)
    assert {item.item for item in answer} == set(made.tokens[1:]) - {"m9"}
    together = [item.item for item in answer if item.title == "Heat"]
    assert together == ["m4", "m1", "n2"]


def test_a_title_is_replaced_by_removing_and_adding_it(folder):
    update_catalogue(folder, {"m3": "Toy Box"}, ["m3"])
    catalogue = Catalogue.load(folder)
    assert (catalogue.tokens[-1], catalogue.titles[-1], catalogue.popularity[-1], len(catalogue)) == ("m3", "Toy Box", 0, 11)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_kill_at_any_moment_leaves_the_old_catalogue_or_the_new(folder, original, tmp_path, monkeypatch, caplog, before):
    """Killed before, or after, each file gets its name in turn."""
    wanted = [{item.item for item in answer} for answer in (whole(original), whole(updated(shutil.copytree(original, tmp_path / "new"))))]
    replace, seen, survived = os.replace, [], False
    while not survived:
        shutil.rmtree(folder)
        shutil.copytree(original, folder)
        renamed = []

        def dying(source, target, renamed=renamed):
            if before and len(renamed) == len(seen):
                raise KeyboardInterrupt
            replace(source, target)
            renamed.append(target)
            if len(renamed) == len(seen) + 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", dying)
            try:
                updated(folder)
                survived = True
            except KeyboardInterrupt:
                pass
        caplog.clear()
        state = [set(found) for found in wanted].index({item.item for item in whole(folder)})
        seen.append((state, "is made again" in caplog.text))
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in original.iterdir())
        update_catalogue(folder)  # mends what is left
        caplog.clear()
        assert {item.item for item in whole(folder)} == wanted[state] and caplog.text == ""
    tree, catalogue = (0, True), (1, False)
    assert seen == [*([(0, False), tree, tree] if before else [tree, tree]), *([] if before else [catalogue]), catalogue]


def updated(folder):
    update_catalogue(folder, NEW, ["m3"])
    return folder


def whole(folder):
    return Recommender.from_pretrained(folder, beams=40).recommend([["Casino"]], k=40)[0]


def test_all_problems_come_at_once_and_nothing_changes(folder, original):
    with pytest.raises(UserError) as caught:
        update_catalogue(
            folder,
            {"m1": "Heat 2", "a": " ", "b": 5, "c": 'Heat"', "d": "Brazil " * 300, "e": "\udc80", "f": "Ame\u0301lie", "g": 'Heat"<|endoftext|>2'},
            ["m99", "m10", "nothing of the kind"],
        )
    assert str(caught.value).splitlines() == [
        "2 items to remove are not in the catalogue, for example 'm99'; did you mean 'm9'?, 'nothing of the kind'; look at their names",
        "1 items to add are in the catalogue already, for example 'm1'; remove them in the same call, or leave them out",
        "3 items to add have no title that can be written, for example 'a' (' ', which is blank), 'b' (5, which is not text), "
        "'e' ('\\udc80', which is not text in UTF-8); give text",
        f"1 titles have more than 256 tokens, for example '{('Brazil ' * 300)[:60]}...' ({len(spelt('Brazil ' * 300))}); shorten them",
        "1 titles equal another in this backbone's tokens, for example 'Amélie' and 'Ame\u0301lie'; "
        "write them alike or tell them apart, or choose another backbone",
        "1 titles, with their closing quote, are the beginning of another in this backbone's tokens, for example 'Heat' of 'Heat\"<|endoftext|>2'; "
        "change them, or choose another template or backbone",
    ]
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in original.iterdir())


def spelt(title: str) -> list[int]:
    return [*TOKENIZER.encode(" ".join(title.split()) + '"', add_special_tokens=False), TOKENIZER.eos_token_id]


def test_the_last_item_stays(folder):
    with pytest.raises(UserError, match="the catalogue has no item; give at least one"):
        update_catalogue(folder, remove=[f"m{item}" for item in range(1, 11)])


def test_a_step_within_its_run_is_refused_and_a_copy_is_not(tmp_path):
    pipeline.run(backbone(), RUN_TOKENIZER, samples(), SETTINGS.model_copy(update={"steps": SETTINGS.steps[:1]}), tmp_path / "run")
    (tmp_path / "latest").symlink_to(tmp_path / "run", target_is_directory=True)
    step = tmp_path / "latest" / "1-finetune"
    with pytest.raises(UserError) as caught:
        update_catalogue(step, {"n": "Brazil"})
    run = (tmp_path / "run").resolve()
    assert str(caught.value) == f"{step} belongs to the run in {run}, which refuses changed files; copy it first: cp -r {step} my-model"
    shutil.copytree(step, tmp_path / "run" / step.name[:-1])  # its name begins the step's, and it is another folder
    update_catalogue(tmp_path / "run" / step.name[:-1], {"n": "Brazil"})
    shutil.copytree(step, tmp_path / "run" / "mine")
    update_catalogue(tmp_path / "run" / "mine", {"n": "Brazil"})
    assert "Brazil" in json.loads((tmp_path / "run" / "mine" / "catalogue.json").read_text())["titles"]
    assert "Brazil" not in json.loads((step / "catalogue.json").read_text())["titles"]


@pytest.mark.parametrize("missing", ["catalogue.json", "prompts.json"])
def test_a_folder_that_lacks_a_file_is_refused(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=rf"has no {missing}"):
        update_catalogue(folder)
    with pytest.raises(UserError, match="some/where is not a folder; give that of a model"):
        update_catalogue("some/where")
