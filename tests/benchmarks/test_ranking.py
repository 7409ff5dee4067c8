import json
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import material
import measuring
import numpy as np
import parts
import pytest
import ranking
import reference
import reporting
import torch
from material import Subject, Work, histories, load_trained, synthetic_answers
from measuring import ModelClock, held
from reporting import Figure
from tiny import qwen2
from tiny_run import TOKENIZER, samples
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, LlamaConfig

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import save_step
from recbole_prunerec.errors import UserError
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.text.wording import Wording

SAMPLES = samples()
FIGURES = [Figure("a", "less", 1.25, most=1.5), Figure("b", "more", 0.994, "{:.1%}", least=1), Figure("c", "alone", 12345.6, "{:,.0f}")]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Work on the eight films, with a small random model as both models."""
    subject = Subject("small", qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER)), Prompts(TOKENIZER, SAMPLES.catalogue, "list", 512))
    made = Work(None, None, tmp_path, users=3, titles=300, seed=1)
    made.samples, made.large, made.trained = SAMPLES, subject, replace(subject, name="trained")
    for module in (parts, measuring):
        for name, value in (("BEAMS", 4), ("K", 4), ("ROUNDS", 1)):
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(reference, "LEAST_SECONDS", 0)
    monkeypatch.setattr(material, "CUT", {**material.CUT, "num_hidden_layers": 1, "hidden_size": 12, "intermediate_size": 8, "head_dim": 4})
    return made


def values(figures):
    assert len({figure.key for figure in figures}) == len(figures)
    return {figure.key: figure.value for figure in figures}


def test_speed_relates_what_it_measures(work, monkeypatch):
    peaks = iter([10 * 2**20, 1, 2**20, 40 * 2**20, 7, 7, 7])  # ours, then the reference's, at batch sizes 1, 4 and 16

    @contextmanager
    def told():
        yield SimpleNamespace(bytes=next(peaks))

    for module in (parts, measuring):
        monkeypatch.setattr(module, "held", told)
    monkeypatch.setattr(measuring, "seconds_per_token", lambda model: 1 / 250)
    found = values(parts.speed(work))
    queries = work.queries(work.large, 3)
    assert found["prompt_tokens"] == np.mean([len(query) for query in queries])
    assert found["expanded"] == parts.search(work.large, queries).expanded.double().mean()
    assert found["prefill_tokens_per_second"] == pytest.approx(250)
    assert found["over_floor"] == pytest.approx(found["seconds_per_user"] * 250 / (found["prompt_tokens"] + found["expanded"]))
    best = min(found[f"reference_seconds_per_user_{size}"] for size in (1, 4, 16))
    assert found["reference_seconds_per_user"] == best and found[f"reference_seconds_per_user_{work.batch_size}"] == best
    assert found["speedup"] == pytest.approx(best / found["seconds_per_user"])
    assert found["reference_peak_memory_mib"] == {1: 2**-20, 4: 1, 16: 40}[work.batch_size] and found["peak_memory_mib"] == 10
    assert found["peak_memory_ratio"] == 10 / found["reference_peak_memory_mib"]
    assert found["bf16_shared_titles"] > 0.5 and all(value > 0 for value in found.values())
    assert list(work.generated) == [0, 1, 2]


def test_the_same_titles_are_counted_by_user(work, monkeypatch):
    queries = work.queries(work.large, 3)
    found = parts.search(work.large, queries).titles.tolist()
    expected = {tuple(query): titles for query, titles in zip(queries, found, strict=True)}
    monkeypatch.setattr(parts.Generate, "rank", lambda self, prompts, beams: [expected[tuple(prompt)] for prompt in prompts])
    assert len(expected) == 3 and values(parts.same(work)) == {"identical_top20": 1, "trained_identical_top20": 1}
    expected[tuple(queries[1])] = found[1][::-1]
    assert values(parts.same(work)) == pytest.approx({"identical_top20": 2 / 3, "trained_identical_top20": 2 / 3})
    work.generated = dict(enumerate(found))  # from an earlier part, and not asked for again
    assert values(parts.same(work)) == pytest.approx({"identical_top20": 1, "trained_identical_top20": 2 / 3})


def test_the_engine_finds_what_generate_finds(work):
    assert values(parts.same(work)) == {"identical_top20": 1, "trained_identical_top20": 1}


def test_the_exact_search_is_held_against_all_scores(work, monkeypatch):
    found = values(parts.exact(work))
    assert (found["exact_identical"], found["exact_proven"]) == (1, 1)
    assert found["exact_expanded_share"] == pytest.approx(found["exact_expanded"] / work.trained.prompts.trie.nodes)
    assert 0 < found["exact_expanded_share"] < 1
    scores = parts.title_scores
    monkeypatch.setattr(parts, "title_scores", lambda *args: -scores(*args))
    assert values(parts.exact(work))["exact_identical"] == 0


def test_how_often_the_beams_list_is_not_the_exact_one(work, monkeypatch):
    search = parts.search
    before = values(parts.exact(work))

    def losing(subject, queries, **options):
        """Beam search that loses the last of one user's four titles."""
        found = search(subject, queries, **options)
        titles = found.titles.clone()
        titles[1, 3] = titles[1, 3] if options else -1
        return found._replace(titles=titles)

    monkeypatch.setattr(parts, "search", losing)
    after = values(parts.exact(work))
    assert (before["beam_differs"], before["beam_shared_titles"]) == (0, 1)  # four beams do for eight films
    assert (after["beam_differs"], after["beam_shared_titles"]) == pytest.approx((1 / 3, 11 / 12))


