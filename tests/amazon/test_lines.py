"""Files in blocks of lines, whatever a block's size, and files that cannot be read."""

import gzip
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_prunerec.amazon import lines
from recbole_prunerec.amazon.lines import blocks, blocks_ahead
from recbole_prunerec.errors import UserError

LINE = st.sampled_from([b"a", b"", b"  ", b"two words", b"\xc3\xa9", b"\xff", b"x" * 11, b"\xef\xbb\xbfb"])


@given(st.lists(LINE, min_size=1, max_size=12), st.integers(12, 40), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans())
def test_blocks_are_the_files_lines(tmp_path_factory, content, size, end, zipped, last):
    path = tmp_path_factory.mktemp("lines") / ("x.gz" if zipped else "x")
    data = end.join(content) + (end if last else b"")
    if not data:
        return
    path.write_bytes(gzip.compress(data) if zipped else data)
    expected = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            expected[number] = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            expected[number] = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK", size)
        told = []
        for read in (blocks, blocks_ahead):
            found = list(read(path, told.append))
            texts = {int(number): text for block in found for number, text in zip(block.numbers, block.texts, strict=True)}
            assert texts == {number: line for number, line in expected.items() if line and line.strip()}
            assert [number for block in found for number in block.undecoded] == [number for number, line in expected.items() if line is None]
        assert sum(told) == 2 * path.stat().st_size


def refused(path):
    with pytest.raises(UserError) as caught:
        list(blocks(path))
    return str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.json.gz"
    assert refused(path) == f"{path} does not exist; expected a file of lines, plain or .gz"
    assert refused(tmp_path) == f"{tmp_path} is a folder; expected a file of lines, plain or .gz"
    path.write_bytes(b"")
    assert refused(path) == f"{path} is empty; expected a line for each record"
    path.write_bytes(b"<!DOCTYPE html>")
    assert refused(path).startswith(f"{path} is not gzip, though it is called so: it begins with '<!DOCTYP'; fetch it again")
    path.write_bytes(b"PK\x03\x04rest")
    assert refused(path) == f"{path} is a zip file; unpack it, or give a .gz file"


def test_a_cut_or_damaged_gzip_is_refused(tmp_path):
    whole = gzip.compress(os.urandom(50_000).hex().encode() + b"\n")
    path = tmp_path / "x.gz"
    for size in (11, 20_000, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert refused(path) == f"{path} is cut: its gzip stream has no end; fetch it again"
    path.write_bytes(whole[:20_000] + bytes(100) + whole[20_100:])
    assert refused(path).startswith(f"{path} is damaged (")


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK", 2**20)
    path = tmp_path / "x"
    path.write_bytes(b"[" * 2**22)
    assert refused(path) == f"{path} has a line that is longer than 1 MiB; expected a record a line"
