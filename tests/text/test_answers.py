"""What a prefix tree cannot hold is found among any number of titles, against a comparison of every pair."""

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_prunerec.text.answers import answer_problems


def found(answers: list[list[int]], closing=(9,), longest=None) -> list[str]:
    return answer_problems([f"t{index}" for index in range(len(answers))], [np.array(answer) for answer in answers], closing, longest)


def test_good_answers_have_no_problems():
    assert found([[1, 9], [2, 9], [1, 2, 9], [300, 9], [2**24, 9], [9, 1, 9]][:5], longest=3) == []


def test_each_kind_is_one_line_with_count_and_examples():
    answers = [[9], [1, 2, 3, 9], [1, 2, 4, 9], [5, 9], [5, 9], [5, 9], [6], [6, 7, 9], [256, 1], [1, 0, 0]]
    assert found(answers, longest=3) == [
        "1 titles are nothing in this backbone's tokens, for example 't0'; change them in the .item file, or choose another backbone",
        "2 titles have more than max_title_tokens=3 tokens, for example 't1' (4), 't2' (4); "
        "shorten them in the .item file, or raise max_title_tokens",
        "2 titles equal another in this backbone's tokens, for example 't3' and 't4', 't4' and 't5'; "
        "write them alike or tell them apart in the .item file, or choose another backbone",
        "1 titles, with their closing quote, are the beginning of another in this backbone's tokens, for example 't6' of 't7'; "
        "change them in the .item file, or choose another template or backbone",
    ]


def test_more_than_three_examples_are_counted_and_long_titles_cut():
    lines = answer_problems(["a" * 70, *"bcde"], [np.arange(5) + 10 * place for place in range(5)], [1], 4)
    assert lines == [
        f"5 titles have more than max_title_tokens=4 tokens, for example '{'a' * 60}...' (5), 'b' (5), 'c' (5), ...; "
        "shorten them in the .item file, or raise max_title_tokens"
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 255, 256, 65536]), min_size=1, max_size=4), min_size=1, max_size=12))
def test_equal_and_nested_answers_are_counted_as_every_pair_says(answers):
    lines = found(answers, closing=(7, 7))
    distinct = {tuple(answer) for answer in answers}
    equal = len(answers) - len(distinct)
    nested = sum(any(other != answer and other[: len(answer)] == answer for other in distinct) for answer in distinct)
    expected = [(equal, "titles equal another"), (nested, "titles, with their closing quote, are the beginning")]
    assert [line.split(" in this")[0].split(" of another")[0] for line in lines] == [f"{count} {what}" for count, what in expected if count]


def test_a_hundred_thousand_titles_take_no_time():
    generator = np.random.default_rng(0)
    answers = [
        *np.concatenate([np.repeat(np.arange(100), 1000)[:, None], generator.integers(0, 50_000, (100_000, 8)), np.full((100_000, 1), 9)], axis=1)
    ]
    start = time.process_time()
    assert answer_problems([""] * 100_000, answers, [9], 256) == []
    assert time.process_time() - start < 5  # comparing every pair takes hours
