from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_prunerec.text.tokenizer import END, train_tokenizer

TITLES = ["Toy Story", "Toy Soldiers", "The Net", "The Nutty Professor", "Stories & Tales", "Amélie"] * 3
TOKENIZER = train_tokenizer(TITLES, 300)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False, skip_special_tokens=False) == text


def test_size_and_special_token():
    assert len(TOKENIZER) <= 300
    assert TOKENIZER.eos_token == TOKENIZER.pad_token == END
    assert TOKENIZER("").input_ids == []


def test_no_token_crosses_a_space():
    assert [token for token in TOKENIZER.get_vocab() if "Ġ" in token[1:]] == []


def test_training_repeats():
    assert train_tokenizer(TITLES, 300).backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()
