"""RecBole's datasets by name, from a zip on a server of this process: the folder is whole or absent, and what is in the way is said."""

import os
import shutil
import signal
import sys
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from processes import together
from web import serving

from recbole_prunerec.data import download as module
from recbole_prunerec.data import web
from recbole_prunerec.data.download import download
from recbole_prunerec.distributed import by_first, joined
from recbole_prunerec.errors import UserError
from recbole_prunerec.shipped import recbole_urls

NAME = "amazon-video-games-18"
INTER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + b"".join(b"u%d\ti1\t5.0\t%d\n" % (user, user) for user in range(20000))
ITEM = b"item_id:token\ttitle:token\ni1\tChess\n"
Usage = namedtuple("Usage", ("total", "used", "free"))


def zipped(folder: Path, **members: bytes) -> bytes:
    with zipfile.ZipFile(folder / "z", "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in (members or {"Amazon_Video_Games.inter": INTER, "Amazon_Video_Games.item": ITEM}).items():
            opened.writestr(name, content)
    return (folder / "z").read_bytes()


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A server of the dataset's zip, to which RecBole's address leads."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(zipped(tmp_path)) as server:
        monkeypatch.setattr(module, "recbole_urls", lambda: {NAME: server.url})
        yield server


@pytest.fixture
def root(tmp_path):
    return tmp_path / "a" / "dataset"


def brought(root: Path, yes: bool = False) -> dict[str, bytes]:
    """The dataset's folder, by name; beside it there is nothing but the lock."""
    download(NAME, str(root), yes, False)
    assert {path.name for path in root.iterdir()} - {f"{NAME}.zip"} == {NAME, f".{NAME}.lock"}
    return {path.name: path.read_bytes() for path in (root / NAME).iterdir()}


def refused(root: Path, yes: bool = False) -> str:
    """Why it is refused; the dataset's folder is not there then."""
    with pytest.raises(UserError) as caught:
        download(NAME, str(root), yes, False)
    assert not (root / NAME).exists() and not list(root.glob("*.partial"))
    return str(caught.value)


WHOLE = {f"{NAME}.inter": INTER, f"{NAME}.item": ITEM}


def test_recboles_addresses_are_those_of_zips():
    urls = recbole_urls()
    assert urls[NAME].endswith("/Amazon2018/Amazon_Video_Games.zip") and len(urls) > 150
    assert all(url.startswith("https://") and url.endswith(".zip") for url in urls.values())


def test_a_dataset_comes_once(served, root):
    assert brought(root) == WHOLE and served.sent == len(served.content)
    served.status = 500
    assert brought(root) == WHOLE


def test_an_empty_folder_is_no_hindrance_and_any_other_is(served, root):
    (root / NAME).mkdir(parents=True)
    assert brought(root) == WHOLE
    (root / NAME / f"{NAME}.inter").unlink()
    with pytest.raises(UserError) as caught:
        download(NAME, str(root), False, False)
    assert str(caught.value).endswith(f"; {root / NAME} is in the way; move it elsewhere, and RecBole's dataset of this name is fetched")
    assert [path.name for path in (root / NAME).iterdir()] == [f"{NAME}.item"]


def test_a_cut_download_is_gone_on_with(served, root):
    served.cuts = [5000] + [0] * (web.CONNECTIONS - 1)
    expected = (
        f"dataset={NAME} is not here, and {served.url} cannot be fetched: the connection ended after 5,000 of {len(served.content):,} bytes; "
        f"give the same command again, which goes on where it was cut, or fetch the file elsewhere and put it here as {root}/{NAME}.zip"
    )
    assert refused(root) == expected
    assert brought(root) == WHOLE and served.sent == len(served.content)


def test_another_version_on_the_server_is_fetched_from_the_start(served, root, tmp_path):
    served.cuts = [5000] + [0] * (web.CONNECTIONS - 1)
    refused(root)
    (first,) = root.glob("*.part")
    served.headers = {"ETag": '"2"'}
    served.content = zipped(tmp_path, **{"Amazon_Video_Games.inter": INTER[::-1], "Amazon_Video_Games.item": ITEM})
    assert brought(root) == WHOLE | {f"{NAME}.inter": INTER[::-1]} and not first.exists()


def test_a_killed_download_is_gone_on_with(served, root):
    """Killed while it waits for more: what it has written is not asked for again."""
    served.pause = 40_000
    child = os.fork()
    if not child:
        download(NAME, str(root), False, False)
        os._exit(1)
    while not any(part.stat().st_size >= 40_000 for part in root.glob("*.part")):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    served.pause, served.sent = None, 0
    assert brought(root) == WHOLE and served.sent == len(served.content) - 40_000


def test_a_kill_while_unpacking_leaves_nothing_that_looks_whole(served, root, monkeypatch):
    child = os.fork()
    if not child:
        monkeypatch.setattr(module.os, "replace", lambda *argv: os.kill(os.getpid(), signal.SIGKILL))
        download(NAME, str(root), False, False)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (root / f".{NAME}.partial" / f"{NAME}.inter").exists() and not (root / NAME).exists()
    served.sent = 0
    assert brought(root) == WHOLE and served.sent == 0


@pytest.mark.parametrize("status", [403, 404])
def test_no_network_says_which_file_belongs_where_and_a_zip_put_there_is_taken(served, root, status):
    served.status = status
    assert refused(root).endswith(f" or fetch the file elsewhere and put it here as {root}/{NAME}.zip")
    (root / f"{NAME}.zip").write_bytes(served.content)
    assert brought(root) == WHOLE and (root / f"{NAME}.zip").read_bytes() == served.content


def test_what_is_no_dataset_is_removed_and_fetched_anew(served, root, tmp_path):
    right, served.content = served.content, b"<html>please log in</html>"
    advice = f"put another zip here as {root}/{NAME}.zip, or have it fetched anew"
    assert refused(root) == f"{served.url}, as it was fetched, is no zip, or is damaged (File is not a zip file); {advice}"
    served.content = zipped(tmp_path, **{"../up.inter": INTER, "x.csv": b""})
    assert refused(root).splitlines() == [f"{served.url}, as it was fetched, holds '../up.inter', a path that leads out of it; {advice}"]
    served.content = right
    assert brought(root) == WHOLE


def test_a_users_own_zip_that_is_no_dataset_stays(served, root):
    root.mkdir(parents=True)
    given = root / f"{NAME}.zip"
    given.write_bytes(b"no zip")
    assert (
        refused(root) == f"{given} is no zip, or is damaged (File is not a zip file); put another zip in its place, or remove it and have it fetched"
    )
    assert given.read_bytes() == b"no zip" and served.sent == 0


def test_room_is_needed_for_the_zip_and_what_it_unpacks_to(served, root, monkeypatch):
    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**60, 0, count))

    size = len(served.content)
    free(size * (1 + module.UNPACKED) - 1)
    assert refused(root).startswith(f"data_path={root} has ") and served.sent == 0
    free(max(size * (1 + module.UNPACKED), len(INTER + ITEM) - 1))
    assert f"data_path={root} has 0 MiB free, and the run needs about" in refused(root) and served.sent == size
    free(len(INTER + ITEM) + size)
    assert brought(root) == WHOLE and served.sent == size


