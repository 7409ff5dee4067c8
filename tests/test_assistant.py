"""D3's assistant and BIGRec's grounding in whole runs: a row of its own, its probabilities in every ranking of PruneRec, and the same after a cut."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_run
import torch
from small_data import write_small

from recbole_prunerec import pipeline
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.evaluate import evaluate
from recbole_prunerec.loading import build, item_probabilities, load_data, load_data_and_model
from recbole_prunerec.quick_start import run
from recbole_prunerec.ranking.grounding import Grounding
from recbole_prunerec.settings import Settings
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.trainer import PruneRecTrainer, RankedEvaluation

RANKED = ["--dataset=small", "--test_rows=20", "--step_test_rows=10", "--topk=2,5", "--show_progress=false", "--baselines.epochs=3"]
TRAINED = [
    *("--model=PruneRec", "--softmax=vocabulary", "--training_rows=48", "--epochs=0", "--restore.epochs=0", "--valid_rows=8"),
    *("--calibration_samples=4", "--steps=[{do: finetune}, {do: mlp, intermediate: 64}]"),
]
BEAMS = "--ranking.beams=12"
HELPED = [BEAMS, "--ranking.assistant=SASRec"]
STEPS = ("1-finetune", "2-mlp-unrestored", "2-mlp")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small dataset. SASRec, which assists, is what a run compares with, where it is not told otherwise."""
    place = tmp_path_factory.mktemp("place")
    write_small(place / "dataset")
    return place


def ran(place: Path, name: str, *argv: str) -> Path:
    """The folder of a finished run whose folders lie in `name`."""
    where = [f"--data_path={place / 'dataset'}", f"--checkpoint_dir={place / name}"]
    run(load_arguments([*where, *RANKED, *TRAINED, *argv]))
    return (place / name / "latest").resolve()


@pytest.fixture(scope="module")
def plain(place) -> Path:
    return ran(place, "plain", BEAMS, "--compare=")


@pytest.fixture(scope="module")
def helped(place) -> Path:
    return ran(place, "helped", *HELPED)


def ranks(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "ranks" / f"{name}.csv", dtype=str)