def test_a_large_catalogue(work):
    found = values(parts.million(work))
    answers = synthetic_answers(TOKENIZER, 300, 1)
    assert found["million_titles"] == 300
    assert found["million_nodes"] == 1 + len(
        {tuple(answer[: place + 1]) for answer in map(np.ndarray.tolist, answers) for place in range(len(answer))}
    )
    assert 0 < found["constraint_share"] < 1


def test_synthetic_titles_are_distinct_and_end_like_titles():
    answers = synthetic_answers(TOKENIZER, 200, 3)
    texts = [TOKENIZER.decode(answer) for answer in answers]
    assert len(set(texts)) == 200 and all(text.endswith('"\n') and text.count("\n") == 1 for text in texts)
    assert {len(text.split()) for text in texts} == set(range(1, 9))
    assert [answer.tolist() for answer in synthetic_answers(TOKENIZER, 200, 3)] == [answer.tolist() for answer in answers]
    counts = np.sort(np.unique([word for text in texts for word in text[:-2].split()], return_counts=True)[1])[::-1]
    assert counts[0] > 1.3 * counts[1]  # by Zipf's law twice as often


def test_the_users_of_a_small_part_are_the_first_of_a_large_one():
    many = histories(SAMPLES, 6, seed=4)
    assert histories(SAMPLES, 2, seed=4) == many[:2] and len(many) == 6
    assert histories(SAMPLES, 6, seed=5) != many


def test_the_small_model_has_five_percent_of_smollm2():
    with torch.device("meta"):
        whole, cut = (Sizes.of(AutoModelForCausalLM.from_config(LlamaConfig(**{**material.SMOLLM2, **more}))) for more in ({}, material.CUT))
    assert (whole.total_parameters, whole.non_embedding_parameters) == (134_515_008, 106_203_456)  # as in the published SmolLM2-135M
    assert cut.non_embedding_parameters / whole.non_embedding_parameters == pytest.approx(0.05, abs=0.0005)


def test_a_steps_folder_is_spoken_to_as_it_was_trained(tmp_path):
    prompts = Prompts(TOKENIZER, SAMPLES.catalogue, "bigrec", 400)
    model = qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER))
    save_step(tmp_path / "1-finetune", model, TOKENIZER, prompts.terminators, prompts.prompt([1, 2]))
    with pytest.raises(UserError, match=r"1-finetune is no step's folder: it has no prompts\.json"):
        load_trained(tmp_path / "1-finetune", SAMPLES, 0, tmp_path)
    prompts.save(tmp_path / "1-finetune")
    subject = load_trained(tmp_path / "1-finetune", SAMPLES, 0, tmp_path)
    assert subject.prompts.prompt([1, 2]).tolist() == prompts.prompt([1, 2]).tolist()
    assert torch.equal(subject.model.lm_head.weight, model.lm_head.weight) and subject.name == f"{tmp_path.name}/1-finetune"


