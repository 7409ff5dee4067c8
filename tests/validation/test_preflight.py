"""What torch and the data tell before a run starts: the device, made the only one that the process sees, and a catalogue that is large enough."""

import os
from functools import partial

import pytest
import torch
from hf_folder import write_folder

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError, problems_of
from recbole_prunerec.loading import check_catalogue
from recbole_prunerec.settings import Depth, Finetune, Ranking, Settings, Width
from recbole_prunerec.validation import preflight

VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch see so many GPUs, and the process start with so many visible."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    preflight.use_device.cache_clear()

    def pretend(count: int, at_first: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(preflight, "VISIBLE_AT_FIRST", at_first)
        monkeypatch.setenv(VISIBLE, "what an earlier run has left")

    yield pretend
    preflight.use_device.cache_clear()


@pytest.mark.parametrize(
    ("count", "at_first", "device", "visible"),
    [
        (0, None, "auto", None),
        (0, "", "auto", ""),
        (0, None, "cpu", ""),
        (2, None, "cpu", ""),
        (2, None, "auto", "0"),
        (2, None, "cuda", "0"),
        (2, None, "cuda:1", "1"),
        (2, "4,7", "auto", "4"),
        (2, "4, 7", "cuda:1", "7"),
        (1, "MIG-1-2", "cuda:0", "MIG-1-2"),
    ],
)
def test_one_device_stays_visible(gpus, count, at_first, device, visible):
    gpus(count, at_first)
    preflight.use_device(device)
    assert os.environ.get(VISIBLE) == visible


@pytest.mark.parametrize(
    ("count", "device", "expected"),
    [
        (0, "cuda", "device=cuda: there is no GPU, "),
        (0, "cuda:1", "device=cuda:1: there is no GPU, "),
        (1, "cuda:1", "device=cuda:1: there is one GPU; choose device=cuda:0"),
        (2, "cuda:2", "device=cuda:2: there are 2 GPUs; choose device=cuda:0 to cuda:1"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(gpus, count, device, expected):
    gpus(count)
    with pytest.raises(UserError) as caught:
        preflight.use_device(device)
    assert str(caught.value).startswith(expected) and os.environ.get(VISIBLE) is None


@pytest.mark.parametrize(
    ("cuda", "reason"), [(None, f"torch {torch.__version__} is built without CUDA"), ("12.8", "none is visible (CUDA_VISIBLE_DEVICES, nvidia-smi)")]
)
def test_why_there_is_no_gpu_is_said(gpus, monkeypatch, cuda, reason):
    gpus(0)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(UserError) as caught:
        preflight.use_device("cuda")
    assert str(caught.value) == f"device=cuda: there is no GPU, {reason}; choose device=cpu, or leave it out"


@pytest.mark.parametrize(("device", "there", "taken"), [("auto", True, [1]), ("cuda", True, [1]), ("auto", False, []), ("cpu", True, [])])
def test_each_launched_process_takes_its_own_gpu_and_sees_all(gpus, monkeypatch, device, there, taken):
    gpus(2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    set_to = []
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)
    preflight.use_device(device)
    assert set_to == taken and os.environ[VISIBLE] == "what an earlier run has left"


@pytest.mark.parametrize(
    ("count", "device", "expected"),
    [
        (2, "cuda:1", "device=cuda:1 is one GPU for every process; choose device=cuda, and tell the launcher which are visible"),
        (1, "cuda", "device=cuda: 2 processes on a machine with one GPU; start one a GPU, or choose device=cpu"),
        (0, "cuda", "device=cuda: 2 processes on a machine with no GPU; start one a GPU, or choose device=cpu"),
    ],
)
def test_launched_processes_need_a_gpu_each(gpus, monkeypatch, count, device, expected):
    gpus(count)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError) as caught:
        preflight.use_device(device)
    assert str(caught.value).startswith(expected)


def test_all_that_stands_against_a_run_comes_at_once_and_the_hubs_model_is_judged(gpus, tmp_path, monkeypatch):
    gpus(0)
    asked, run = [], tmp_path / "saved" / "run"
    monkeypatch.setattr(preflight, "hub_folder", lambda *argv, **more: asked.append((*argv, *more.values())) or write_folder(tmp_path / "model"))
    monkeypatch.setattr(preflight, "BESIDE_MODELS", 2**60)
    steps = (Finetune(do="finetune"), Width(do="width", heads=9, hidden=24))
    settings = partial(Settings, backbone="some/model", revision="v2", checkpoint_dir=str(tmp_path / "saved"), steps=steps)
    with pytest.raises(UserError) as caught:
        preflight.preflight(settings(device="cuda"), run)
    device, shape, room = str(caught.value).splitlines()
    assert device.startswith("device=cuda: there is no GPU") and shape == "steps.2.heads=9 is more than the model's 6"
    assert room.startswith(f"checkpoint_dir={tmp_path / 'saved'} has ") and "free, and the run needs about 1073741824.0 GiB" in room
    assert asked == [("some/model", "backbone", "v2")]
    monkeypatch.setattr(preflight, "BESIDE_MODELS", 0)
    preflight.preflight(settings(model=("SASRec",)), run)
    preflight.preflight(Settings(backbone="tiny"), run)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"topk": (5, 21), "beams": 21}, ["topk=21", "ranking.beams=21"]),
        ({"beams": 21}, ["ranking.beams=21"]),
        ({"topk": (21,), "model": ("SASRec",)}, ["topk=21"]),
        ({"beams": 21, "model": ("SASRec",)}, []),
    ],
)
def test_no_more_items_can_be_asked_for_than_there_are(settings, expected):
    settings = Settings(**{**{key: value for key, value in settings.items() if key != "beams"}, "ranking": Ranking(beams=settings.get("beams", 20))})
    found = []
    try:
        check_catalogue(settings, 20)
    except UserError as error:
        found = str(error).splitlines()
    assert found == [f"{start} is more than the 20 items that dataset=ml-100k has after filtering; choose at most 20" for start in expected]
    check_catalogue(settings, 21)


