"""A model on the hub, against a hub of the test's own: fetched once, then taken from the cache; and what stands in the way is said soon."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from hf_folder import write_folder
from served_folder import write_served

from recbole_prunerec.backbone.hub import PATIENCE, _check_files
from recbole_prunerec.ranking.recommender import Recommender

COMMIT, OLD = "c" * 40, "0" * 40  # of main, and of the tag v2
ASK = (
    "import sys\nfrom recbole_prunerec.backbone import hub\nfrom recbole_prunerec.errors import UserError\n"
    "hub.PATIENCE = min(hub.PATIENCE, 2)\n"
    "name, key, revision = (*sys.argv[1:], *[None] * 3)[:3]\n"
    "try:\n    print(hub.hub_folder(name, key or 'backbone', revision=revision))\nexcept UserError as error:\n    print(error)\n"
)
RECOMMEND = (
    "import sys\nfrom recbole_prunerec.ranking.recommender import Recommender\n"
    "print(Recommender.from_pretrained(sys.argv[1], revision=sys.argv[2]).recommend([['Heat']], k=3))\n"
)


class Hub(ThreadingHTTPServer):
    """Serves the folders in `models` by name; `gated` ones to nobody. `paths` is what was asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.models, self.gated, self.paths = {}, set(), []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        """Nothing."""

    def answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def do_GET(self):
        path, _, revision = unquote(self.path.split("?")[0]).removeprefix("/api/models").partition("/revision/")
        self.server.paths.append(path)
        name = "/".join(path.split("/")[1:3])
        if name not in self.server.models:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        if revision not in ("", "main", "v2", COMMIT, OLD):
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        if path.endswith("/auth-check"):
            return self.answer(403, b"{}", X_Error_Code="GatedRepo")
        files = {str(file.relative_to(self.server.models[name])): file.read_bytes() for file in self.server.models[name].rglob("*") if file.is_file()}
        etags = {file: hashlib.sha1(content).hexdigest() for file, content in files.items()}
        if "/resolve/" in path:
            commit, _, file = path.partition("/resolve/")[2].partition("/")
            return self.answer(200, files[file], ETag=f'"{etags[file]}"', X_Repo_Commit=commit)
        if "/tree/" in path:
            tree = [{"type": "file", "path": file, "size": len(content), "oid": etags[file]} for file, content in files.items()]
            return self.answer(200, json.dumps(tree).encode())
        siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
        info = {
            "id": name,
            "sha": OLD if revision in ("v2", OLD) else COMMIT,
            "gated": "manual" if name in self.server.gated else False,
            "siblings": siblings,
        }
        return self.answer(200, json.dumps(info).encode())

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(tmp_path):
    """Asks a hub for a model in a process of its own, since the hub client reads its environment once. Gives its answer and the seconds it took."""

    def asking(url: str, *argv: str, code: str = ASK, **environment: str) -> tuple[str, float]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = {**kept, "HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), time.monotonic() - started

    return asking


def closed_port() -> str:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"


def test_a_model_is_fetched_without_what_could_run_and_then_the_hub_is_left_alone(tmp_path, hub, ask):
    hub.models["some/model"] = source = write_folder(tmp_path / "source")
    for name in ("pytorch_model.bin", "modeling.py", "onnx/config.json", "README.md"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    folder, _ = ask(hub.url, "some/model")
    assert folder == str(tmp_path / "cache" / "hub" / "models--some--model" / "snapshots" / COMMIT)
    fetched = {file.name: file.read_bytes() for file in (tmp_path / "cache" / "hub" / "models--some--model" / "snapshots" / COMMIT).iterdir()}
    assert fetched == {name: (source / name).read_bytes() for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md")}
    asked = len(hub.paths)
    assert ask(hub.url, "some/model")[0] == ask(closed_port(), "some/model")[0] == ask(hub.url, "some/model", HF_HUB_OFFLINE="1")[0] == folder
    assert len(hub.paths) == asked


def test_a_revision_is_a_model_of_its_own_and_is_fetched_once(tmp_path, hub, ask):
    hub.models["some/model"] = write_folder(tmp_path / "source")
    place = tmp_path / "cache" / "hub" / "models--some--model" / "snapshots"
    assert ask(hub.url, "some/model")[0] == str(place / COMMIT)
    for revision in ("v2", OLD):
        assert ask(hub.url, "some/model", "backbone", revision)[0] == str(place / OLD)
        assert ask(closed_port(), "some/model", "backbone", revision)[0] == str(place / OLD)
    assert ask(hub.url, "some/model")[0] == str(place / COMMIT)
    answer, _ = ask(hub.url, "some/model", "backbone", "v3")
    listed = f"choose a branch, a tag or a commit of the model, listed at {hub.url}/some/model/tree/main"
    assert answer == f"backbone=some/model at revision=v3 is not on {hub.url}; {listed}"


def test_a_steps_folder_recommends_from_the_hub_at_a_revision(tmp_path, hub, ask):
    hub.models["me/films"] = write_served(tmp_path / "step")
    expected = str(Recommender.from_pretrained(tmp_path / "step").recommend([["Heat"]], k=3))
    answer, _ = ask(hub.url, "me/films", "v2", code=RECOMMEND)
    assert answer == expected
    place = tmp_path / "cache" / "hub" / "models--me--films" / "snapshots"
    assert [folder.name for folder in place.iterdir()] == [OLD]
    assert {file.name for file in (place / OLD).iterdir()} == {file.name for file in (tmp_path / "step").iterdir()}
    assert ask(closed_port(), "me/films", "v2", code=RECOMMEND)[0] == expected


def test_a_second_copy_of_all_weights_is_not_fetched_and_is_no_model_alone(tmp_path, hub, ask):
    hub.models["some/model"] = source = write_folder(tmp_path / "source")
    for name in ("consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "consolidated.safetensors.index.json"):
        (source / name).write_bytes((source / "model.safetensors").read_bytes())
    folder, _ = ask(hub.url, "some/model")
    assert {file.name for file in Path(folder).iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert not [path for path in hub.paths if "/resolve/" in path and "consolidated" in path]
    hub.models["other/model"] = source
    (source / "model.safetensors").unlink()
    assert ask(hub.url, "other/model")[0] == "backbone=other/model has no weights as safetensors; choose a model that has"


def test_room_is_asked_for_without_the_second_copy(tmp_path, monkeypatch):
    wanted = []
    monkeypatch.setattr("recbole_prunerec.backbone.hub.disk_problems", lambda folder, size, key: wanted.append(size) or [])
    _check_files("backbone=some/model", {"config.json": 1, "model.safetensors": 20, "consolidated.safetensors": 300, "onnx/model.safetensors": 4000})
    assert wanted == [21]


def test_what_the_cache_lacks_is_fetched_and_where_it_cannot_be_that_is_said(tmp_path, hub, ask):
    hub.models["some/model"] = write_folder(tmp_path / "source")
    folder, _ = ask(hub.url, "some/model")
    weights = tmp_path / "cache" / "hub" / "models--some--model" / "snapshots" / COMMIT / "model.safetensors"
    weights.unlink()
    assert ask(closed_port(), "some/model")[0] == "backbone=some/model has no weights (model.safetensors)"
    assert ask(hub.url, "some/model")[0] == folder and weights.is_file()


def test_what_is_fetched_is_judged_as_a_folder_is(tmp_path, hub, ask):
    hub.models["some/model"] = write_folder(tmp_path / "source", model_type="gpt2")
    answer, _ = ask(hub.url, "some/model", "teacher")
    assert answer.startswith("teacher=some/model is of the family gpt2, which is not supported")


def test_a_hub_that_refuses_is_answered_at_once(ask):
    url = closed_port()
    answer, seconds = ask(url, "some/model")
    assert answer.startswith(f"backbone=some/model is not in the local cache, and cannot be fetched from {url} (") and "refused" in answer
    assert answer.endswith("); look at the network, or give a folder") and seconds < 5


def test_a_hub_that_never_answers_is_given_up(ask):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        answer, seconds = ask(f"http://127.0.0.1:{silent.getsockname()[1]}", "some/model", "teacher")
    assert answer.startswith("teacher=some/model is not in the local cache, and cannot be fetched from http://127.0.0.1:")
    assert seconds < 12 and PATIENCE <= 20  # together under half a minute


def test_an_answer_that_is_none_of_the_hubs_is_no_crash(hub, ask, monkeypatch):
    monkeypatch.setattr(Answers, "do_GET", lambda self: self.answer(200, b"<html>Please log in to this network</html>"))
    answer, _ = ask(hub.url, "some/model")
    assert answer.startswith(f"backbone=some/model is not in the local cache, and cannot be fetched from {hub.url} (")


def test_offline_the_hub_is_not_asked(tmp_path, hub, ask):
    hub.models["some/model"] = write_folder(tmp_path / "source")
    answer, _ = ask(hub.url, "some/model", HF_HUB_OFFLINE="1")
    cache = tmp_path / "cache" / "hub"
    assert answer == f"backbone=some/model is not in {cache}, and HF_HUB_OFFLINE forbids to fetch it; unset that, or give a folder"
    assert hub.paths == []


def test_a_gated_model_a_missing_one_and_one_without_safetensors_say_so(tmp_path, hub, ask):
    hub.models["a/gated"] = write_folder(tmp_path / "source")
    hub.gated.add("a/gated")
    answer, _ = ask(hub.url, "a/gated")
    assert answer == f"backbone=a/gated is gated: accept its terms at {hub.url}/a/gated, then log in with: hf auth login (or set HF_TOKEN)"
    answer, _ = ask(hub.url, "a/missing")
    expected = "nor a folder here; look at the spelling, or, where it is private, log in with: hf auth login"
    assert answer == f"backbone=a/missing is not on {hub.url}, {expected}"
    hub.models["a/pickle"] = source = write_folder(tmp_path / "pickle")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    answer, _ = ask(hub.url, "a/pickle")
    expected = "has no weights as safetensors but as a pickle (pytorch_model.bin), which can run code when it is read; choose a model that has"
    assert answer == f"backbone=a/pickle {expected}"
    assert not (tmp_path / "cache" / "hub" / "models--a--pickle").exists()
