"""Every YAML of a compared system: it is a run by itself, each key has its comment, and it says what it is."""

import re
from pathlib import Path

import pytest
from hf_folder import write_folder

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.compared.systems import OURS
from recbole_prunerec.config import recbole_values
from recbole_prunerec.shipped import model_defaults, read_yaml_file

FOLDER = Path(__file__).parent.parent / "baselines"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = [path.stem for path in FILES]


def load(path: Path, *argv: str):
    return load_arguments([f"--config_files={path}", *argv]).settings


@pytest.fixture
def teacher(tmp_path) -> str:
    folder = write_folder(tmp_path / "1-finetune")
    for name in ("catalogue.json", "prompts.json"):
        (folder / name).touch()
    return f"--teacher={folder}"


def test_every_system_is_there():
    ids = {f"{name}{loss}" for name in ("SASRec", "GRU4Rec", "Caser") for loss in ("", "-BCE")}
    titles = {"BIGRec", "BIGRec-grounding", "BIGRec-depth", "D3"}
    assert set(NAMES) >= {"Popularity", "DLLM2Rec", "SLMRec", "SLMRec-prunerec", *ids, *titles}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_file_and_every_key_has_a_comment(path):
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if re.match(r"\w+:", line)]
    assert first.startswith("# ") and [line for line in keys if not re.search(r" # \S", line)] == []
    assert len(keys) == len(read_yaml_file(path)) and max(map(len, [first, *lines])) <= 150


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_file_is_a_run(path, teacher):
    settings = load(path, *([teacher] if path.stem == "DLLM2Rec" else []))
    content = read_yaml_file(path)
    assert settings.model == (content["model"],)
    assert settings.compare == ()
    assert (settings.model == ("PruneRec",)) == path.stem.startswith(("BIGRec", "D3", "PruneRec"))


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "Caser"])
@pytest.mark.parametrize(("end", "loss_type", "negatives"), [("", "CE", False), ("-BCE", "BCE", True)])
def test_both_losses_are_trained_alike_otherwise(tmp_path, name, end, loss_type, negatives):
    values = recbole_values(load(FOLDER / f"{name}{end}.yaml"), name, tmp_path)
    assert values["loss_type"] == loss_type and ("train_neg_sample_args" not in values) == negatives
    assert (values["train_batch_size"], values["learning_rate"], values["epochs"], values["stopping_step"]) == (1024, 1e-3, 300, 10)


@pytest.mark.parametrize("loss", ["slmrec", "prunerec"])
def test_slmrec_and_its_helpers_have_their_own_training(tmp_path, loss):
    settings = load(FOLDER / f"SLMRec{'' if loss == 'slmrec' else '-prunerec'}.yaml")
    values = {name: recbole_values(settings, name, tmp_path) for name in ("SASRec", "E4SRec", "SLMRec")}
    assert {name: (own["epochs"], own["train_batch_size"]) for name, own in values.items()} == {
        "SASRec": (300, 1024),
        "E4SRec": (3, 128),
        "SLMRec": (3, 128),
    }
    assert values["SLMRec"]["loss"] == loss and values["SLMRec"]["budget"] == 0.05


@pytest.mark.parametrize("model", OURS)
def test_a_models_own_keys_stand_beside_its_students(model):
    """What RecBole's students have can be said of DLLM2Rec, too; but its loss is its own."""
    own = read_yaml_file(FOLDER.parent / "properties" / "model" / f"{model}.yaml")
    defaults = model_defaults(model, "Caser")
    assert own.items() <= defaults.items() and "loss_type" not in defaults
    assert ("nh" in defaults, "n_layers" in model_defaults(model)) == ((model == "DLLM2Rec"),) * 2


def test_the_page_tells_of_every_system_and_key():
    page = (FOLDER.parent / "docs" / "compared.md").read_text(encoding="utf-8")
    keys = [key for model in OURS for key in read_yaml_file(FOLDER.parent / "properties" / "model" / f"{model}.yaml")]
    general = {"epochs", "learning_rate", "train_batch_size", "stopping_step"}  # as for every model
    words = set(re.findall(r"`([\w.=-]+)`", page))
    assert [name for name in (*NAMES, *keys) if not {name, f"{name}=slmrec"} & words and name not in general] == []