def test_grounding_needs_no_beams():
    check_catalogue(Settings(topk=(5,), ranking=Ranking(search="grounding")), 19)


@pytest.mark.parametrize(
    ("available", "attention", "refused"), [(False, "sdpa", False), (False, "flash_attention_2", True), (True, "flash_attention_2", False)]
)
def test_flash_attention_is_refused_where_it_cannot_run(monkeypatch, available, attention, refused):
    monkeypatch.setattr(preflight, "is_flash_attn_2_available", lambda: available)
    found = problems_of(lambda: preflight.check_attention(Settings(attn_implementation=attention)))
    expected = "attn_implementation=flash_attention_2 needs a GPU and the package flash_attn, of which one is not there; choose sdpa"
    assert found == ([expected] if refused else [])


def test_steps_that_do_not_fit_name_the_preset_that_they_come_from(gpus, tmp_path, monkeypatch):
    gpus(0)
    monkeypatch.setattr(preflight, "hub_folder", lambda *argv, **more: write_folder(tmp_path / "model"))
    steps = load_arguments(["--preset=paper"]).settings.steps
    settings = Settings(backbone="some/model", preset="paper", checkpoint_dir=str(tmp_path / "saved"), steps=steps)
    found = problems_of(lambda: preflight.preflight(settings, tmp_path / "saved" / "run"))
    assert found[0] == "steps.2.heads=7 is more than the model's 6" and "steps.4.layers=8 is more than the model's 3" in found
    assert found[-1] == (
        "preset=paper was made for Qwen/Qwen2-0.5B; steps that fit this backbone come from: python -m recbole_prunerec plan --backbone=some/model"
    )
    own = settings.model_copy(update={"steps": (*steps[:-1], Depth(do="depth", layers=9))})
    found = problems_of(lambda: preflight.preflight(own, tmp_path / "saved" / "run"))
    assert found[-1] == "steps.4.layers=9 is more than the model's 3"
