"""A file from a server that behaves, cuts, changes its mind, or is not there: what comes is the file to the byte, or a reason."""

import random
import socket

import pytest
from web import serving

from recbole_prunerec.data import web
from recbole_prunerec.data.web import Remote, Unreachable, fetch, remote_file

CONTENT = random.Random(0).randbytes(3 * 2**20 + 17)


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(CONTENT) as server:
        yield server


def fetched(served, part, **changes) -> bytes:
    fetch(remote_file(served.url)._replace(**changes), part, False)
    return part.read_bytes()


@pytest.mark.parametrize("headers", [{"ETag": '"1"'}, {"Last-Modified": "Sat, 01 Sep 2018 00:00:00 GMT"}, {}])
@pytest.mark.parametrize("there", [0, 1, 2**20, len(CONTENT) - 1, len(CONTENT)])
def test_what_is_there_is_not_asked_for_again(served, tmp_path, there, headers):
    served.headers = headers
    (tmp_path / "part").write_bytes(CONTENT[:there])
    assert remote_file(served.url) == Remote(served.url, len(CONTENT), *headers.values() or [""])
    assert fetched(served, tmp_path / "part") == CONTENT
    assert served.sent == len(CONTENT) - there


def test_a_connection_that_breaks_is_gone_on_with(served, tmp_path):
    served.cuts = [1_000_000, 0]
    assert fetched(served, tmp_path / "part") == CONTENT
    assert served.ranges_asked == [None, "bytes=1000000-", "bytes=1000000-"] and served.sent == len(CONTENT)


def test_connections_that_break_too_often_leave_what_has_come(served, tmp_path):
    served.cuts = [1000] * web.CONNECTIONS
    with pytest.raises(Unreachable, match=f"^the connection ended after 3,000 of {len(CONTENT):,} bytes$"):
        fetched(served, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT[:3000]
    assert fetched(served, tmp_path / "part") == CONTENT and served.sent == len(CONTENT)


def test_a_server_that_cannot_begin_in_the_middle_is_asked_for_the_whole(served, tmp_path):
    served.ranges, served.cuts = False, [1_000_000]
    assert fetched(served, tmp_path / "part") == CONTENT
    assert served.sent == len(CONTENT) + 1_000_000


def test_another_version_is_not_appended_to_the_first(served, tmp_path):
    """Of another tag, of the same length: the server sends the whole, as HTTP demands."""
    (tmp_path / "part").write_bytes(b"x" * 1000)
    assert fetched(served, tmp_path / "part", version='"0"') == CONTENT


@pytest.mark.parametrize("there", [0, 1000])
def test_a_file_that_has_changed_its_length_is_refused(served, tmp_path, there):
    (tmp_path / "part").write_bytes(CONTENT[:there])
    with pytest.raises(Unreachable, match=f"^the server now promises .*{len(CONTENT)} of a file that had {len(CONTENT) + 1:,} bytes$"):
        fetched(served, tmp_path / "part", bytes=len(CONTENT) + 1)
    assert (tmp_path / "part").read_bytes() == CONTENT[:there]


def test_reasons_are_given_in_a_few_words(served):
    served.length = False
    with pytest.raises(Unreachable, match=r"^the server does not say how large the file is$"):
        remote_file(served.url)
    for status, words in ((403, "403 Forbidden"), (404, "404 Not Found"), (500, "500 Internal Server Error")):
        served.status = status
        with pytest.raises(Unreachable, match=f"^the server says {words}$"):
            remote_file(served.url)


def test_no_server_and_a_silent_one_are_told_apart(monkeypatch):
    monkeypatch.setattr(web, "PATIENCE", 0.2)
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x.zip"
        with pytest.raises(Unreachable, match=r"^timed out$"):
            remote_file(address)
    with pytest.raises(Unreachable, match="Connection refused"):
        remote_file(address)


def test_a_bar_counts_bytes_from_where_it_goes_on(served, tmp_path, capsys):
    (tmp_path / "part").write_bytes(CONTENT[: 2**20])
    fetch(remote_file(served.url), tmp_path / "part", True)
    shown = capsys.readouterr().err
    assert "Amazon_Video_Games.zip:  33%" in shown and "1.00M/3.00M" in shown


def test_a_full_disk_is_no_error_of_the_network(served, tmp_path, monkeypatch):
    monkeypatch.setattr(web.os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        fetched(served, tmp_path / "part")
