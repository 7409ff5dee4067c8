"""What a finished run's folders give when they are looked at again: the same ranks by `evaluate`, and by `load_data_and_model`."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from recbole.trainer import Trainer
from small_data import write_small
from tiny import llama
from transformers import AutoTokenizer

from recbole_prunerec import evaluate as evaluation
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.data.samples import training_popularity
from recbole_prunerec.errors import UserError
from recbole_prunerec.loading import load_data
from recbole_prunerec.pipeline import StepRecord
from recbole_prunerec.quick_start import load_data_and_model, run
from recbole_prunerec.ranking.recommender import Recommender
from recbole_prunerec.settings import Settings
from recbole_prunerec.storage import read_json
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.text.wording import Wording

ROWS = ["--training_rows=48", "--test_rows=30", "--step_test_rows=15", "--topk=2,5", "--ranking.beams=8", "--show_progress=false"]
RUN = [
    *("--model=PruneRec", "--compare=", "--epochs=1", "--restore.epochs=1", "--valid_rows=8", "--calibration_samples=4", "--learning_rate=1e-2"),
    *("--template=bigrec", "--packing=false", "--max_prompt_tokens=380", "--short_titles=true", *ROWS),
    "--steps=[{do: finetune}, {do: mlp, intermediate: 64}, {do: depth, layers: 1}]",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small dataset, and a run on it that asks in other words than the default."""
    place = tmp_path_factory.mktemp("place")
    write_small(place / "data", subtitle=" - the film")
    run(load_arguments([*here(place), *RUN]))
    return place


def here(place: Path) -> list[str]:
    return ["--dataset=small", f"--data_path={place / 'data'}", f"--checkpoint_dir={place / 'saved'}"]


@pytest.fixture(scope="module")
def latest(place) -> Path:
    return (place / "saved" / "latest").resolve()


def row_of(latest: Path, step: str) -> dict:
    """The row of results.json of a step, restored."""
    rows = json.loads((latest / "results.json").read_text())["rows"]
    return next(row for row in rows if f"{row['step']}-{row['step_name']}" == step and row["restored"] is not False)


def evaluated(place: Path) -> list[Path]:
    return sorted((place / "saved").glob("evaluate-*"))


@pytest.mark.parametrize("step", ["1-finetune", "2-mlp", "3-depth"])
def test_a_steps_folder_ranks_as_in_its_run(place, latest, step):
    """To the row, and so to the metric; the middle step was ranked on some of the rows."""
    before = set(evaluated(place))
    printed = evaluation.evaluate(str(latest / step), [*here(place), *ROWS])
    (folder,) = set(evaluated(place)) - before
    then = pd.read_csv(latest / "ranks" / f"{step}.csv")
    now = pd.read_csv(folder / "ranks" / "PruneRec.csv")
    assert len(now) == 30 and len(then) == (15 if step == "2-mlp" else 30)
    pd.testing.assert_frame_equal(now[now["row"].isin(then["row"])].reset_index(drop=True), then)
    results = json.loads((folder / "results.json").read_text())
    assert [(row["system"], row["test_rows"]) for row in results["rows"]] == [("Pop", 30), (step, 30)]
    if step != "2-mlp":
        assert results["rows"][1]["metrics"] == row_of(latest, step)["metrics"]
    assert results["rows"][0]["metrics"] == json.loads((latest / "results.json").read_text())["rows"][0]["metrics"]
    assert results["rows"][1]["parameters"]["total"] == row_of(latest, step)["parameters"]["total"]
    assert {(each["system"], each["against"]) for each in results["comparisons"]} == {(step, "Pop")}
    assert step in printed and "finished" in printed
    assert (place / "saved" / "latest").resolve() == latest
    assert not list(folder.glob("[0-9]-*")) and not (folder / ".work").exists()  # nothing was trained


