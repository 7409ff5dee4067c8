"""Titles cut at the word that tells them apart: against comparing them all, and all along the way from a catalogue to a recommendation."""

import json

import numpy as np
import pytest
from served_folder import CATALOGUE, TITLES, TOKENIZER, write_served

from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking.recommender import Recommender
from recbole_prunerec.ranking.update import update_catalogue
from recbole_prunerec.settings import Settings
from recbole_prunerec.text.catalogue import Catalogue, shortened
from recbole_prunerec.text.prompts import Prompts, made_of
from recbole_prunerec.text.wording import Wording

SHORT = CATALOGUE.shortened()


def prompts_of(catalogue: Catalogue = SHORT) -> Prompts:
    return Prompts(TOKENIZER, catalogue, "list", 512)


def test_a_title_ends_at_the_first_word_that_no_other_has_there():
    assert shortened(["Dragon Age: Origins - PC", "Dragon Quest VIII", "Halo", "Halo 2 - Xbox", "Halo 2 - PC", "Portal"]) == {
        "Dragon Age: Origins - PC": "Dragon Age:",
        "Dragon Quest VIII": "Dragon Quest",
        "Halo": "Halo",
        "Halo 2 - Xbox": "Halo 2 - Xbox",
        "Halo 2 - PC": "Halo 2 - PC",
        "Portal": "Portal",
    }


def test_any_titles_are_cut_as_comparing_each_with_all_others_says():
    """Of few words, so that many titles begin alike, and some are the beginning of others."""
    draw = np.random.default_rng(0)
    titles = list(dict.fromkeys(" ".join(draw.choice(["a", "b", "ab"], draw.integers(1, 6))) for _ in range(80)))
    short = shortened(titles)

    def alone(title: str, words: int) -> bool:
        return all(other.split()[:words] != title.split()[:words] for other in titles if other != title)

    for title in titles:
        count = next((words for words in range(1, len(title.split()) + 1) if alone(title, words)), len(title.split()))
        assert short[title] == " ".join(title.split()[:count])
    assert list(short) == titles and len(set(short.values())) == len(titles)
    assert sum(text != title for title, text in short.items()) > 10 and sum(text == title for title, text in short.items()) > 10


def test_items_that_share_a_title_are_written_alike():
    assert SHORT.titles == CATALOGUE.titles and SHORT.distinct == CATALOGUE.distinct
    assert SHORT.written[1:] == ("Heat", "Heat and", "Toy Story", "Heat", "Toy Soldiers", "Amélie", "The Net", "Amélie", "Casino", "The Nutty")
    assert SHORT.texts == tuple(SHORT.text_of[title] for title in SHORT.distinct)


def test_prompts_answers_and_their_tree_have_the_short_text_alone():
    made, plain = prompts_of(), prompts_of(CATALOGUE)
    assert TOKENIZER.decode(made.prompt([2, 10])) == 'Chosen so far:\n"Heat and"\n"The Nutty"\n"'
    assert [TOKENIZER.decode(answer) for answer in made.answers] == [f'{text}"\n' for text in SHORT.texts]
    assert made.lengths[2] == len(made.answer(2)) < plain.lengths[2]
    assert [token for piece in made.pieces([2, 10]) for token in TOKENIZER.encode(piece, add_special_tokens=False)] == made.prompt([2, 10]).tolist()
    assert made_of(TOKENIZER, SHORT, "list") != made_of(TOKENIZER, CATALOGUE, "list")


def test_a_history_is_given_in_whole_titles_and_one_that_is_unknown_stays_whole():
    made = prompts_of()
    assert made.prompt_of(["Heat  and Dust", "Brazil and Dust"]).tolist() == prompts_of(CATALOGUE).prompt_of(["Heat and", "Brazil and Dust"]).tolist()


def test_a_folder_keeps_what_is_written_and_recommends_whole_titles(tmp_path):
    folder = write_served(tmp_path, catalogue=SHORT)
    assert Catalogue.load(folder) == SHORT and Wording.load(folder) == Wording(template="list", max_prompt_tokens=512, short_titles=True)
    (answer,) = Recommender.from_pretrained(folder, beams=40).recommend([["Heat and Dust"]], k=40)
    assert {item.title for item in answer} == set(TITLES) - {"Heat and Dust"}  # which was seen


def test_a_catalogue_of_whole_titles_is_stored_as_ever(tmp_path):
    CATALOGUE.save(tmp_path)
    assert sorted(json.loads((tmp_path / "catalogue.json").read_text())) == ["popularity", "titles", "tokens"]


def test_what_joins_later_is_whole_and_leaves_the_others_as_they_are(tmp_path):
    folder = write_served(tmp_path, catalogue=SHORT)
    update_catalogue(folder, {"n1": "The Nutty  Professor", "n2": "Casino Royale", "n3": "Heat and Rain"}, ["m6"])
    found = Catalogue.load(folder)
    assert dict(zip(found.tokens, found.written, strict=True)) == {
        **{token: text for token, text in zip(SHORT.tokens, SHORT.written, strict=True) if token != "m6"},
        **{"n1": "The Nutty", "n2": "Casino Royale", "n3": "Heat and Rain"},
    }


@pytest.mark.parametrize("written", [["Heat"] * 11, ["", "Warm", *SHORT.written[2:]], list(SHORT.written[:-1]), ["", "", *SHORT.written[2:]]])
def test_a_file_that_writes_titles_alike_or_one_in_two_ways_is_refused(tmp_path, written):
    SHORT.save(tmp_path)
    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "written": written}))
    with pytest.raises(UserError, match=r"catalogue\.json is damaged"):
        Catalogue.load(tmp_path)


def test_runs_with_whole_titles_are_found_again():
    """They are from before there was this key."""
    assert "short_titles" not in Settings().identity() and Settings(short_titles=True).identity() == {**Settings().identity(), "short_titles": True}
