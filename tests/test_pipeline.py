"""The method without RecBole: what `pipeline.run` leaves behind, what it goes on from, and what it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import qwen2
from tiny_run import SETTINGS, TOKENIZER, backbone, samples
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from recbole_prunerec import pipeline, run_folder
from recbole_prunerec.data.samples import Samples
from recbole_prunerec.errors import UserError
from recbole_prunerec.report.ranks import Ranks, means
from recbole_prunerec.text.tokenizer import train_tokenizer

STEPS = ["1-finetune", "2-width", "3-mlp", "4-depth"]


def weights(folder):
    return {step: load_file(folder / step / "model.safetensors") for step in STEPS}


def same(one, other) -> bool:
    return all(torch.equal(one[step][name], other[step][name]) for step in STEPS for name in one[step])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, pipeline.run(backbone(), TOKENIZER, samples(), SETTINGS, folder)


def test_samples_are_one_a_position_and_the_last_two_are_held_out():
    found = Samples.of({"u": ["a", "b", "c", "a", "d"], "v": ["d", "a", "b"]}, {"a": "A", "b": "B", "c": "C", "d": "D"}, longest_history=3)
    rows = [
        [(int(part.users[row]), part.history(row).tolist(), int(part.targets[row])) for row in range(len(part))]
        for part in (found.train, found.valid, found.test)
    ]
    assert rows == [[(1, [1], 2), (1, [1, 2], 3), (2, [4], 1), (2, [4, 1], 2)], [(1, [1, 2, 3], 1)], [(1, [2, 3, 1], 4)]]
    assert found.catalogue.popularity == (0, 2, 2, 1, 1)


def test_samples_say_what_is_missing():
    with pytest.raises(UserError, match="1 items of the histories have no title, for example z"):
        Samples.of({"u": ["a", "z"]}, {"a": "A"})
    with pytest.raises(UserError, match="give 2, 0, 0 samples"):
        Samples.of({"u": ["a", "a", "a"]}, {"a": "A"})


def test_samples_take_numbers_and_say_what_is_no_title():
    found = Samples.of({0: [1, 2, 1, 2], 1: [2, 1, 2, 1]}, {1: "A", 2: "B"})
    assert found.catalogue.tokens == ("[PAD]", "1", "2") and found.test.targets.tolist() == [2, 1]
    with pytest.raises(UserError, match="1 items of the histories have no title, for example 9"):
        Samples.of({0: [1, 9]}, {1: "A"})
    with pytest.raises(UserError, match="1 titles are not text, for example 2: None"):
        Samples.of({0: [1, 2]}, {1: "A", 2: None})
    with pytest.raises(UserError, match=r"dictionaries, \{user: \[item, ...\]\} and \{item: title\}"):
        Samples.of([[1, 2]], {1: "A", 2: "B"})


def test_every_step_is_measured_and_shrinks_the_model(finished):
    folder, records = finished
    assert [f"{record.number}-{record.name}" for record in records] == STEPS
    totals = [record.sizes.total_parameters for record in records]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 4
    for record, step in zip(records, STEPS, strict=True):
        ranks = Ranks.read(folder / "ranks" / f"{step}.csv")
        assert record.final.metrics == pytest.approx(means(ranks, SETTINGS.topk)) and record.final.test_rows == len(ranks)
        assert AutoModelForCausalLM.from_pretrained(folder / step).num_parameters() == record.sizes.total_parameters
    assert not (folder / ".work").exists() or not list((folder / ".work").iterdir())


@pytest.mark.parametrize("part", ["test", "valid"])
def test_ranks_are_those_of_a_brute_force_over_all_titles(finished, tmp_path, part):
    """Score every title by a plain forward pass of the final model, and sort; of validation samples where the tables are of these."""
    folder, data = finished[0], samples()
    if part == "valid":
        folder = tmp_path
        pipeline.run(backbone(), TOKENIZER, data, SETTINGS.model_copy(update={"ranked": part}), folder)
    model, ranked = AutoModelForCausalLM.from_pretrained(folder / "4-depth").double(), getattr(data, part)
    prompts = pipeline.Prompts(TOKENIZER, data.catalogue, SETTINGS.template, SETTINGS.max_prompt_tokens)
    ranks = Ranks.read(folder / "ranks" / "4-depth.csv")
    for row, rank in zip(ranks.rows, ranks.ranks, strict=True):
        scores = []
        for item in range(1, len(data.catalogue)):
            ids, labels, _ = prompts.example(ranked.history(row).tolist(), item)
            with torch.no_grad():
                log_p = model(torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)
            scores.append(sum(log_p[place - 1, ids[place]].item() for place in np.flatnonzero(labels != -100)))
        target = ranked.targets[row] - 1
        assert rank == 1 + sum(score > scores[target] for score in scores)


def test_the_same_call_runs_nothing_again(finished, monkeypatch):
    folder, records = finished
    monkeypatch.setattr(pipeline, "train", lambda *_: pytest.fail("trained again"))
    assert pipeline.run(backbone(), TOKENIZER, samples(), SETTINGS, folder) == records


def test_another_run_is_refused(finished):
    folder, _ = finished
    other, otherwise_scaled = SETTINGS.model_copy(update={"seed": 5}), backbone()
    otherwise_scaled.config.rms_norm_eps = 1e-3
    for call in (
        lambda: pipeline.run(backbone(), TOKENIZER, samples(), other, folder),
        lambda: pipeline.run(backbone(1), TOKENIZER, samples(), SETTINGS, folder),
        lambda: pipeline.run(backbone(), train_tokenizer(["Film"], 280), samples(), SETTINGS, folder),
        lambda: pipeline.run(otherwise_scaled, TOKENIZER, samples(), SETTINGS, folder),
    ):
        with pytest.raises(UserError, match=r"manifest\.json belongs to another run"):
            call()


def test_what_follows_a_step_that_is_run_again_is_run_again(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "2-width")
    stale = tmp_path / "run" / ".work" / "3-mlp" / "note"  # work that was begun on the model that is gone
    stale.parent.mkdir(parents=True)
    ran, prune = [], pipeline.Method._prune

    def noted(method, number, *more):
        ran.append((number, stale.exists()))
        return prune(method, number, *more)

    monkeypatch.setattr(pipeline.Method, "_prune", noted)
    shutil.rmtree(tmp_path / "run" / "3-mlp")  # else its work would go at once
    stale.write_text("")
    pipeline.run(backbone(), TOKENIZER, samples(), SETTINGS, tmp_path / "run")
    assert [number for number, _ in ran] == [2, 3, 4] and not any(there for _, there in ran)
    first, second = (json.loads((folder / "manifest.json").read_text())["files"] for folder in (finished[0], tmp_path / "run"))
    assert same(weights(finished[0]), weights(tmp_path / "run")) and first.keys() == second.keys()


@pytest.mark.parametrize("step", ["2-width", "4-depth"])
@pytest.mark.parametrize("file", ["model.safetensors", "plan.json", "metrics.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_step_is_refused_by_name(finished, tmp_path, step, file, damage):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / step / file
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.unlink()
    with pytest.raises(UserError) as error:
        pipeline.run(backbone(), TOKENIZER, samples(), SETTINGS, tmp_path / "run")
    assert str(path) in str(error.value) and damage in str(error.value) and "--fresh" in str(error.value)


def test_a_foreign_step_is_refused_by_name(finished, tmp_path):
    shutil.copytree(finished[0] / "1-finetune", tmp_path / "run" / "1-finetune")
    with pytest.raises(UserError, match=r"1-finetune was not written by this run"):
        pipeline.run(backbone(), TOKENIZER, samples(), SETTINGS, tmp_path / "run")


def test_a_damaged_manifest_is_refused_by_name(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        pipeline.run(backbone(), TOKENIZER, samples(), SETTINGS, tmp_path / "run")


def test_samples_without_titles_and_impossible_steps_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"Samples\.of"):
        pipeline.run(backbone(), TOKENIZER, replace(samples(), catalogue=None), SETTINGS, tmp_path)
    with pytest.raises(UserError, match=r"steps\.4\.layers=2 is more than the model's 1"):
        pipeline.run(qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER), num_hidden_layers=1), TOKENIZER, samples(), SETTINGS, tmp_path)


def test_a_model_in_bfloat16_is_cut_and_gone_on_with_as_one_in_float32(tmp_path):
    """Otherwise a step that is loaded again, in float32, would not be the one that was in memory."""
    first = pipeline.run(backbone().to(dtype=torch.bfloat16), TOKENIZER, samples(), SETTINGS, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in STEPS[1:]:
        shutil.rmtree(tmp_path / "cut" / step)
    second = pipeline.run(backbone().to(dtype=torch.bfloat16), TOKENIZER, samples(), SETTINGS, tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut")) and [r.final.metrics for r in first] == [r.final.metrics for r in second]


def run_of(folder) -> str:
    return json.loads((folder / "manifest.json").read_text())["run"]


def test_starting_anew_can_be_cut_anywhere(finished, tmp_path, monkeypatch):
    """`clear` dies within each of its removals in turn; what is left must be gone on from without a word."""
    removed, remove = 0, run_folder._remove

    def dying(path):
        nonlocal removed
        if removed == dies_at:
            for file in [file for file in path.rglob("*") if file.is_file()][:1]:  # of a folder, a part is gone already
                file.unlink()
            raise KeyboardInterrupt
        removed += 1
        remove(path)

    dies_at, cut = 0, True
    while cut:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(finished[0], tmp_path / "run")
        shutil.copytree(finished[0] / "2-width", tmp_path / "run" / ".work" / "9-depth" / "checkpoint-5")  # as if another step were in progress
        run_folder.RunFolder(tmp_path / "run", run_of(finished[0])).adopt(tmp_path / "run" / ".work" / "9-depth" / "checkpoint-5")
        folder, removed, cut = run_folder.RunFolder(tmp_path / "run", run_of(finished[0])), 0, False
        with monkeypatch.context() as patched:
            patched.setattr(run_folder, "_remove", dying)
            try:
                folder.clear()
            except KeyboardInterrupt:
                cut = True
        run_folder.RunFolder(folder.path, folder._run).check()
        dies_at += 1
    assert dies_at > 8 and [path.name for path in (tmp_path / "run").iterdir()] in ([], [".lock"])


def test_a_model_of_another_family_and_a_folder_that_is_a_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'gpt2' is not supported; supported are qwen2"):
        pipeline.run(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=len(TOKENIZER))), TOKENIZER, samples(), SETTINGS, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; move it away"):
        pipeline.run(backbone(), TOKENIZER, samples(), SETTINGS, tmp_path / "file")
