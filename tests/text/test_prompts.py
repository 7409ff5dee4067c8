import numpy as np
import pytest
from safetensors.numpy import save
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recbole_prunerec.backbone.softmax import IGNORE
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.text import prompts as module
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import TEMPLATES, Prompts, made_of
from recbole_prunerec.text.spelling import Spelling
from recbole_prunerec.text.tokenizer import train_tokenizer
from recbole_prunerec.text.wording import Wording

TITLES = ["Toy Story", "Heat", "Heat and Dust", "Wow!", 'The "Best" Man', "Seven"]
CATALOGUE = Catalogue.build([str(item) for item in range(7)], ["", *TITLES], [0] * 7)
TOKENIZER = train_tokenizer(TITLES, 300)


def prompts(template="list", longest=512, tokenizer=TOKENIZER, cache=None) -> Prompts:
    return Prompts(tokenizer, CATALOGUE, template, longest, cache)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_list_prompt_is_header_quoted_titles_and_an_opening_quote():
    ids = prompts().prompt([1, 4])
    assert TOKENIZER.decode(ids) == 'Chosen so far:\n"Toy Story"\n"Wow!"\n"'
    assert ids.tolist() == encode("Chosen so far:\n") + encode('"') + encode('Toy Story"\n') + encode('"') + encode('Wow!"\n') + encode('"')


def test_bigrec_prompt_is_the_template_with_separated_titles():
    ids = prompts("bigrec").prompt([1, 4])
    template = TEMPLATES["bigrec"]
    assert TOKENIZER.decode(ids) == template.before + '"Toy Story", "Wow!"' + template.after + '"'


def test_answers_end_with_the_terminator():
    assert prompts().answer(2).tolist() == encode('Heat"\n')
    assert prompts("bigrec").answer(2).tolist() == [*encode('Heat"'), TOKENIZER.eos_token_id]
    assert prompts("bigrec").terminators == [TOKENIZER.eos_token_id]
    assert prompts().terminators == sorted({encode(title + '"\n')[-1] for title in TITLES})


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_example_labels_the_answer_alone(template):
    made = prompts(template)
    ids, labels, _ = made.example([3, 1], 5)
    answer = made.answer(5).tolist()
    assert ids.tolist() == made.prompt([3, 1]).tolist() + answer
    assert labels.tolist() == [IGNORE] * (len(ids) - len(answer)) + answer


@pytest.mark.parametrize("template", TEMPLATES)
def test_pieces_encoded_alone_are_the_prompt(template):
    made = prompts(template)
    pieces = made.pieces([1, 2, 5])
    assert [token for piece in pieces for token in encode(piece)] == made.prompt([1, 2, 5]).tolist()


def test_a_long_prompt_drops_its_oldest_titles():
    shorter = prompts().prompt([2, 6])
    assert prompts(longest=len(shorter)).prompt([1, 3, 2, 6]).tolist() == shorter.tolist()
    assert prompts(longest=len(prompts().prompt([]))).prompt([1, 3]).tolist() == prompts().prompt([]).tolist()


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_of_any_titles_is_its_texts_encoded_alone(template):
    around, spelling = TEMPLATES[template], Spelling(TOKENIZER, template, 512)
    texts = [around.before, around.opening, f"Brazil{around.closing}", around.separator, around.opening, f"Toy Story{around.closing}"]
    texts += [around.after, around.opening]
    assert spelling.prompt_of([" Brazil\n", "Toy \t Story"]).tolist() == [token for text in texts if text for token in encode(text)]
    assert spelling.prompt_of(["Toy Story", "Wow!"]).tolist() == prompts(template).prompt([1, 4]).tolist()
    empty = spelling.prompt_of([])
    assert TOKENIZER.decode(empty) == around.before + around.after + around.opening and (empty == prompts(template).prompt([])).all()


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_longest_history_that_fits_is_kept(template):
    """Against dropping the oldest title until the prompt fits."""
    titles, whole = ["Heat", "Brazil", "Toy Story", "The Net", "Alien"], Spelling(TOKENIZER, template, 10_000)
    lengths = [len(whole.prompt_of(titles[place:])) for place in range(6)]
    for longest in range(lengths[-1], lengths[0] + 2):
        kept = next(place for place, length in enumerate(lengths) if length <= longest)
        assert Spelling(TOKENIZER, template, longest).prompt_of(titles).tolist() == whole.prompt_of(titles[kept:]).tolist()


