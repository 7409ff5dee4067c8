"""The benchmark of importance at a small size."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import importance
import pytest
import reporting
import torch
from importance import measured
from material import Subject
from naive_importance import BATCHES, SOFTMAXES, TRIE
from naive_importance import head_importance as one_by_one
from naive_importance import layer_rounds as search
from plain_importance import closed_tokens, head_scores, layer_rounds
from tiny import every_family, llama, qwen2
from tiny_run import TOKENIZER, samples

from recbole_prunerec.text.prompts import Prompts

SAMPLES = samples()
SUBJECT = Subject("small", llama(dtype=torch.float32, vocab_size=len(TOKENIZER)), Prompts(TOKENIZER, SAMPLES.catalogue, "list", 512))


@pytest.fixture
def clocked(monkeypatch):
    """What is timed takes 1, 2, 3, ... seconds, and what is held takes 10 and 40 MiB."""
    seconds, peaks = iter(range(1, 20)), iter([10 * 2**20, 40 * 2**20])

    class Told:
        def __enter__(self):
            self.seconds = next(seconds)
            return self

        def __exit__(self, *error):
            pass

    @contextmanager
    def told():
        yield SimpleNamespace(bytes=next(peaks))

    monkeypatch.setattr(importance, "Stopwatch", Told)
    monkeypatch.setattr(importance, "held", told)
    monkeypatch.setattr(importance, "APART", 2)


def values(figures):
    assert len({figure.key for figure in figures}) == len(figures)
    return {figure.key: figure.value for figure in figures}


@pytest.mark.parametrize(("softmax", "trie"), SOFTMAXES.values(), ids=SOFTMAXES)
@every_family
def test_the_references_head_scores_are_those_of_the_tests(make, softmax, trie):
    model, done = make(), []
    closed = None if trie is None else [closed_tokens(batch, trie, 97) for batch in BATCHES]
    found = head_scores(model, BATCHES, [0, 2], closed, lambda: done.append(1))
    torch.testing.assert_close(found, one_by_one(model, BATCHES, trie)[[0, 2]], atol=1e-12, rtol=1e-12)
    assert len(done) == 2 * 6 * len(BATCHES)


def test_the_references_search_is_that_of_the_tests():
    model = qwen2(2, num_hidden_layers=5)
    expected = search(model, BATCHES, 3)[1]
    found = layer_rounds(model, BATCHES, 2)
    assert [list(nll) for nll in found] == [list(nll) for nll in expected]
    for mine, other in zip(found, expected, strict=True):
        assert mine == pytest.approx(other, rel=1e-12)


def test_a_closed_token_goes_on_with_no_title():
    closed = closed_tokens(BATCHES[1], TRIE, 97)
    assert closed.shape == (int((BATCHES[1]["labels"] >= 0).sum()), 97)
    first = TRIE.children(0)[0].tolist()
    assert [token for token in range(97) if not closed[0, token]] == first and not closed.all(1).any()


def test_figures_relate_what_is_measured(clocked):
    figures, rows = measured(SUBJECT, SAMPLES, 3, seed=1)
    found = values(figures)
    assert found["speedup"] == 2 / 1  # ours, then the reference, then one sample at a time: two of three layers in the third second
    assert found["speedup_single"] == 3 * 3 / 2 / 1
    assert found["catalogue_speedup"] == 5 * 3 / 2 / 4
    assert found["layer_speedup"] == 7 / 6
    assert (found["memory_ratio"], found["peak_memory_mib"]) == (0.25, 10)
    assert 0 < found["max_abs_difference"] < 1e-5 and found["samples"] == 3
    assert [row["times faster"] for row in rows] == [found[key] for key in ("speedup", "speedup_single", "catalogue_speedup", "layer_speedup")]
    assert all(row["largest score, nats"] > 1e-4 for row in rows)
    assert found["max_abs_difference"] == pytest.approx(max(float(row["largest difference"]) for row in rows), rel=0.1)


@pytest.mark.parametrize("name", ["head_scores", "layer_rounds"])
def test_a_difference_is_seen(clocked, monkeypatch, name):
    plain = getattr(importance, name)

    def wrong(*args, **options):
        scores = plain(*args, **options)
        if name == "head_scores":
            scores[0, 1] += 0.5
        else:
            scores[1][next(iter(scores[1]))] += 0.5
        return scores

    monkeypatch.setattr(importance, name, wrong)
    assert values(measured(SUBJECT, SAMPLES, 3, seed=1)[0])["max_abs_difference"] == pytest.approx(0.5, abs=1e-4)


def test_the_command_writes_its_tables_and_prints_json(clocked, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(reporting, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    monkeypatch.setattr(importance, "load_samples", lambda seed, folder: SAMPLES)
    monkeypatch.setattr(importance, "load_subject", lambda *arguments: asked.append(arguments) or SUBJECT)
    reporting.PAGE.write_text(f"{reporting.BEGIN.format('importance')}\n{reporting.END}\n")
    importance.main(["--samples=2", "--seed=7", "--backbone=some/where", "--json", "--write"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((tmp_path / "importance.json").read_text())
    assert asked == [("some/where", SAMPLES.catalogue, 7)] and printed["samples"] == 2 and printed["over_sft"] is None
    assert {"speedup", "speedup_single", "layer_speedup", "memory_ratio", "max_abs_difference"} < set(printed) and len(printed["rows"]) == 4
    page = reporting.PAGE.read_text()
    assert "| head scores, catalogue" in page and "times faster than a full forward pass a head over batched samples" in page
