"""SASRec, GRU4Rec and Caser as RecBole trains them and as they are trained here; and what a run says of one model alone."""

from pathlib import Path

import pytest
import small_runs
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed
from small_data import write_small
from small_runs import ranks, rows
from torch import nn

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.config import RunConfig
from recbole_prunerec.errors import UserError
from recbole_prunerec.loading import build, load_data
from recbole_prunerec.lookup import trainer_class

MODELS = ("SASRec", "GRU4Rec", "Caser")
RANKED = ["--dataset=small", "--test_rows=20", "--topk=2,5", "--show_progress=false"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("place")
    write_small(place / "dataset")
    return place


def ran(place: Path, name: str, *argv: str) -> Path:
    """The folder of a finished run whose folders lie in `name`."""
    return small_runs.ran(place, name, *RANKED, *argv)


class Fair(nn.Module):
    """Binary cross-entropy by torch's own function, of the sum over both items of a pair."""

    def forward(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        scores, labels = torch.cat([positive, negative]), torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
        return 2 * nn.functional.binary_cross_entropy_with_logits(scores, labels)


def recbole_alone(place: Path, name: str, loss_type: str) -> tuple[Trainer, dict[str, float]]:
    """RecBole's class, trained by RecBole's trainer on RecBole's own reading of the same files, by nothing of ours."""
    values = {
        "data_path": str(place / "dataset"), "checkpoint_dir": str(place / "theirs"), "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "none", "mode": "full"}, "MAX_ITEM_LIST_LENGTH": 10,
        "user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[5,inf)", "metrics": ["Hit", "NDCG"], "topk": [2, 5],
        "valid_metric": "NDCG@2", "seed": 2020, "epochs": 3, "train_batch_size": 64, "learning_rate": 1e-3, "show_progress": False,
        "loss_type": "BPR" if loss_type == "BCE" else loss_type, "use_gpu": False, **({"train_neg_sample_args": None} if loss_type == "CE" else {}),
    }  # fmt: skip
    config = Config(model=name, dataset="small", config_dict=values)
    init_seed(2020, True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    init_seed(2020, True)
    model = get_model(name)(config, train.dataset)
    if loss_type == "BCE":
        model.loss_fct = Fair()
    trainer = Trainer(config, model)
    trainer.fit(train, valid, saved=False, verbose=False)
    return trainer, trainer.evaluate(test, load_best_model=False)


@pytest.mark.parametrize("loss_type", ["CE", "BPR", "BCE"])
@pytest.mark.parametrize("name", MODELS)
def test_recboles_models_train_here_as_they_do_in_recbole(place, tmp_path, monkeypatch, name, loss_type):
    monkeypatch.setattr("sys.argv", ["test"])  # which RecBole reads
    monkeypatch.setattr(Config, "compatibility_settings", RunConfig.compatibility_settings)  # its own asks numpy for names that are gone
    monkeypatch.chdir(tmp_path)  # where it writes
    theirs, metrics = recbole_alone(place, name, loss_type)
    keys = ["--epochs=3", "--train_batch_size=64", "--learning_rate=0.001", f"--loss_type={loss_type}", "--test_rows=null"]
    argv = [f"--data_path={place / 'dataset'}", *(key for key in RANKED if "test_rows=20" not in key), f"--model={name}", *keys]
    settings = load_arguments(argv).settings
    data = load_data(settings, tmp_path / "run", tmp_path / "cache")
    config, model, loaders = build(settings, data, name, tmp_path / "run", tmp_path / "cache")
    ours = trainer_class(name)(config, model)
    ours.fit(loaders["train"], loaders["valid"], saved=False, verbose=False)
    assert theirs.train_loss_dict == pytest.approx(ours.train_loss_dict, rel=1e-6) and len(ours.train_loss_dict) == 3
    assert dict(theirs.best_valid_result) == pytest.approx(dict(ours.best_valid_result), abs=1e-6)
    tolerance = 1e-5 if loss_type == "BCE" else 1e-6  # torch's own adds in another order, which Adam makes more of
    for (key, value), (other, expected) in zip(model.state_dict().items(), theirs.model.state_dict().items(), strict=True):
        assert key == other
        torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)
    measured, _ = ours.measure(loaders["all"], data.rows["all"])
    assert measured.metrics == pytest.approx({key.lower(): float(value) for key, value in metrics.items()}, abs=1e-6)


def test_a_model_without_pairs_has_no_binary_cross_entropy(place):
    with pytest.raises(UserError, match=r"model=BERT4Rec cannot be built from its settings: loss_type=BCE takes the place of BPR"):
        ran(place, "none", "--model=BERT4Rec", "--loss_type=BCE", "--epochs=1")


def test_what_is_said_of_one_model_is_not_said_of_the_others(place):
    """Keys under a model's name, in a run without PruneRec."""
    alone = ran(place, "alone", "--model=GRU4Rec", "--epochs=2")
    both = ran(place, "both", "--model=SASRec,GRU4Rec", "--epochs=1", "--baselines.GRU4Rec.epochs=2", "--baselines.SASRec.hidden_size=16")
    assert ranks(both, "GRU4Rec").equals(ranks(alone, "GRU4Rec"))
    assert [row["note"] for row in rows(both).values()] == ["not converged: 1 epochs", "not converged: 2 epochs"]
    assert rows(both)["SASRec"]["parameters"]["total"] < rows(ran(place, "large", "--model=SASRec", "--epochs=1"))["SASRec"]["parameters"]["total"]
