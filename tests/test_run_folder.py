import os
import subprocess
import sys

import pytest

from recbole_prunerec import run_folder
from recbole_prunerec.errors import UserError
from recbole_prunerec.run_folder import RunFolder, point_latest


def test_step_folder_gets_its_name_only_when_whole(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "run" / ".2-width.partial").mkdir()
    (tmp_path / "run" / ".2-width.partial" / "leftover").write_text("x")
    with folder.writing(2, "width") as partial:
        assert partial == tmp_path / "run" / ".2-width.partial" and os.listdir(partial) == []
        (partial / "sub").mkdir()
        (partial / "sub" / "weights").write_text("one")
        assert not folder.is_complete(2, "width")
    assert folder.is_complete(2, "width")
    assert sorted(os.listdir(tmp_path / "run")) == ["2-width", "manifest.json"]
    assert (folder.step_path(2, "width") / "sub" / "weights").read_text() == "one"


def test_exception_while_writing_leaves_the_final_folder_untouched(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(KeyError), folder.writing(1, "finetune"):
        raise KeyError
    assert not folder.is_complete(1, "finetune")
    with folder.writing(1, "finetune") as partial:
        (partial / "weights").write_text("one")
    with pytest.raises(KeyError), folder.writing(1, "finetune") as partial:
        (partial / "weights").write_text("two")
        raise KeyError
    assert (folder.step_path(1, "finetune") / "weights").read_text() == "one"
    with folder.writing(1, "finetune") as partial:
        (partial / "weights").write_text("three")
    assert (folder.step_path(1, "finetune") / "weights").read_text() == "three"
    assert sorted(os.listdir(tmp_path)) == ["1-finetune", "manifest.json"]


HOLD = """
import sys
from recbole_prunerec.run_folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_process_is_refused_and_a_killed_one_frees_the_lock(tmp_path):
    folder = RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is running"), folder.lock():
            pytest.fail("two processes hold the lock")
        other.kill()
        other.wait()
        entered = False
        with folder.lock():
            entered = True
            second = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True)
        assert entered
    assert second.returncode != 0 and "held" not in second.stdout and "UserError: another process is running" in second.stderr


def test_lock_is_freed_when_the_block_raises(tmp_path):
    with pytest.raises(KeyError), RunFolder(tmp_path).lock():
        raise KeyError
    with RunFolder(tmp_path).lock():
        pass


def test_latest_points_relatively_to_the_newest(tmp_path):
    for name in ("one", "two"):
        RunFolder(tmp_path / name)
        point_latest(tmp_path, tmp_path / name)
        assert os.readlink(tmp_path / "latest") == name
    assert sorted(os.listdir(tmp_path)) == ["latest", "one", "two"]


def test_latest_is_a_text_file_where_links_are_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no privilege")

    monkeypatch.setattr(run_folder.os, "symlink", refuse)
    point_latest(tmp_path, RunFolder(tmp_path / "one").path)
    assert (tmp_path / "latest").read_text() == "one\n"
