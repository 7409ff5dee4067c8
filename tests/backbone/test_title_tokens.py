"""Whole titles as tokens: what the tokenizer then writes, what their embeddings are, and all along the way to a folder that recommends."""

import numpy as np
import pytest
import torch
from served_folder import CATALOGUE, TITLES, TOKENIZER
from tiny import every_family, qwen2
from tiny_run import SETTINGS, samples
from tiny_run import TOKENIZER as RUN_TOKENIZER
from tiny_run import backbone as run_backbone
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_prunerec import pipeline
from recbole_prunerec.backbone.load import load_backbone, load_config_and_tokenizer
from recbole_prunerec.backbone.title_tokens import embed, with_tokens
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.vocabulary import kept_tokens, trimmed_tokenizer
from recbole_prunerec.ranking.recommender import Recommender
from recbole_prunerec.report.ranks import Ranks
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import properties
from recbole_prunerec.text.prompts import Prompts, texts_as_tokens

ASKED = Settings(template="lines", title_tokens=True)
TEXTS = texts_as_tokens(ASKED, CATALOGUE)
LARGER, PARTS = with_tokens(TOKENIZER, TEXTS)


def test_the_texts_are_the_answers():
    assert [f"{title}\n" for title in CATALOGUE.distinct] == TEXTS and texts_as_tokens(Settings(), CATALOGUE) == []
    assert texts_as_tokens(Settings(title_tokens=True), CATALOGUE)[0] == 'Heat"\n'


@pytest.mark.parametrize("template", ["lines", "list", "bigrec"])
def test_each_title_is_one_token_everywhere(template):
    texts = texts_as_tokens(Settings(template=template, packing=False, title_tokens=True), CATALOGUE)
    larger, parts = with_tokens(TOKENIZER, texts)
    made, plain = (Prompts(tokenizer, CATALOGUE, template, 512) for tokenizer in (larger, TOKENIZER))
    one = 2 if template == "bigrec" else 1  # which has an end token, too
    assert {len(answer) for answer in made.answers} == {one} and len({int(answer[0]) for answer in made.answers}) == len(CATALOGUE.distinct)
    assert larger.decode(made.prompt([2, 10])) == TOKENIZER.decode(plain.prompt([2, 10]))
    assert [token for piece in made.pieces([2, 10]) for token in larger.encode(piece, add_special_tokens=False)] == made.prompt([2, 10]).tolist()
    assert sorted(parts) == list(range(len(TOKENIZER), len(larger)))


def test_the_parts_are_what_was_written_before_and_other_texts_stay_as_they_were():
    before = len(TOKENIZER)
    assert [list(ids) for ids in PARTS.values()] == TOKENIZER(TEXTS, add_special_tokens=False).input_ids
    assert list(PARTS) == LARGER.convert_tokens_to_ids(TEXTS) and before == len(TOKENIZER) == min(PARTS)
    for text in ("Heat", "Brazil\n", "The Net Worth\n"):
        assert LARGER(text).input_ids == TOKENIZER(text).input_ids


def test_a_title_that_begins_like_another_is_read_whole():
    made = Prompts(LARGER, CATALOGUE, "lines", 512)
    assert LARGER("Heat and Dust\n", add_special_tokens=False).input_ids == made.answer(2).tolist() != made.answer(1).tolist()


def test_titles_that_are_one_token_already_add_none():
    again, parts = with_tokens(LARGER, TEXTS)
    assert again is LARGER and parts == {} and with_tokens(TOKENIZER, []) == (TOKENIZER, {})


@every_family
def test_embeddings_begin_as_the_mean_of_their_parts(make):
    """Of the embedding and of a head that is not tied; all that the model knew stays, and what it says of the old tokens."""
    model, before = make(vocab_size=len(TOKENIZER) + 3), make(vocab_size=len(TOKENIZER) + 3)
    embed(model, PARTS)
    tied = model.config.tie_word_embeddings
    for name in ("get_input_embeddings", "get_output_embeddings"):
        new, old = getattr(model, name)().weight, getattr(before, name)().weight
        assert new.shape == (len(LARGER), 48) and torch.equal(new[: len(TOKENIZER)], old[: len(TOKENIZER)])
        for number, ids in PARTS.items():
            expected = sum(old[token].detach().numpy() for token in ids) / len(ids)
            np.testing.assert_allclose(new[number].detach().numpy(), expected, rtol=0, atol=1e-15)
    assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight) and model.config.vocab_size == len(LARGER)
    ids = torch.tensor([TOKENIZER("Brazil and Heat").input_ids])
    assert torch.equal(model(input_ids=ids).logits[..., : len(TOKENIZER)], before(input_ids=ids).logits[..., : len(TOKENIZER)])