def test_the_models_share_of_the_time(monkeypatch):
    """A clock that moves by 1 in the decoder, by 2 in the output head, by 3 where logits are picked, by 5 elsewhere, by 100 before all that."""
    model, now = qwen2(dtype=torch.float32), [1.0]
    head = model.lm_head.weight
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])

    class Ticks(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            now[0] += 2 * (function is linear and args[1] is head) + 3 * (function is torch.Tensor.__getitem__ and len(args[0]) == 97)
            return function(*args, **(kwargs or {}))

    def move(seconds):
        now[0] += seconds

    handle = model.base_model.layers[0].register_forward_hook(lambda *_: move(1))
    with Ticks(), ModelClock(model) as clock:
        model.base_model(torch.tensor([[1, 2]]))
        move(100)
        for _ in range(2):
            logits = linear(torch.zeros(48), head)
            logits[torch.tensor([4, 5])]
            model.base_model(torch.tensor([[3]]))
            move(5)
    handle.remove()
    assert clock.own_share == pytest.approx((3 + 5) / (2 + 3 + 1 + 5))
    assert model.base_model._forward_hooks == {} == model.base_model._forward_pre_hooks


def test_held_memory_is_what_was_not_held_before():
    before = np.ones(20 * 2**20 // 8)
    with held() as peak:
        more = np.ones(60 * 2**20 // 8)
        time.sleep(0.05)
        del more
    assert 55 < peak.bytes / 2**20 < 75 and len(before)


def test_the_command_prints_a_table_and_json(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(ranking, "PARTS", {"one": lambda work: asked.append(work) or FIGURES[:1], "two": lambda work: FIGURES[1:]})
    monkeypatch.setattr(reporting, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    reporting.PAGE.write_text(f"{reporting.BEGIN.format('ranking')}\n{reporting.END}\n")
    ranking.main(["--parts=one", "--users=5", "--seed=3", "--json", "--model=some/where"])
    lines = capsys.readouterr().out.splitlines()
    printed = json.loads(lines[-1])
    assert lines[2].split() == ["less", "1.25", "at", "most", "1.5", "yes"]
    assert (printed["a"], printed["seed"], "b" in printed) == (1.25, 3, False)
    assert printed["command"] == "python benchmarks/ranking.py --parts=one --users=5 --seed=3 --json --model=some/where"
    assert (asked[0].users, asked[0].model, asked[0].backbone, asked[0].titles) == (5, Path("some/where"), None, 1_000_000)
    assert not (tmp_path / "ranking.json").exists()
    ranking.main(["--write"])
    assert json.loads((tmp_path / "ranking.json").read_text())["c"] == 12345.6 and "| alone" in reporting.PAGE.read_text()


@pytest.mark.parametrize(
    ("argument", "says"),
    [("--parts=spped", "did you mean 'speed'"), ("--users=0", "expected a whole number, at least 1"), ("--titles=many", "expected a whole number")],
)
def test_a_wrong_option_is_explained(argument, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        ranking.main([argument])
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_the_newest_runs_last_step_is_taken_where_it_knows_the_vocabularys_softmax(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "LATEST", tmp_path)
    assert ranking._latest() is None
    for name in ("2-width", "10-depth", "11-mlp", "12-depth"):
        (tmp_path / name).mkdir()
    for name, softmax in (("2-width", "vocabulary"), ("10-depth", "vocabulary"), ("12-depth", "catalogue")):
        Wording(template="list", max_prompt_tokens=9, softmax=softmax).save(tmp_path / name)
    assert ranking._latest() == tmp_path / "10-depth"
