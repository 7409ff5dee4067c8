import torch

from recbole_prunerec.identity import identity_of, settled
from recbole_prunerec.lookup import model_class, trainer_class
from recbole_prunerec.settings import Settings
from recbole_prunerec.trainer import target_ranks


def test_target_ranks_count_what_stands_before_with_ties_by_id():
    torch.manual_seed(0)
    scores = torch.randint(0, 6, (200, 30)).float()
    scores[:, 0] = -torch.inf
    targets = torch.randint(1, 30, (200,))
    for row, rank in enumerate(target_ranks(scores, targets).tolist()):
        order = sorted(range(30), key=lambda item: (-scores[row, item].item(), item))
        assert order.index(targets[row].item()) + 1 == rank


def test_a_recbole_model_does_not_leave_anomaly_detection_on():
    """RecBole's sine.py turns it on for the whole process, which doubles the time of every training step after it."""
    assert model_class("SASRec").__name__ == "SASRec" and model_class("SINE").__name__ == "SINE"
    assert not torch.is_anomaly_enabled()


def test_trainers_of_recbole_models_measure_ranks():
    assert [hasattr(trainer_class(name), "measure") for name in ("SASRec", "GRU4Rec", "Popularity", "PruneRec")] == [True] * 4


def test_a_run_is_another_where_its_settings_or_its_backbones_files_are(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = identity_of(Settings(backbone=str(tmp_path)))
    assert identity_of(Settings(backbone=str(tmp_path), checkpoint_dir="elsewhere")) == first
    assert identity_of(Settings(backbone=str(tmp_path), seed=1)) != first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert identity_of(Settings(backbone=str(tmp_path))) != first


def test_a_folder_that_latest_points_to_keeps_its_own_name(tmp_path, monkeypatch):
    """The run that reads it is the latest itself before it has read it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved" / "run" / "1-finetune").mkdir(parents=True)
    (tmp_path / "saved" / "latest").symlink_to("run")
    found = settled(Settings(teacher="saved/latest/1-finetune", steps=[{"do": "mlp", "intermediate": 8}]))
    assert (found.teacher, found.backbone) == ("saved/run/1-finetune", "tiny")