def test_of_a_history_of_any_length_no_more_is_encoded_than_fits(monkeypatch):
    spelling, spelt = Spelling(TOKENIZER, "list", 64), []
    encode_one = spelling._encode
    monkeypatch.setattr(spelling, "_encode", lambda text: spelt.append(text) or encode_one(text))
    spelling.prompt_of([f"Film {number}" for number in range(100_000)])
    assert 0 < len(spelt) <= 64 // 3 and spelt[0] == 'Film 99999"\n'


def test_titles_whose_tree_is_given_are_encoded_when_first_needed(monkeypatch):
    whole = prompts()
    loaded = Prompts(TOKENIZER, CATALOGUE, "list", 512, trie=whole.trie)
    monkeypatch.setattr(loaded, "_encode_answers", lambda: pytest.fail("all titles were encoded"))
    assert loaded.trie is whole.trie and loaded.prompt([1, 4]).tolist() == whole.prompt([1, 4]).tolist()
    monkeypatch.undo()
    assert [answer.tolist() for answer in loaded.answers] == [answer.tolist() for answer in whole.answers]


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_saved_makes_the_same_prompts_again(tmp_path, template):
    saved = prompts(template)
    saved.save(tmp_path, "catalogue")
    trie, made = Trie.load(tmp_path / "trie.safetensors")
    wording = Wording.load(tmp_path)
    assert wording == Wording(template=template, max_prompt_tokens=512, softmax="catalogue")
    assert made == saved.made_of and Catalogue.load(tmp_path) == CATALOGUE
    assert all((getattr(trie, part) == getattr(saved.trie, part)).all() for part in ("first", "tokens", "order"))


def test_an_older_wording_means_the_whole_vocabulary(tmp_path):
    (tmp_path / "prompts.json").write_text('{"template": "list", "max_prompt_tokens": 99}')
    assert Wording.load(tmp_path).softmax == "vocabulary"


def test_hashes_tell_tokenizer_closing_and_titles_apart_and_nothing_else(tmp_path):
    first, other = made_of(TOKENIZER, CATALOGUE, "list"), Catalogue.build(CATALOGUE.tokens, (*CATALOGUE.titles[:-1], "Eight"), [0] * 7)
    current = TOKENIZER
    for number in range(2):  # padding and truncation come and go, saving and loading too
        current(["a b", "c"], padding=True, truncation=True, max_length=9)
        current.save_pretrained(tmp_path / str(number))
        (tmp_path / str(number) / "config.json").write_text('{"model_type": "qwen2"}')
        current = AutoTokenizer.from_pretrained(tmp_path / str(number))
        assert made_of(current, Catalogue.build(CATALOGUE.tokens, CATALOGUE.titles, [9] * 7), "list") == first
    assert made_of(TOKENIZER, other, "list") == {**first, "titles": made_of(TOKENIZER, other, "list")["titles"]} != first
    for changed in (made_of(train_tokenizer(["Film"], 300), CATALOGUE, "list"), made_of(TOKENIZER, CATALOGUE, "bigrec")):
        assert changed["spelling"] != first["spelling"] and changed["titles"] == first["titles"]


def test_a_limit_below_the_template_is_refused():
    with pytest.raises(UserError, match="max_prompt_tokens=3 does not even hold the template"):
        prompts(longest=3)


def test_a_begin_token_stands_once_and_first():
    with_begin = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    assert prompts(tokenizer=with_begin).prompt([1]).tolist() == prompts().prompt([1]).tolist()  # this one has such a token, but adds none
    assert prompts(tokenizer=beginning()).prompt([1]).tolist() == [0, *prompts().prompt([1]).tolist()]


def beginning() -> PreTrainedTokenizerFast:
    """A tokenizer that adds its begin token."""
    copied = train_tokenizer(TITLES, 300)
    copied.backend_tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=copied.backend_tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def test_a_chunk_spells_each_target_as_its_prompt_would():
    made, items = prompts(), [1, 2, 3, 4]
    ids, labels, _ = made.chunk(items, [False, True, False, True])
    for position, target in ((1, 2), (3, 4)):
        prompt, answer = made.prompt(items[:position]), made.answer(target)
        assert ids[: len(prompt) + len(answer)].tolist() == [*prompt, *answer]
        assert labels[len(prompt) : len(prompt) + len(answer)].tolist() == answer.tolist()
    assert (labels != IGNORE).sum() == len(made.answer(2)) + len(made.answer(4))