def test_rows_that_a_backbone_has_in_store_are_used():
    model = qwen2(vocab_size=len(LARGER) + 7)
    embed(model, PARTS)
    assert model.config.vocab_size == len(LARGER) + 7


def test_nothing_new_leaves_a_model_alone():
    model = qwen2(vocab_size=300)
    embed(model, {})
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), qwen2(vocab_size=300).parameters(), strict=True))


def test_the_vocabulary_step_leaves_the_titles_bytes_and_template_alone():
    prompts = Prompts(LARGER, CATALOGUE, "lines", 512)
    kept = kept_tokens(prompts)
    trimmed = trimmed_tokenizer(LARGER, kept)
    again = prompts.with_tokenizer(trimmed)
    assert {len(answer) for answer in again.answers} == {1} and len(kept) == len(trimmed) == len(PARTS) + 256 + 1  # the end token
    assert trimmed.decode(trimmed("Brazil").input_ids) == "Brazil"


def test_a_backbone_comes_with_them():
    tiny = properties("backbone", "tiny")
    plain = load_backbone("tiny", tiny, TITLES, 0)
    found = load_backbone("tiny", tiny, TITLES, 0, as_tokens=TEXTS)
    config, tokenizer = load_config_and_tokenizer("tiny", tiny, TITLES, as_tokens=TEXTS)
    assert len(found.tokenizer) == len(tokenizer) == config.vocab_size == found.model.config.vocab_size > len(plain.tokenizer)
    assert torch.equal(found.model.lm_head.weight[: len(plain.tokenizer)], plain.model.lm_head.weight)


SMALL = SETTINGS.model_copy(update={"template": "lines", "title_tokens": True, "softmax": "catalogue"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, pipeline.run(run_backbone(), RUN_TOKENIZER, samples(), SMALL, folder)


def test_a_run_ranks_as_a_softmax_over_the_titles_tokens_does(finished):
    """By plain forward passes of what is in the folder, after every step."""
    folder, records = finished
    data = samples()
    for record in records:
        path = folder / f"{record.number}-{record.name}"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path).double(), AutoTokenizer.from_pretrained(path)
        ids = {title: tokenizer(f"{title}\n", add_special_tokens=False).input_ids for title in data.catalogue.distinct}
        assert {len(tokens) for tokens in ids.values()} == {1} and len({tokens[0] for tokens in ids.values()}) == len(ids)
        ranks = Ranks.read(folder / "ranks" / f"{path.name}.csv")
        for row, rank in zip(ranks.rows, ranks.ranks, strict=True):
            titles = [data.catalogue.titles[item] for item in data.test.history(row)]
            prompt = tokenizer("\n", add_special_tokens=False).input_ids + [ids[title][0] for title in titles]
            with torch.no_grad():
                logits = model(torch.tensor([prompt])).logits[0, -1]
            scores = [float(logits[ids[title][0]]) for title in data.catalogue.titles[1:]]
            assert rank == 1 + sum(score > scores[data.test.targets[row] - 1] for score in scores)


def test_a_folder_recommends_whole_titles(finished):
    folder, _ = finished
    titles = samples().catalogue.distinct
    (found,) = Recommender.from_pretrained(folder / "4-depth", beams=len(titles)).recommend([[titles[0]]], k=len(titles))
    assert {item.title for item in found} == set(titles[1:])


def test_a_finished_folder_is_a_teacher_only_of_runs_that_write_titles_so(finished):
    folder, _ = finished
    teacher, texts = str(folder / "1-finetune"), texts_as_tokens(ASKED, samples().catalogue)
    backbone = load_backbone(teacher, {}, (), 0, "teacher", as_tokens=texts)
    assert {len(ids) for ids in backbone.tokenizer(texts).input_ids} == {1}
    with pytest.raises(UserError, match=r"teacher=\S+ writes \d+ titles in several tokens; give one that was fine-tuned with title_tokens=true"):
        load_backbone(teacher, {}, (), 0, "teacher", as_tokens=texts_as_tokens(Settings(title_tokens=True), samples().catalogue))


def test_runs_without_are_found_again():
    """They are from before there was this key."""
    assert "title_tokens" not in Settings().identity() and Settings(title_tokens=True).identity() == {**Settings().identity(), "title_tokens": True}
