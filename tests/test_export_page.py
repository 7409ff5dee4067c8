"""docs/export.md: every block of code is run, in order, beside a run's folder; the hub is a folder of the test's own."""

import inspect
import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from served_folder import TOKENIZER, write_served

from recbole_prunerec.__main__ import main
from recbole_prunerec.export.limits import ARCHITECTURES
from recbole_prunerec.ranking.recommender import Recommender, load_prompts

PAGE = (Path(__file__).parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMIT = "c" * 40


def hub_in(cache: Path, monkeypatch) -> list[tuple[str, dict]]:
    """Uploads go into the cache that downloads are taken from. Returns what was called, by names that the true API has."""
    calls = []

    def stand_in(name: str, does) -> None:
        signature = inspect.signature(getattr(HfApi, name))

        def called(self, *args, **keywords):
            calls.append((name, dict(signature.bind(self, *args, **keywords).arguments)))
            does(**keywords)

        monkeypatch.setattr(HfApi, name, called)

    def upload(repo_id: str, folder_path: str) -> None:
        place = cache / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder_path, place / "snapshots" / COMMIT)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(COMMIT)

    stand_in("create_repo", lambda **_: None)
    stand_in("upload_folder", upload)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return calls


def test_every_block_works(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gguf")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    calls = hub_in(tmp_path / "cache", monkeypatch)
    write_served(Path("saved/latest/4-depth"))
    names, printed = {}, []
    for kind, block in BLOCKS:
        if kind == "python":
            exec(block, names)
        else:
            assert kind == "sh"
            for line in map(shlex.split, block.splitlines()):
                main(line[3:])
                printed.append(capsys.readouterr().out)
    assert [name for name, _ in calls] == ["create_repo", "upload_folder"] and calls[0][1]["private"] is True
    local = Recommender.from_pretrained("saved/latest/4-depth")
    assert names["items"] == local.recommend([["Twister", "Titanic"]], k=10)[0] and len(names["items"]) == 10
    assert [line.split(":")[0] for line in printed] == ["4-depth.gguf", "films-onnx"]
    prompts, _ = load_prompts(Path("saved/latest/4-depth"), TOKENIZER)
    prompt = prompts.prompt_of(["Twister", "Titanic"]).tolist()
    assert names["ids"][: names["start"]] == prompt and len(names["ids"]) == len(prompt) + 32
    expected = local.model.generate(local.model.dummy_inputs["input_ids"].new_tensor([prompt]), max_new_tokens=32, eos_token_id=[])
    assert names["ids"] == expected[0].tolist()
    assert names["title"] == TOKENIZER.decode(names["ids"][len(prompt) :]).partition('"')[0]


def test_every_family_and_file_is_named():
    assert all(f"| `{family}` |" in PAGE for family in ARCHITECTURES)
    assert all(f"`{file}`" in PAGE for file in ("model.onnx", "model.onnx.data", "config.json", "export.json"))
