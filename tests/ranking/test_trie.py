import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking.trie import Trie


@st.composite
def prefix_free(draw):
    bodies = draw(st.lists(st.lists(st.integers(1, 4), max_size=5), min_size=1, max_size=30, unique_by=tuple))
    return [np.array([*body, 0], dtype=draw(st.sampled_from([np.int32, np.int64]))) for body in bodies]


def nested(answers):
    root = {}
    for index, answer in enumerate(answers):
        node = root
        for token in answer:
            node = node.setdefault(int(token), {})
        node["title"] = index
    return root


def assert_same(trie, node, reference):
    edges = range(int(trie.offsets[node]), int(trie.offsets[node + 1]))
    tokens = [int(trie.tokens[edge]) for edge in edges]
    assert tokens == sorted(key for key in reference if key != "title")
    assert int(trie.titles[node]) == reference.get("title", -1)
    return 1 + sum(assert_same(trie, int(trie.children[edge]), reference[token]) for edge, token in zip(edges, tokens, strict=True))


@settings(max_examples=100, deadline=None)
@given(prefix_free())
def test_equals_nested_dictionaries(answers):
    trie = Trie.build(answers)
    nodes = assert_same(trie, 0, nested(answers))
    assert nodes == len(trie.titles) == len(trie.offsets) - 1 == len(trie.children) + 1 == len(trie.tokens) + 1
    assert trie.depth == max(map(len, answers))
    assert all(part.dtype == torch.int64 for part in (trie.offsets, trie.tokens, trie.children, trie.titles))


def test_every_answer_is_walked_to_its_own_title():
    generator = np.random.default_rng(0)
    answers = sorted({(*generator.integers(1, 60, generator.integers(1, 6)), 1000) for _ in range(2000)}, key=hash)
    trie = Trie.build([list(answer) for answer in answers])
    for index, answer in enumerate(answers):
        node = 0
        for token in answer:
            edges = slice(int(trie.offsets[node]), int(trie.offsets[node + 1]))
            (edge,) = (trie.tokens[edges] == token).nonzero().tolist()[0]
            node = int(trie.children[edges][edge])
        assert int(trie.titles[node]) == index


def test_moves_every_tensor():
    trie = Trie.build([[1, 2], [3]]).to("meta")
    assert {part.device.type for part in (trie.offsets, trie.tokens, trie.children, trie.titles)} == {"meta"}
    assert trie.depth == 2


def test_all_problems_are_named_at_once():
    with pytest.raises(UserError) as error:
        Trie.build([[5, 6], [], [7], [5, 6, 8], [7], [9], [7], []])
    message = str(error.value)
    assert "2 empty: 1, 7;" in message
    assert "2 repeated: 4 equals 2, 6 equals 2;" in message
    assert "1 a prefix of another: 0 of 3 " in message


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([[1], []], "1 empty: 1 "),
        ([[]], "1 empty: 0 "),
        ([[1, 2], [3], [1, 2]], "1 repeated: 2 equals 0 "),
        ([[1, 2, 3], [4], [1]], "1 a prefix of another: 2 of 0 "),
        ([[7]] * 9, "8 repeated: 1 equals 0, 2 equals 0, 3 equals 0, 4 equals 0, 5 equals 0, ... "),
        ([], "no answers"),
    ],
)
def test_one_problem(answers, words):
    with pytest.raises(UserError) as error:
        Trie.build(answers)
    assert words in str(error.value)
    assert str(error.value).count(";") == 1  # one problem, then what to do
