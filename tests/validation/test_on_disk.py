"""Whether data are there and results can be written, told before anything is read or trained."""

import shutil
from collections import namedtuple

import pytest
import torch
from gguf_file import write_gguf
from tiny import llama, qwen2

from recbole_prunerec import quick_start
from recbole_prunerec.arguments import Arguments, load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.identity import identity_of
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.settings import Finetune, Mlp, Settings
from recbole_prunerec.validation import on_disk, preflight
from recbole_prunerec.validation.on_disk import dataset_problems, disk_problems, has_data

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


@pytest.mark.parametrize(("there", "problem"), [(None, None), ("", None), ("x.csv", "is in the way"), ("file", "is in the way")])
def test_a_dataset_of_recboles_may_be_absent_where_nothing_is_in_its_way(tmp_path, there, problem):
    folder = tmp_path / "amazon-books-18"
    if there == "file":
        folder.touch()
    elif there is not None:
        folder.mkdir()
        (folder / there).touch()
    found = dataset_problems(folder.name, str(tmp_path))
    expected = f"{folder / folder.name}.inter and .item (RecBole's atomic files); {folder} is in the way; move it elsewhere, and RecBole's dataset of"
    assert found == [] if problem is None else len(found) == 1 and expected in found[0]
    assert not has_data(folder.name, str(tmp_path))


def test_a_dataset_that_would_be_fetched_needs_a_folder_that_takes_it(tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert dataset_problems("ml-1m", str(path)) == [f"data_path={path} is a file; choose another folder"]


def test_the_nearest_name_is_one_that_is_here_or_else_one_of_recboles(tmp_path):
    assert dataset_problems("amazon-book-18", str(tmp_path))[0].endswith("; found ml-100k; did you mean 'amazon-books-18'?")
    (tmp_path / "amazon-boots-18").mkdir()
    (tmp_path / "amazon-boots-18" / "amazon-boots-18.inter").touch()
    assert dataset_problems("amazon-bookz-18", str(tmp_path))[0].endswith("; found amazon-boots-18, ml-100k; did you mean 'amazon-books-18'?")
    assert dataset_problems("amazon-bootz-18", str(tmp_path))[0].endswith("; found amazon-boots-18, ml-100k; did you mean 'amazon-boots-18'?")
    assert has_data("amazon-boots-18", str(tmp_path)) and dataset_problems("amazon-boots-18", str(tmp_path)) == []


def run_or_refuse(monkeypatch, settings: Settings, **arguments) -> str:
    """How `quick_start.run` goes on, which is not to read data here: "starts", the table that it returns, or why it refuses."""

    def start(*argv):
        raise RuntimeError("starts")

    monkeypatch.setattr(quick_start, "RunTable", start)
    monkeypatch.setattr(quick_start, "start_log", lambda path: None)
    monkeypatch.setattr(quick_start, "dry_run", lambda settings: "a dry run")
    try:
        return quick_start.run(Arguments(settings, **{"fresh": False, "dry_run": False, **arguments}))
    except (RuntimeError, UserError) as error:
        return str(error)


def test_room_is_needed_for_the_models_and_checkpoints_that_this_run_has_not_written(tmp_path, free):
    """The most is held in the second step: two models kept, and three checkpoints of thrice the second's size."""
    backbone = qwen2(0, torch.float32)
    parameters = sum(weight.numel() for weight in backbone.parameters())
    width = backbone.config.intermediate_size - 1
    cut = 3 * backbone.config.hidden_size * backbone.config.num_hidden_layers  # a neuron of every layer: gate, up, down
    backbone.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text('{"model": {}}')
    steps = (Finetune(do="finetune"), Mlp(do="mlp", intermediate=width))
    settings = Settings(backbone=str(tmp_path / "model"), checkpoint_dir=str(tmp_path / "saved"), steps=steps, epochs=0)
    need = preflight.BESIDE_MODELS + 4 * (parameters + 10 * (parameters - cut))
    path = tmp_path / "saved" / "PruneRec-ml-100k-1a2b"

    def fits(count: int) -> bool:
        free(count)
        try:
            preflight.preflight(settings, path)
        except UserError as error:
            assert str(error).startswith(f"checkpoint_dir={tmp_path / 'saved'} has ")
            return False
        return True

    def write(run: str, size: int) -> None:
        (path.parent / run / "1-finetune").mkdir(parents=True)
        (path.parent / run / "1-finetune" / "weights").write_bytes(b"1" * size)

    assert fits(need) and not fits(need - 1)
    write("PruneRec-ml-100k-3c4d", 500)  # another run's
    assert fits(need) and not fits(need - 1)
    write(path.name, 300)
    assert fits(need - 300) and not fits(need - 301)


def test_only_what_trains_asks_for_room_for_models(tmp_path, free, monkeypatch):
    settings = Settings(checkpoint_dir=str(tmp_path), steps=(Finetune(do="finetune"),), epochs=1)  # 40 bytes for each of tiny's million parameters
    free(preflight.BESIDE_MODELS)
    assert "free, and the run needs about 10" in run_or_refuse(monkeypatch, settings)
    for other in ({"steps": ()}, {"model": ("SASRec",)}):
        assert run_or_refuse(monkeypatch, settings.model_copy(update=other)) == "starts"
    free(0)
    assert "free, and the run needs about 64 MiB" in run_or_refuse(monkeypatch, settings.model_copy(update={"steps": ()}))


def test_a_gguf_file_asks_for_the_room_of_a_folder(tmp_path, free):
    """Its header has all sizes: here those of a Llama whose heads are wider than hidden / heads, tied."""
    write_gguf(tmp_path / "model.gguf", **{"attention.head_count_kv": 2, "attention.key_length": 16})
    backbone = llama(vocab_size=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
    steps = (Finetune(do="finetune"),)
    settings = Settings(backbone=str(tmp_path / "model.gguf"), checkpoint_dir=str(tmp_path), steps=steps)
    need = preflight.BESIDE_MODELS + 40 * sum(weight.numel() for weight in backbone.parameters())
    free(need)
    preflight.preflight(settings, tmp_path / "run")
    free(need - 1)
    with pytest.raises(UserError, match="free, and the run needs about"):
        preflight.preflight(settings, tmp_path / "run")


def test_a_full_disk_stops_neither_a_dry_run_nor_a_finished_runs_table(tmp_path, free, monkeypatch):
    free(0)
    settings = load_arguments([f"--checkpoint_dir={tmp_path}"]).settings
    assert run_or_refuse(monkeypatch, settings, dry_run=True) == "a dry run"
    assert "0 MiB free" in run_or_refuse(monkeypatch, settings)
    path = tmp_path / f"PruneRec-ml-100k-{identity_of(settings)[:8]}"
    path.mkdir()
    (path / "results.json").touch()
    monkeypatch.setattr(RunFolder, "check", lambda folder: None)
    monkeypatch.setattr(quick_start, "read_json", lambda *argv: "results")
    monkeypatch.setattr(quick_start, "to_screen", lambda results: f"the table of {results}")
    assert run_or_refuse(monkeypatch, settings).startswith("the table of results")
    assert "0 MiB free" in run_or_refuse(monkeypatch, settings, fresh=True)
