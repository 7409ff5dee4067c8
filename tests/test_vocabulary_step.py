"""The step `vocabulary` in whole runs: wherever it stands, all that follows speaks in fewer tokens, and a run that is cut there goes on."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import qwen2
from tiny_run import SETTINGS, TITLES, samples
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from recbole_prunerec import pipeline
from recbole_prunerec.ranking.recommender import Recommender
from recbole_prunerec.report.ranks import Ranks
from recbole_prunerec.settings import Settings
from recbole_prunerec.text.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer([*TITLES.values(), *["another tokenizer knows other words, many more than titles have"] * 9], 320)
VOCABULARY, FINETUNE, WIDTH, MLP, _ = ({"do": "vocabulary"}, *(step.model_dump(exclude_none=True) for step in SETTINGS.steps))


def settings(*steps: dict, **more) -> Settings:
    return Settings.model_validate({**SETTINGS.model_dump(), "steps": steps, **more})


def backbone(tokens: int = len(TOKENIZER)):
    return qwen2(0, torch.float32, vocab_size=tokens + 5)  # five rows beyond the tokenizer's, as Qwen has them


def run(folder, given: Settings, tokenizer=TOKENIZER):
    return pipeline.run(backbone(len(tokenizer)), tokenizer, samples(), given, folder)


FIRST = (VOCABULARY, FINETUNE, WIDTH, MLP)
BETWEEN = (FINETUNE, WIDTH, VOCABULARY, MLP)


@pytest.mark.parametrize("steps", [FIRST, BETWEEN, (FINETUNE, VOCABULARY), (FINETUNE, VOCABULARY, WIDTH)])
@pytest.mark.parametrize("softmax", ["vocabulary", "catalogue"])
def test_a_run_that_is_cut_after_any_step_ends_with_the_same_weights(steps, softmax, tmp_path):
    given, whole = settings(*steps, softmax=softmax), tmp_path / "whole"
    records = run(whole, given)
    names = [f"{number}-{step['do']}" for number, step in enumerate(steps, 1)]
    before = names.index(next(name for name in names if "vocabulary" in name))
    assert [record.sizes.vocab for record in records[:before]] == [len(TOKENIZER) + 5] * before
    assert len({record.sizes.vocab for record in records[before:]}) == 1 and records[-1].sizes.vocab < len(TOKENIZER)
    for kept in range(1, len(names)):
        part = tmp_path / str(kept)
        shutil.copytree(whole, part)
        for name in names[kept:]:
            shutil.rmtree(part / name)
        assert [record.model_dump(include={"number", "sizes", "valid_loss"}) for record in run(part, given)] == [
            record.model_dump(include={"number", "sizes", "valid_loss"}) for record in records
        ]
        for name in names[kept:]:
            ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (part, whole))
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_before_the_fine_tuning_nothing_is_ranked(tmp_path):
    records = run(tmp_path, settings(*FIRST))
    assert [record.final is None for record in records] == [True, False, False, False]
    assert not (tmp_path / "ranks" / "1-vocabulary.csv").exists()
    assert json.loads((tmp_path / "1-vocabulary" / "metrics.json").read_text())["final"] is None


def test_ranks_and_probabilities_over_the_catalogue_do_not_change(tmp_path):
    run(tmp_path, settings(FINETUNE, VOCABULARY, softmax="catalogue"))
    before, after = (Ranks.read(tmp_path / "ranks" / f"{name}.csv") for name in ("1-finetune", "2-vocabulary"))
    assert (before.ranks == after.ranks).all()
    asked = [["Film A", "Film B"], ["Film C"]]
    ours, theirs = (Recommender.from_pretrained(tmp_path / name, search="exact").recommend(asked, k=8) for name in ("1-finetune", "2-vocabulary"))
    for one, other in zip(ours, theirs, strict=True):
        assert [item for item, *_ in one] == [item for item, *_ in other]
        assert [score for *_, score in one] == pytest.approx([score for *_, score in other], abs=1e-5)


def test_every_folder_has_the_tokens_that_its_model_has(tmp_path):
    run(tmp_path, settings(*BETWEEN))
    for name in ("1-finetune", "2-width", "3-vocabulary", "4-mlp"):
        model, tokenizer = (auto.from_pretrained(tmp_path / name) for auto in (AutoModelForCausalLM, AutoTokenizer))
        assert model.config.vocab_size - len(tokenizer) == (5 if name < "3" else 0)
        assert model.config.eos_token_id == tokenizer.eos_token_id
        probe = load_file(tmp_path / name / "probe.safetensors")
        with torch.no_grad():
            assert torch.equal(model(probe["input_ids"]).logits[:, -4:], probe["logits"])
        assert tokenizer.decode(probe["input_ids"][0]).startswith("Chosen so far:\n")
    plan = json.loads((tmp_path / "3-vocabulary" / "plan.json").read_text())
    old, new = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("2-width", "3-vocabulary"))
    assert new.convert_ids_to_tokens(list(range(len(new)))) == old.convert_ids_to_tokens(plan["tokens"])


def test_the_teacher_speaks_of_the_same_tokens(tmp_path, monkeypatch):
    seen = []
    train = pipeline.train

    def spied(model, rows, valid, pad, how, folder, name, softmax, distillation, *more):
        if distillation is not None:
            seen.append((name, model.config.vocab_size, distillation.teacher.config.vocab_size, distillation.teacher.config.hidden_size))
        return train(model, rows, valid, pad, how, folder, name, softmax, distillation, *more)

    monkeypatch.setattr(pipeline, "train", spied)
    *_, last = run(tmp_path, settings(*BETWEEN))
    assert seen == [("2-width", len(TOKENIZER) + 5, len(TOKENIZER) + 5, 48), ("4-mlp", last.sizes.vocab, last.sizes.vocab, 48)]


def test_a_tokenizer_over_characters_is_left_whole_and_the_run_goes_on(tmp_path, caplog):
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [f'Chosen so far:\n"{title}"\n' for title in TITLES.values()]
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    with caplog.at_level(logging.WARNING):
        records = run(tmp_path, settings(*FIRST), tokenizer)
    assert "steps.1, vocabulary: its tokenizer (" in caplog.text and "a BPE over characters and no byte-level one; all tokens stay" in caplog.text
    assert {record.sizes.vocab for record in records} == {len(tokenizer) + 5}
    assert json.loads((tmp_path / "1-vocabulary" / "plan.json").read_text())["tokens"] is None