def test_a_chunk_over_the_limit_drops_its_oldest_titles():
    longest = len(prompts().prompt([2, 3]))
    ids, labels, _ = prompts(longest=longest).chunk([1, 2, 3, 4], [False, True, True, True])
    expected = prompts().chunk([2, 3, 4], [False, True, True])
    assert ids.tolist() == expected.ids.tolist() and labels.tolist() == expected.labels.tolist()


def test_answers_are_cached_by_content(tmp_path):
    first, again = prompts(cache=tmp_path), prompts(cache=tmp_path)
    assert (
        [answer.tolist() for answer in again.answers] == [answer.tolist() for answer in first.answers] == [encode(title + '"\n') for title in TITLES]
    )
    assert len(list(tmp_path.iterdir())) == 1
    prompts("bigrec", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_titles_are_encoded_in_parts(monkeypatch):
    monkeypatch.setattr(module, "ENCODED", 4)
    assert [answer.tolist() for answer in prompts().answers] == [encode(title + '"\n') for title in TITLES]


def test_an_end_token_is_needed_by_bigrec_alone():
    bare = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer)
    assert np.array_equal(prompts(tokenizer=bare).answer(1), prompts().answer(1))
    with pytest.raises(UserError, match=r"template=bigrec .* choose template=list"):
        prompts("bigrec", tokenizer=bare)


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "foreign"])
def test_a_damaged_cache_is_made_again_with_a_word(tmp_path, caplog, damage):
    first = prompts(cache=tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    bad = {"empty": b"", "cut": good[:-9], "changed": good[:-1] + bytes([good[-1] ^ 1]), "foreign": save({"ids": np.zeros(3, np.int64)})}[damage]
    path.write_bytes(bad)
    again = prompts(cache=tmp_path)
    assert all((one == other).all() for one, other in zip(first.answers, again.answers, strict=True))
    assert f"{path} is damaged" in caplog.text and path.read_bytes() == good


def normalized(normalizer, titles):
    """Prompts of `titles` for a tokenizer that rewrites text first."""
    tokenizer = train_tokenizer(TITLES, 300)
    tokenizer.backend_tokenizer.normalizer = normalizer
    catalogue = Catalogue.build([str(item) for item in range(len(titles) + 1)], ["", *titles], [0] * (len(titles) + 1))
    return lambda **options: Prompts(tokenizer, catalogue, "list", 512, **options)


@pytest.mark.parametrize(
    ("normalizer", "titles", "expected"),
    [
        (normalizers.Replace("日本", ""), ["Heat", "日本"], "1 titles are nothing in this backbone's tokens, for example '日本'; "),
        (
            normalizers.StripAccents(),
            ["Cafe", "Heat", "Cafe\u0301"],
            "1 titles equal another in this backbone's tokens, for example 'Cafe' and 'Cafe\u0301'; ",
        ),
        (
            normalizers.Replace("\n", ""),
            ["Heat", 'Heat"s', "Seven"],
            "1 titles, with their closing quote, are the beginning of another in this backbone's tokens, for example 'Heat' of 'Heat\"s'; ",
        ),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_titles_that_a_tokenizer_cannot_tell_apart_are_refused_by_name(tmp_path, normalizer, titles, expected, cached):
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UserError) as caught:
            normalized(normalizer, titles)(cache=tmp_path if cached else None)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(expected)


def test_a_title_over_the_limit_is_refused_and_one_at_the_limit_is_not():
    longest = max(map(len, prompts().answers))
    made = normalized(None, TITLES)
    assert len(made(max_title_tokens=longest).answers) == len(TITLES)
    with pytest.raises(UserError, match=rf"1 titles have more than max_title_tokens={longest - 1} tokens, for example '.*' \({longest}\)"):
        made(max_title_tokens=longest - 1)


def test_every_problem_of_titles_and_limits_comes_at_once():
    with pytest.raises(UserError) as caught:
        Prompts(TOKENIZER, CATALOGUE, "list", 3, max_title_tokens=1)
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == ["6", "max_prompt_tokens=3"]
