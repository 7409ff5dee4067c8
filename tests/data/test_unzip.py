"""What is taken out of a zip: the dataset's files to the byte, under its name; from any other zip nothing."""

import io
import random
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from recbole_prunerec.data.unzip import Unusable, unzip, wanted_files

INTER, ITEM = b"user_id:token\titem_id:token\n" + b"u1\ti1\n" * 5000, b"item_id:token\ttitle:token\ni1\tFilm\n"


def archive(folder: Path, members: dict[str, bytes], **how) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", **{"compression": zipfile.ZIP_DEFLATED, **how}) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return folder / "a.zip"


def taken(path: Path, stem: str = "Amazon_Games", name: str = "games-18") -> dict[str, bytes]:
    """What comes into the folder, by name."""
    folder = path.parent / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    unzip(path, wanted_files(path, stem, name), folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refused(path: Path) -> list[str]:
    with pytest.raises(Unusable) as caught:
        taken(path)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("names", [("Amazon_Games", ""), ("Amazon_Games", "a/b/"), ("other", ""), ("a.b", "x/")])
def test_the_two_files_get_the_datasets_name(tmp_path, names, compression):
    stem, folder = names
    members = {f"{folder}{stem}.inter": INTER, f"{folder}{stem}.item": ITEM, "README.md": b"read", f"__MACOSX/._{stem}.inter": b"no"}
    assert taken(archive(tmp_path, members, compression=compression)) == {"games-18.inter": INTER, "games-18.item": ITEM}


def test_interactions_may_be_alone_or_in_parts(tmp_path):
    assert taken(archive(tmp_path, {"Amazon_Games.inter": INTER, "Amazon_Games.user": b""})) == {"games-18.inter": INTER}
    parts = {f"Amazon_Games.{part}.inter": part.encode() for part in ("train", "valid", "test")}
    found = taken(archive(tmp_path, {**parts, "Amazon_Games_Old.train.inter": b"", "Amazon_Games.item": ITEM}))
    assert found == {f"games-18.{part}.inter": part.encode() for part in ("train", "valid", "test")} | {"games-18.item": ITEM}


@pytest.mark.parametrize(
    "path", ["../Amazon_Games.inter", "/etc/Amazon_Games.inter", "a/../../Amazon_Games.inter", "..\\Amazon_Games.inter", "C:\\x"]
)
def test_a_path_that_leads_out_makes_the_zip_worthless(tmp_path, path):
    members = {path: b"bad", "x/Amazon_Games.inter" if path == "C:\\x" else "other.txt": INTER}
    assert refused(archive(tmp_path, members))[0] == f"holds {path!r}, a path that leads out of it"
    assert list((tmp_path / "out").iterdir()) == [] and not (tmp_path / "Amazon_Games.inter").exists()


def test_a_link_makes_the_zip_worthless(tmp_path):
    path = archive(tmp_path, {"Amazon_Games.inter": INTER})
    link = zipfile.ZipInfo("Amazon_Games.item")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr(link, "/etc/passwd")
    assert refused(path) == ["holds 'Amazon_Games.item', a link"] and list((tmp_path / "out").iterdir()) == []


def test_what_is_no_dataset_says_what_it_is(tmp_path):
    assert refused(archive(tmp_path, {})) == ["has no Amazon_Games.inter; it has nothing"]
    assert refused(archive(tmp_path, {"x.csv": b"", "Amazon_Games.item": ITEM})) == ["has no Amazon_Games.inter; it has x.csv, Amazon_Games.item"]
    assert refused(archive(tmp_path, {"x.inter": b"", "y.inter": b""})) == ["has no Amazon_Games.inter; it has x.inter, y.inter"]
    both = {"a/Amazon_Games.item": ITEM, "b/Amazon_Games.item": ITEM, "../x": b"", "Amazon_Games.inter": INTER}
    assert refused(archive(tmp_path, both)) == ["holds '../x', a path that leads out of it", "holds Amazon_Games.item twice"]
    (tmp_path / "a.zip").write_bytes(b"<html>not found</html>")
    assert refused(tmp_path / "a.zip") == ["is no zip, or is damaged (File is not a zip file)"]


def test_no_more_is_written_than_the_zip_declares(tmp_path):
    """A bomb that declares a byte: what is read of it ends there, and its checksum is wrong."""
    path = archive(tmp_path, {"Amazon_Games.inter": b"0" * 10**6})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24  # the size in the directory
    content[place : place + 4] = (1).to_bytes(4, "little")
    path.write_bytes(content)
    (problem,) = refused(path)
    assert problem.startswith("is damaged: 'Amazon_Games.inter' cannot be taken out (Bad CRC-32")
    assert (tmp_path / "out" / "games-18.inter").stat().st_size <= 1


def test_a_password_is_a_reason(tmp_path):
    path = archive(tmp_path, {"Amazon_Games.inter": INTER})
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    (problem,) = refused(path)
    assert "password required" in problem


def test_damage_anywhere_gives_the_same_files_or_a_reason(tmp_path):
    """Every byte of a small zip in turn is changed, or is the last: no other exception, and no other content."""
    whole = archive(tmp_path, {"Amazon_Games.inter": INTER[:90], "Amazon_Games.item": ITEM}).read_bytes()
    draw, right, wrong = random.Random(0), 0, 0
    for place in range(len(whole)):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :]):
            folder = tmp_path / str(place)
            folder.mkdir(exist_ok=True)
            (folder / "a.zip").write_bytes(damaged)
            try:
                found = taken(folder / "a.zip")
            except Unusable:
                wrong += 1
            else:
                right += 1
                assert found.pop("games-18.inter") == INTER[:90] and set(found.values()) <= {ITEM}
    assert wrong > right > 0


def test_a_zip_within_another_is_not_opened(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as opened:
        opened.writestr("Amazon_Games.inter", INTER)
    assert refused(archive(tmp_path, {"Amazon_Games.zip": inner.getvalue()})) == ["has no Amazon_Games.inter; it has Amazon_Games.zip"]
