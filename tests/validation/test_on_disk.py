"""Whether data are there and results can be written, told before anything is read or trained."""

import shutil
from collections import namedtuple

import pytest

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.validation import on_disk
from recbole_prunerec.validation.on_disk import disk_problems, room_problems

Usage = namedtuple("Usage", ("total", "used", "free"))


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes are free, and notes the folders asked about."""
    asked = []

    def set_free(count: int) -> list:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(2**60, 0, count))
        return asked

    return set_free


def test_a_folder_that_can_be_written_to_need_not_be_there_yet(tmp_path, free):
    asked = free(1000)
    assert disk_problems(tmp_path / "a" / "b", 1000) == disk_problems(str(tmp_path), 1000) == []
    assert asked == [tmp_path, tmp_path] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("have", "need", "shown"),
    [(2**20, 3 * 2**20, "1 MiB free, and the run needs about 3 MiB"), (0, 2**30 * 5 // 2, "0 MiB free, and the run needs about 2.5 GiB")],
)
def test_a_disk_without_room_says_what_is_needed_and_what_is_free(tmp_path, free, have, need, shown):
    free(have)
    assert disk_problems(tmp_path, need, "HF_HUB_CACHE") == [f"HF_HUB_CACHE={tmp_path} has {shown}; make room, or choose another folder"]


def test_a_file_is_no_folder_nor_has_folders_below(tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert disk_problems(path, 0) == [f"checkpoint_dir={path} is a file; choose another folder"]
    below = path / "a" / "b"
    assert disk_problems(below, 0) == [f"checkpoint_dir={below} cannot be made: {path} is a file; choose another folder"]


@pytest.mark.parametrize(
    ("path", "reason"), [("/proc/nowhere/saved", "No such file or directory"), ("/" + "a" * 300, "File name too long")], ids=["no disk", "too long"]
)
def test_a_folder_that_cannot_be_written_to_says_why(path, reason):
    assert disk_problems(path, 0) == [f"checkpoint_dir={path} cannot be written to ({reason}); choose another folder, or see to its rights"]


def test_a_read_only_folder_is_told_by_trying(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(on_disk, "TemporaryFile", refuse)
    path = tmp_path / "saved"
    with pytest.raises(UserError) as caught:
        load_arguments([f"--checkpoint_dir={path}", "--epochs=x"])
    assert str(caught.value).splitlines() == [
        f"checkpoint_dir={path} cannot be written to (Permission denied); choose another folder, or see to its rights",
        "epochs='x': expected a whole number",
    ]


def test_room_is_needed_for_the_models_that_are_not_written_yet(tmp_path, free, monkeypatch):
    monkeypatch.setattr(on_disk, "BESIDE_MODELS", 1000)
    config = {"hidden_size": 4, "num_hidden_layers": 3, "intermediate_size": 5, "vocab_size": 7}
    layers = 3 * (4 * 4 * 4 + 3 * 4 * 5)  # query, key, value, output; gate, up, down
    tied, untied = 4 * (layers + 7 * 4), 4 * (layers + 2 * 7 * 4)  # bytes of one model

    def fits(count: int, **changes) -> bool:
        free(count)
        return room_problems(str(tmp_path), ("SASRec", "PruneRec"), "ml-100k", {**config, **changes} if changes else None, 2) == []

    assert fits(1000) and not fits(999)
    assert fits(1000 + 11 * untied, tie_word_embeddings=False) and not fits(999 + 11 * untied, tie_word_embeddings=False)
    assert fits(1000 + 11 * tied, tie_word_embeddings=True) and not fits(999 + 11 * tied, tie_word_embeddings=True)
    for run, size in (("SASRec-PruneRec-ml-100k-1a2b", 300), ("PruneRec-ml-100k-1a2b", 200), ("SASRec-PruneRec-ml-1m-1a2b", 100)):
        (tmp_path / run / "1-finetune").mkdir(parents=True)
        (tmp_path / run / "1-finetune" / "weights").write_bytes(b"1" * size)
    assert fits(700) and not fits(699)


def test_too_little_room_is_said_with_the_rest(tmp_path, free):
    free(0)
    with pytest.raises(UserError) as caught:
        load_arguments([f"--checkpoint_dir={tmp_path}", "--epohcs=3"])
    key, room = str(caught.value).splitlines()
    assert key.startswith("epohcs") and room.startswith(f"checkpoint_dir={tmp_path} has 0 MiB free, and the run needs about 1")