@pytest.mark.parametrize("seen", ["false", "true"])
def test_validation_samples_are_ranked_where_settings_are_to_be_chosen_with_or_without_what_was_seen(place, latest, seen):
    """Each rank against an order of the catalogue for that validation sample's own history, made by hand; popularity's likewise."""
    before, argv = set(evaluated(place)), [*here(place), *ROWS, "--ranked=valid", "--ranking.search=exact", f"--exclude_seen={seen}"]
    evaluation.evaluate(str(latest / "1-finetune"), argv)
    (folder,) = set(evaluated(place)) - before
    settings = load_arguments([*argv, "--preset=tiny"]).settings
    data = load_data(settings, folder, place / "saved" / "cache")
    rows = data.rows["all"]
    recommender = Recommender.from_pretrained(latest / "1-finetune", search="exact", beams=8)
    valid = data.samples.valid.take(rows)
    histories = [valid.history(row).tolist() for row in range(len(valid))]
    popularity = training_popularity(data.samples.train, data.dataset.item_num)
    popular = sorted(range(1, len(popularity)), key=lambda item: (-popularity[item], item))

    def expected(orders: list[list[int]]) -> list[int]:
        left = [[item for item in order if seen == "false" or item not in history] for order, history in zip(orders, histories, strict=True)]
        return [order.index(target) + 1 if target in order else -1 for order, target in zip(left, valid.targets, strict=True)]

    ranks = expected(recommender.order(histories).tolist()), expected([popular] * len(histories))
    for name, rows in zip(("PruneRec", "Popularity"), ranks, strict=True):
        there = pd.read_csv(folder / "ranks" / f"{name}.csv")["rank"].tolist()
        assert [rank if own > 0 else -1 for rank, own in zip(there, rows, strict=True)] == rows
        assert all(rank > len(popular) - 10 for rank, own in zip(there, rows, strict=True) if own < 0)  # a target that was seen comes last
    assert ("no target of training or validation is in its own history" in (folder / "run.log").read_text()) == (seen == "false")
    included = "left out" if seen == "true" else "included"
    assert json.loads((folder / "results.json").read_text())["protocol"]["ranked_items"] == f"the full catalogue, items already seen {included}"
    assert json.loads((folder / "results.json").read_text())["protocol"]["ranked"] == "validation samples, by which settings may be chosen"
    assert "validation samples" in (folder / "results.md").read_text()


@pytest.mark.parametrize("seen", ["false", "true"])
def test_targets_that_leave_the_ranking_are_told(tmp_path, caplog, seen):
    """Two of 40 users end with an item that they had before; one of them has it in the history that is read, of three items."""
    write_small(tmp_path)
    inter = tmp_path / "small" / "small.inter"
    rows = [line.split("\t") for line in inter.read_text().splitlines()[1:]]
    again = [[f"u{user}", rows[10 * user + place][1], str(9000 + user)] for user, place in ((3, 8), (5, 0))]
    inter.write_text(inter.read_text() + "".join("\t".join(row) + "\n" for row in again))
    argv = [f"--data_path={tmp_path}", "--split=leave_one_out", "--MAX_ITEM_LIST_LENGTH=3", *ROWS[1:], f"--exclude_seen={seen}"]
    with caplog.at_level("INFO"):
        data = load_data(load_arguments(["--model=SASRec", "--dataset=small", *argv]).settings, tmp_path, tmp_path / "cache")
    assert data.samples.test.repeated == 1 and ("of 40 test samples 1 have a target in its own history" in caplog.text) == (seen == "true")


def test_an_evaluation_that_is_done_is_shown_again(place, latest):
    argv = [*here(place), *ROWS, "--seed=7"]
    first = evaluation.evaluate(str(latest / "1-finetune"), argv)
    second = evaluation.evaluate(str(latest / "1-finetune"), argv)
    assert "finished before" not in first and "finished before" in second
    assert second.split("\n\n")[0] == first.split("\n\n")[0]


