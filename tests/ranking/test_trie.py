import re
from dataclasses import fields
from pathlib import Path

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
    """Compare a subtree, and give its answers in the order of their tokens and its number of nodes."""
    tokens, nodes = (part.tolist() for part in trie.children(node))
    assert tokens == sorted(key for key in reference if key != "title")
    assert [int(trie.tokens[child]) for child in nodes] == tokens
    below, count = [reference["title"]] if "title" in reference else [], 1
    for token, child in zip(tokens, nodes, strict=True):
        assert int(trie.parents()[child]) == node
        titles, more = assert_same(trie, child, reference[token])
        below, count = below + titles, count + more
    assert trie.order[int(trie.low[node]) : int(trie.high[node])].tolist() == below
    return below, count


@settings(max_examples=100, deadline=None)
@given(prefix_free())
def test_equals_nested_dictionaries(answers):
    trie = Trie.build(answers)
    titles, nodes = assert_same(trie, 0, nested(answers))
    assert nodes == trie.nodes == len(trie.tokens) == len(trie.first) - 1 and trie.count == len(answers)
    assert titles == sorted(range(len(answers)), key=lambda index: answers[index].tolist())
    assert trie.lengths.tolist() == [len(answers[title]) for title in titles]
    depth = {0: 0}
    for node, parent in enumerate(trie.parents().tolist()[1:], 1):
        depth[node] = depth[parent] + 1
    assert trie.levels.tolist() == [sum(at < level for at in depth.values()) for level in range(trie.depth + 2)]
    assert trie.depth == max(map(len, answers))
    assert all(getattr(trie, field.name).dtype == torch.int32 for field in fields(trie))


def walk(trie, answer):
    node = 0
    for token in answer:
        tokens, nodes = trie.children(node)
        (place,) = (tokens == token).nonzero().tolist()[0]
        node = int(nodes[place])
    return node


def test_every_answer_is_walked_to_its_own_title():
    generator = np.random.default_rng(0)
    answers = sorted({(*generator.integers(1, 60, generator.integers(1, 6)), 1000) for _ in range(2000)}, key=hash)
    trie = Trie.build([list(answer) for answer in answers])
    for index, answer in enumerate(answers):
        node = walk(trie, answer)
        assert int(trie.order[trie.low[node]]) == index and int(trie.high[node] - trie.low[node]) == 1


def test_very_long_answers_and_the_largest_ids():
    largest = 2**31 - 1
    answers = [[largest] * 5000 + [largest - 1], [largest] * 4999 + [3], [largest - 2], [0, largest]]
    trie = Trie.build(answers)
    assert trie.depth == 5001 and trie.nodes == 1 + 5001 + 1 + 1 + 2
    assert [int(trie.order[trie.low[walk(trie, answer)]]) for answer in answers] == [0, 1, 2, 3]


def test_is_mapped_into_memory_as_it_was_saved(tmp_path):
    trie = Trie.build([[5, 6], [5, 7, 8], [9]])
    trie.save(tmp_path / "trie.safetensors", {"tokenizer": "abc"})
    again, made_of = Trie.load(tmp_path / "trie.safetensors")
    assert made_of == {"tokenizer": "abc"}
    assert all(torch.equal(getattr(again, field.name), getattr(trie, field.name)) for field in fields(trie))
    assert [path.name for path in tmp_path.iterdir()] == ["trie.safetensors"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells memory of files and of its own apart")
def test_loading_takes_no_memory_of_its_own(tmp_path):
    count = 200_000
    Trie.build(np.arange(count * 3).reshape(-1, 3)).save(tmp_path / "trie.safetensors", {})

    def own():
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    before = own()
    trie, _ = Trie.load(tmp_path / "trie.safetensors")
    assert int(trie.tokens[-1]) == count * 3 - 1
    assert own() - before < (tmp_path / "trie.safetensors").stat().st_size / 4


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-5], lambda data: b"no tensors", lambda data: b""])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "trie.safetensors"
    Trie.build([[1, 2], [3]]).save(path, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"trie.safetensors is damaged or no prefix tree.*remove it, and it is made again"):
        Trie.load(path)


def test_moves_every_tensor():
    trie = Trie.build([[1, 2], [3]]).to("meta")
    assert {getattr(trie, field.name).device.type for field in fields(trie)} == {"meta"}
    assert trie.depth == 2 and trie.nodes == 4 and trie.count == 2


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
