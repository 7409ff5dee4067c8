import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2Config

from recbole_prunerec.text.tokenizer import END, train_tokenizer

TITLES = ["Toy Story", "Toy Soldiers", "The Net", "The Nutty Professor", "Stories & Tales", "Amélie"] * 3
TOKENIZER = train_tokenizer(TITLES, 300)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_round_trips_but_for_its_composed_letters(text):
    decoded = TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False, skip_special_tokens=False)
    assert decoded == unicodedata.normalize("NFC", text)


def test_size_and_special_token():
    assert len(TOKENIZER) <= 300
    assert TOKENIZER.eos_token == TOKENIZER.pad_token == END
    assert TOKENIZER("").input_ids == []


def test_no_token_crosses_a_space():
    assert [token for token in TOKENIZER.get_vocab() if "Ġ" in token[1:]] == []


def test_training_repeats():
    assert train_tokenizer(TITLES, 300).backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_a_checkpoint_of_a_qwen2_model_loads_the_same_tokenizer(tmp_path):
    """What transformers' own choice of a class makes of the saved files."""
    TOKENIZER.save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TITLES, "Film number 10", "2001: A Space Odyssey", "Se7en 1000", 'Amelie\u0301"\n', "a  b\n\n c", "12 Monkeys' 3.5%"]
    assert again(texts, add_special_tokens=False).input_ids == TOKENIZER(texts, add_special_tokens=False).input_ids
    assert (again.eos_token_id, again.pad_token_id, len(again)) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id, len(TOKENIZER))