def rows(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["rows"]


def test_the_assistant_has_one_row_and_every_row_that_it_helps_says_so(plain, helped):
    found = [(row["system"], row["step"], row["note"]) for row in rows(helped)]
    note = "with SASRec, weight 0.5"
    assert found == [
        ("Pop", None, None),
        ("SASRec", None, "not converged: 3 epochs"),
        *(("BIGRec (teacher)", 1, note), ("PruneRec", 2, note), ("PruneRec", 2, note)),
    ]
    assert "10 of 20 rows; with SASRec, weight 0.5" in (helped / "results.md").read_text().replace("\\", "")
    assert [row["note"] for row in rows(plain)] == [None] * 4 and not list((plain / "rows").glob("*.safetensors"))
    assert any(not ranks(helped, step).equals(ranks(plain, step)) for step in STEPS)


def test_without_weight_it_changes_nothing(place, plain):
    folder = ran(place, "nothing", *HELPED, "--compare=", "--ranking.assistant_weight=0")
    assert [row["system"] for row in rows(folder)][:3] == ["Pop", "SASRec", "BIGRec (teacher)"]
    for step in STEPS:
        assert ranks(folder, step).equals(ranks(plain, step))
    for step in ("1-finetune", "2-mlp"):
        assert (folder / step / "model.safetensors").read_bytes() == (plain / step / "model.safetensors").read_bytes()


@pytest.mark.parametrize("seen", ["false", "true"])
def test_with_all_the_weight_it_ranks_alone(place, seen):
    folder = ran(place, f"all-{seen}", *HELPED, "--ranking.assistant_weight=1", f"--exclude_seen={seen}")
    own = ranks(folder, "SASRec").set_index("row")["rank"]
    for step in STEPS:
        assert (ranks(folder, step).set_index("row")["rank"] == own.loc[ranks(folder, step)["row"]]).all()


def test_a_run_that_goes_on_has_the_same_assistant(place, helped, monkeypatch):
    """Its weights come from the file that its row left, in the cut run and in the one that was not."""

    def cut(self, *given):
        raise KeyboardInterrupt

    monkeypatch.setattr(PruneRecTrainer, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        ran(place, "cut", *HELPED)
    (folder,) = [path for path in (place / "cut").iterdir() if path.name.startswith("PruneRec")]
    trained = (folder / "rows" / "SASRec.safetensors").read_bytes()
    monkeypatch.undo()
    fitted = []
    monkeypatch.setattr(RankedEvaluation, "fit", lambda self, *given, **more: fitted.append(self))
    assert ran(place, "cut", *HELPED) == folder and not fitted
    assert (folder / "rows" / "SASRec.safetensors").read_bytes() == trained == (helped / "rows" / "SASRec.safetensors").read_bytes()
    for name in ("SASRec", *STEPS):
        assert ranks(folder, name).equals(ranks(helped, name))


def test_its_file_is_judged_as_every_other_and_made_again_where_it_is_gone(place, helped, tmp_path):
    weights = helped / "rows" / "SASRec.safetensors"
    whole = weights.read_bytes()
    with pytest.raises(UserError, match=r"SASRec.safetensors is damaged or belongs to another model"):
        weights.write_bytes(whole[:50])
        load_data_and_model(helped)
    with pytest.raises(UserError, match=r"SASRec.safetensors has 50 bytes; expected .*: it was cut or changed"):
        (helped / "results.json").rename(tmp_path / "results.json")
        ran(place, "helped", *HELPED)
    with pytest.raises(UserError, match=r"SASRec.safetensors does not exist; expected the weights of ranking.assistant=SASRec"):
        weights.unlink()
        load_data_and_model(helped)
    before = rows(tmp_path)
    ran(place, "helped", *HELPED)
    assert weights.read_bytes() == whole and [row["metrics"] for row in rows(helped)] == [row["metrics"] for row in before]


def test_probabilities_are_a_softmax_over_items_without_padding(place):
    settings = load_arguments([f"--data_path={place / 'dataset'}", *RANKED, "--model=SASRec"]).settings
    data = load_data(settings, place / "unused", place / "cache")
    _, model, loaders = build(settings, data, "SASRec", place / "unused", place / "cache")
    interaction = next(iter(loaders["all"]))[0]
    found = item_probabilities(model.eval(), interaction, "ranking.assistant=SASRec", False)
    scores = model.full_sort_predict(interaction).detach().numpy().astype(np.float64)[:, 1:]
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(found, np.c_[np.zeros(len(scores)), expected], rtol=1e-9)
    assert found.shape == (20, 13) and found.dtype == np.float64
    unseen = item_probabilities(model, interaction, "ranking.assistant=SASRec", True)
    for row, history in zip(expected, interaction[model.ITEM_SEQ].tolist(), strict=True):
        row[[item - 1 for item in history if item]] = 0
    np.testing.assert_allclose(unseen[:, 1:], expected / expected.sum(1, keepdims=True), rtol=1e-9)
    with torch.no_grad():
        model.item_embedding.weight[3] = torch.nan
    with pytest.raises(UserError, match=r"ranking.assistant=SASRec gives scores that are not finite"):
        item_probabilities(model, interaction, "ranking.assistant=SASRec", False)


# Looked at again


def evaluated(place: Path, name: str, model: Path, *argv: str) -> Path:
    evaluate(str(model), [f"--data_path={place / 'dataset'}", f"--checkpoint_dir={place / name}", *RANKED, *argv])
    (folder,) = (place / name).glob("evaluate-*")
    return folder


def test_evaluate_trains_an_assistant_and_ranks_with_it(place, plain, helped):
    folder = evaluated(place, "evaluated", plain / "2-mlp", *HELPED, "--training_rows=48")
    assert [(row["system"], row["note"]) for row in rows(folder)][1:] == [
        ("SASRec", "not converged: 3 epochs"),
        ("2-mlp", "with SASRec, weight 0.5"),
    ]
    assert ranks(folder, "PruneRec").equals(ranks(helped, "2-mlp"))


def test_load_data_and_model_ranks_with_the_assistant_of_the_run(helped):
    _, model, _, _, _, test = load_data_and_model(helped)
    for batch in test:
        scores = model.full_sort_predict(batch[0])
        own = scores.gather(1, batch[3][:, None])
        assert (1 + (scores > own).sum(1)).tolist() == ranks(helped, "2-mlp")["rank"].astype(int).tolist()


def test_grounding_ranks_every_step_and_says_its_weight(place, plain):
    folder = ran(place, "ground", "--ranking.search=grounding", "--ranking.popularity_weight=0.25", "--compare=")
    assert [row["note"] for row in rows(folder)] == [None, *["popularity weight 0.25"] * 3]
    chosen = evaluated(place, "chosen", plain / "1-finetune", "--ranking.search=grounding", "--training_rows=48")
    weight = re.fullmatch(r"popularity weight ([\d.]+), by validation", rows(chosen)[1]["note"])[1]
    given = evaluated(
        place, "given", plain / "1-finetune", "--ranking.search=grounding", f"--ranking.popularity_weight={weight}", "--training_rows=48"
    )
    assert ranks(given, "PruneRec").equals(ranks(chosen, "PruneRec"))


def test_the_exact_search_says_how_many_rows_are_proven(place, plain):
    """With room for all titles both searches find the same; without it, nothing is proven."""
    exact = (BEAMS, "--ranking.search=exact", "--training_rows=48")
    folder = evaluated(place, "exact", plain / "1-finetune", *exact)
    assert rows(folder)[1]["note"] == "proven for 100.0 % of rows"
    assert ranks(folder, "PruneRec").equals(ranks(plain, "1-finetune"))
    assert "search: exact" in (folder / "results.md").read_text()
    short = evaluated(place, "short", plain / "1-finetune", *exact, "--ranking.budget=1", *HELPED[1:])
    assert rows(short)[2]["note"] == "with SASRec, weight 0.5; proven for 0.0 % of rows"


# Without RecBole


def test_the_pipeline_grounds_on_its_own_samples_and_has_no_assistant(tmp_path):
    steps = {"steps": [{"do": "finetune"}], "epochs": 0, "topk": [2], "show_progress": False}
    settings = Settings.model_validate({**steps, "ranking": {"search": "grounding"}})
    (record,) = pipeline.run(tiny_run.backbone(), tiny_run.TOKENIZER, tiny_run.samples(), settings, tmp_path / "ground")
    prompts = Prompts(tiny_run.TOKENIZER, tiny_run.samples().catalogue, "list", 512)
    ground = Grounding(tiny_run.backbone(), prompts, settings.ranking, tiny_run.samples().valid, settings.seed)
    test = tiny_run.samples().test
    order = ground.order([test.history(row).tolist() for row in range(len(test))])
    assert record.final.note == ground.note and record.final.note.endswith(", by validation")
    assert record.final.metrics["hit@2"] == np.mean((order[:, :2] == test.targets[:, None]).any(1))
    helped = Settings.model_validate({**steps, "topk": [2], "ranking": {"beams": 8, "assistant": "SASRec"}})
    with pytest.raises(UserError, match=r"ranking.assistant=SASRec needs RecBole, which is not here; leave it out, or use run_recbole.py"):
        pipeline.run(tiny_run.backbone(), tiny_run.TOKENIZER, tiny_run.samples(), helped, tmp_path / "helped")