def test_a_model_from_elsewhere(place, latest, tmp_path):
    """A folder of another family, without catalogue or wording, asked by the default template; its name is a path from the root."""
    tokenizer = AutoTokenizer.from_pretrained(latest / "1-finetune")
    model = llama(0, torch.float32, vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    before = set(evaluated(place))
    printed = evaluation.evaluate(str(tmp_path / "other"), [*here(place), *ROWS])
    (folder,) = set(evaluated(place)) - before
    row = json.loads((folder / "results.json").read_text())["rows"][1]
    assert row["system"] == "other" and "other" in printed
    sizes = Sizes.of(model)
    assert (row["parameters"]["total"], row["parameters"]["non_embedding"]) == (model.num_parameters(), sizes.non_embedding_parameters)
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == sorted(
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    )


def asked(folder: Path, *argv: str) -> Settings:
    return evaluation.evaluation(str(folder), argv, folder).settings


def test_a_model_is_asked_in_the_words_it_was_trained_with(latest, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(latest / "3-depth", folder)
    assert (asked(folder).template, asked(folder).max_prompt_tokens, asked(folder).short_titles) == ("bigrec", 380, True)
    given = asked(folder, "--template=list", "--preset=quick")
    assert (given.template, given.max_prompt_tokens, given.test_rows) == ("list", 380, 64)
    (tmp_path / "mine.yaml").write_text("max_prompt_tokens: 450\npacking: true\nrestore: {chunkings: 2}\nsteps: []\nmodel: SASRec\nbackbone: tiny\n")
    filed = asked(folder, f"--config_files={tmp_path / 'mine.yaml'}")
    assert (filed.template, filed.max_prompt_tokens, filed.backbone, filed.model) == ("bigrec", 450, str(folder), ("PruneRec",))
    (folder / "prompts.json").write_text('{"template": "bigrec"}')
    with pytest.raises(UserError, match="is damaged"):
        asked(folder)
    (folder / "prompts.json").unlink()
    default = asked(folder)
    found = (default.template, default.max_prompt_tokens, default.short_titles, default.packing, default.preset)
    assert found == ("list", 512, False, False, "tiny")


def test_prompts_say_how_they_were_made(tmp_path, latest):
    tokenizer = AutoTokenizer.from_pretrained(latest / "1-finetune")
    prompts = Prompts(tokenizer, Catalogue.build(["", "a", "b"], ["", "Alien", "Aliens"], [0, 2, 1]), "bigrec", 400)
    prompts.save(tmp_path, "catalogue")
    wording = Wording.load(tmp_path)
    again = Prompts(tokenizer, Catalogue.load(tmp_path), wording.template, wording.max_prompt_tokens)
    expected = {"template": "bigrec", "max_prompt_tokens": 400, "softmax": "catalogue", "short_titles": False}
    assert json.loads((tmp_path / "prompts.json").read_text()) == expected
    assert again.prompt([1, 2]).tolist() == prompts.prompt([1, 2]).tolist()
    assert Wording.load(tmp_path / "nowhere") is None


def test_only_an_evaluation_may_have_no_steps(latest):
    assert asked(latest / "3-depth").steps == ()
    with pytest.raises(UserError, match="steps is empty"):
        load_arguments([f"--teacher={latest / '1-finetune'}", "--steps=[]"])


def test_a_dry_run_of_an_evaluation_is_refused(latest):
    with pytest.raises(UserError, match="nothing is trained here"):
        asked(latest / "3-depth", "--dry_run")


def test_a_name_on_the_hub_is_fetched_and_its_wording_read(monkeypatch, tmp_path):
    Wording(template="bigrec", max_prompt_tokens=400, softmax="catalogue").save(tmp_path)
    monkeypatch.setattr("recbole_prunerec.backbone.hub.hub_folder", lambda name, revision: {"v2": tmp_path}[revision])
    monkeypatch.setattr("recbole_prunerec.quick_start.run", lambda arguments: arguments.settings)
    settings = evaluation.evaluate("someone/something", ["--revision=v2"])
    assert (settings.backbone, settings.template, settings.max_prompt_tokens, settings.softmax) == ("someone/something", "bigrec", 400, "catalogue")
    assert settings.revision == "v2"


# As RecBole's users know it


@pytest.mark.parametrize(("folder", "step"), [("", "3-depth"), ("3-depth", "3-depth"), ("1-finetune", "1-finetune")])
def test_load_data_and_model_gives_what_recboles_evaluator_ranks(place, latest, monkeypatch, tmp_path, folder, step):
    monkeypatch.chdir(tmp_path)
    config, model, dataset, train, valid, test = load_data_and_model(place / "saved" / "latest" / folder)
    assert dict(Trainer(config, model).evaluate(test, load_best_model=False, show_progress=False)) == row_of(latest, step)["metrics"]
    assert [len(loader.dataset) for loader in (train, valid, test)] == [48, 36, 30] and dataset.item_num == 13
    sizes = read_json(latest / step / "metrics.json", StepRecord).sizes
    assert Sizes.of(model.backbone.model) == sizes and config["topk"] == [2, 5]
    scores = model.full_sort_predict(next(iter(test))[0])
    assert scores.shape[1] == 13 and scores[:, 1:].sort(1).values.tolist() == [[-float(rank) for rank in range(12, 0, -1)]] * len(scores)


def test_the_last_complete_step_is_loaded_and_a_moved_backbone_is_not_missed(latest, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    text = (latest / "config.yaml").read_text().replace("backbone: tiny", "backbone: /nowhere/any/more")
    assert "/nowhere" in text
    (copy / "config.yaml").write_text(text)
    for step in ("1-finetune", "2-mlp"):
        (copy / step).symlink_to(latest / step)
    _, model, *_ = load_data_and_model(copy)
    assert Sizes.of(model.backbone.model) == read_json(latest / "2-mlp" / "metrics.json", StepRecord).sizes


def test_a_folder_that_is_neither_run_nor_step_is_told(tmp_path):
    with pytest.raises(UserError, match=r"neither a run's folder nor a step's: neither it nor .* has a config\.yaml; give one such as saved/latest"):
        load_data_and_model(tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text("steps: [{do: finetune}]\n")
    with pytest.raises(UserError, match="holds no complete step of PruneRec; expected one of 1-finetune"):
        load_data_and_model(tmp_path)
    (tmp_path / "config.yaml").write_text("epochs: many\n")
    with pytest.raises(UserError, match="is damaged or was written by another version"):
        load_data_and_model(tmp_path)
