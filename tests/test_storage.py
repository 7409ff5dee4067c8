import hashlib
import json
import os

import pytest
from pydantic import BaseModel

from recbole_prunerec import storage
from recbole_prunerec.errors import UserError
from recbole_prunerec.storage import file_hash, hash_of, read_json, write_bytes, write_json, write_text, writing


class State(BaseModel):
    step: int
    name: str


def test_write_creates_parents_and_leaves_nothing_else(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "Amélie\r\n\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "Amélie\r\n\n".encode()
    assert os.listdir(tmp_path / "a") == ["b.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch, call):
    write_bytes(tmp_path / "x", b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, call, fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(tmp_path / "x", b"new content")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_what_is_written_bit_by_bit_appears_at_once_or_never(tmp_path):
    path = tmp_path / "new" / "x"
    with writing(path) as file:
        file.write(b"one, ")
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"one, two"
    with pytest.raises(KeyboardInterrupt), writing(path) as file:
        file.write(b"three")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"one, two" and os.listdir(tmp_path / "new") == ["x"]


def test_unserialisable_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_json_round_trip_and_refusals_name_the_file(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, State(step=2, name="Amélie"))
    assert read_json(path, State) == State(step=2, name="Amélie")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"state\.json is damaged.*State"):
        read_json(path, State)
    path.write_text('{"step": "two", "name": "x"}')
    with pytest.raises(UserError, match=r"state\.json is damaged[\s\S]*step"):
        read_json(path, State)
    with pytest.raises(UserError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json", State)


def test_hashes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert file_hash(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    assert hash_of({"b": [1, None], "a": "x"}) == hashlib.sha256(b'{"a":"x","b":[1,null]}').hexdigest()
    assert hash_of({"a": "x", "b": [1, None]}) == hash_of({"b": [1, None], "a": "x"}) != hash_of({"b": [None, 1], "a": "x"})
    assert hash_of(State(step=1, name="x")) == hash_of({"name": "x", "step": 1})