def test_a_large_download_needs_a_yes(served, root, monkeypatch, capsys):
    monkeypatch.setattr(module, "LARGE", len(served.content) - 1)
    question = f"dataset={NAME} is not here, and 0 MiB would be fetched from {served.url}"
    assert refused(root) == f"{question}; say --yes to that, or put the file here as {root}/{NAME}.zip"

    def answers(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True, "readline": lambda self: text})())

    for text in ("\n", "n\n", "", "yess\n"):
        answers(text)
        assert refused(root) == f"{question}, which was not wanted; say yes, or put the file here as {root}/{NAME}.zip"
        assert capsys.readouterr().err == f"{question}. Fetch it? [y/N] "
    assert served.sent == 0
    answers("Y\n")
    assert brought(root) == WHOLE


def test_yes_asks_nothing(served, root, monkeypatch):
    monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(sys, "stdin", None)
    assert brought(root, yes=True) == WHOLE


def test_only_what_is_missing_counts_as_large(served, root, monkeypatch):
    served.cuts = [5000] + [0] * (web.CONNECTIONS - 1)
    refused(root)
    monkeypatch.setattr(module, "LARGE", len(served.content) - 5000)
    assert brought(root) == WHOLE


def test_of_two_commands_at_once_one_fetches(served, root):
    root.mkdir(parents=True)
    with module.filelock.FileLock(root / f".{NAME}.lock"):
        assert refused(root) == f"another process is fetching {NAME} into {root}; wait until it has ended"
    assert brought(root) == WHOLE


def test_of_several_processes_the_first_fetches_alone_and_its_mistakes_are_everyones(served, root, tmp_path):
    def work(number: int) -> None:
        with joined(cpu=True):
            by_first(lambda: download(NAME, str(root), False, False))
            (tmp_path / f"{number}").write_bytes((root / NAME / f"{NAME}.inter").read_bytes())

    served.status = 404
    codes = [code for code, _ in together(tmp_path, work, 3)]
    assert codes == [2] * 3
    served.status = None
    assert together(tmp_path, work, 3) == [(0, "")] * 3
    assert len(served.ranges_asked) == 1 and all((tmp_path / f"{number}").read_bytes() == INTER for number in range(3))
