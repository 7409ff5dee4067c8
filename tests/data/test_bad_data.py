"""Every mistake in a dataset's files is answered when they are read, with count, line and value; all of them at once."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from recbole_prunerec.config import RunConfig
from recbole_prunerec.data.dataset import NextItemDataset, part_of
from recbole_prunerec.errors import UserError
from recbole_prunerec.model.popularity import Popularity
from recbole_prunerec.settings import Settings

HEADER = "user_id:token\titem_id:token\ttimestamp:float"
ROWS = [[f"u{user}", f"i{(user + place) % 6}", str(1000 + 10 * place + user)] for user in range(8) for place in range(6)]  # line 2 on
ITEMS = ["item_id:token\ttitle:token_seq", *(f"i{item}\tTitle {item}" for item in range(6))]  # i0 in line 2
INTERVALS = ("user_inter_num_interval", "item_inter_num_interval")
FIRST_LINE = r"expected a first line such as 'user_id:token\titem_id:token\ttimestamp:float'"


def inter(*changes: tuple[int, int, str], header: str = HEADER, separator: str = "\t") -> bytes:
    """The file, with the cells `(line, column, text)` changed."""
    rows = [list(row) for row in ROWS]
    for line, column, text in changes:
        rows[line - 2][column] = text
    return "\n".join([header.replace("\t", separator), *map(separator.join, rows), ""]).encode()


def item(**titles: str) -> bytes:
    """The file, with other titles."""
    return "\n".join([ITEMS[0], *(f"{name}\t{titles.get(name, title)}" for name, title in (line.split("\t") for line in ITEMS[1:])), ""]).encode()


def load(folder: Path, files: dict[str, bytes | None], **settings) -> list[NextItemDataset]:
    (folder / "toy").mkdir()
    for name, content in ({"toy.inter": inter(), "toy.item": item()} | files).items():
        if content is not None:
            (folder / "toy" / name).write_bytes(content)
    core = settings.pop("core", "[5,inf)")
    recbole = dict.fromkeys(INTERVALS, core) | settings.pop("recbole", {})
    return NextItemDataset(RunConfig(Settings(recbole=recbole, dataset="toy", data_path=str(folder), **settings), Popularity, folder, folder)).build()


def problems(folder: Path, files: dict[str, bytes | None], **settings) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(folder, files, **settings)
    return str(caught.value).replace(f"{folder}/toy/", "").splitlines()


def tokens(part: NextItemDataset) -> list[tuple[str, list[str], str]]:
    users, items, arrays = part.field2id_token[part.uid_field], part.field2id_token[part.iid_field], part_of(part)
    return [(users[arrays.users[row]], list(items[arrays.history(row)]), items[arrays.targets[row]]) for row in range(len(arrays))]


CASES = [
    # the files themselves
    ({"toy.item": None}, ["toy.item does not exist; expected a first line such as 'item_id:token\\ttitle:token_seq'"]),
    ({"toy.inter": None}, [f"toy.inter does not exist; {FIRST_LINE}"]),
    ({"toy.inter": b""}, [f"toy.inter has an empty first line; {FIRST_LINE}"]),
    ({"toy.inter": b"\n" + inter()}, [f"toy.inter has an empty first line; {FIRST_LINE}"]),
    ({"toy.item": b""}, ["toy.item has an empty first line; expected a first line such as 'item_id:token\\ttitle:token_seq'"]),
    ({"toy.inter": HEADER.encode()}, ["toy.inter has nothing below its first line"]),
    ({"toy.item": ITEMS[0].encode() + b"\n\n"}, ["toy.item has nothing below its first line"]),
    (
        {"toy.item": item(i3="Café").decode().encode("latin-1")},
        [r"toy.item is not text in encoding=utf-8: 1 lines, for example line 5 ('i3\tCaf\\xe9'); save it as UTF-8, or name its encoding"],
    ),
    (
        {"toy.inter": inter((4, 0, "é"), (9, 1, "ü")).decode().encode("cp1252")},
        ["toy.inter is not text in encoding=utf-8: 2 lines, for example line 4"],
    ),
    ({"toy.item": item(i3="x" * 140_000)}, ["toy.item: field larger than field limit (131072), in what begins after line 4; close the quote there"]),
    # the first line
    (
        {"toy.inter": inter(header="user_id\titem_id\ttimestamp")},
        [f"toy.inter: column 'user_id' has no type, 'item_id' has no type, 'timestamp' has no type; {FIRST_LINE}"],
    ),
    ({"toy.inter": inter(header=HEADER.replace("float", "int"))}, [f"toy.inter: column 'timestamp' has the type 'int'; {FIRST_LINE}"]),
    ({"toy.inter": inter(header=HEADER.replace("float", "token"))}, [f"toy.inter: column 'timestamp' has the type 'token'; {FIRST_LINE}"]),
    (
        {"toy.inter": inter(header=HEADER.replace("user_id", "userid"))},
        [f"toy.inter has no column 'user_id'; it has userid, item_id, timestamp; did you mean 'userid'? (the key is USER_ID_FIELD); {FIRST_LINE}"],
    ),
    (
        {"toy.inter": inter(header="a:token\tb:token\tc:float")},
        [
            f"toy.inter has no column '{name}'; it has a, b, c (the key is {key}); {FIRST_LINE}"
            for name, key in (("user_id", "USER_ID_FIELD"), ("item_id", "ITEM_ID_FIELD"), ("timestamp", "TIME_FIELD"))
        ],
    ),
    (
        {"toy.inter": inter().split(b"\n", 1)[1]},
        ["toy.inter has no column 'user_id'; it has u0, i0, 1000 (the key", "no column 'item_id'", "no column 'timestamp'"],
    ),
    (
        {"toy.inter": inter(separator=",")},
        [f"toy.inter has one column only, '{HEADER.replace(chr(9), ',')}', by field_separator='\\t'; is it field_separator=','?; {FIRST_LINE}"],
    ),
    ({"toy.item": b"item_id\ni0\n"}, ["toy.item has one column only, 'item_id', by field_separator='\\t'; expected a first line"]),
    ({"toy.item": b"item_id:token\tname:token\ni0\tx\n"}, ["toy.item has no column 'title'; it has item_id, name (the key is title_field)"]),
    # lines
    (
        {"toy.inter": inter((5, 2, "5\t6"), (7, 1, "i3\tx\ty"))},
        ["toy.inter: 2 lines do not have the 3 columns that the first line names, for example line 5 ('4: u0 i3 5 6'), line 7 ('5: u0 i3 x y 1050')"],
    ),
    (
        {"toy.item": item(i4="A\ttitle")},
        ["toy.item: 1 lines do not have the 2 columns that the first line names, for example line 6 ('3: i4 A title')"],
    ),
    ({"toy.item": item() + b"i9\n"}, ["toy.item: 1 lines do not have the 2 columns that the first line names, for example line 8 ('1: i9')"]),
    ({"toy.inter": inter((5, 0, " "), (6, 0, ""))}, ["toy.inter: 2 lines have no user, for example line 5, 6; fill it in or delete these lines"]),
    ({"toy.inter": inter((5, 1, ""))}, ["toy.inter: 1 lines have no item, for example line 5;"]),
    ({"toy.item": item() + b"\tNo id\n"}, ["toy.item: 1 lines have no item, for example line 8;"]),
    # times
    *(
        ({"toy.inter": inter((5, 2, text))}, [f"toy.inter: 1 times are {kind}, for example line 5 ('{text}'); expected numbers from 0 up"])
        for text, kind in (
            ("nan", "not numbers"),
            ("", "not numbers"),
            ("x", "not numbers"),
            ("2024-05-31", "not numbers"),
            ("1,5", "not numbers"),
            ("inf", "infinite"),
            ("-inf", "infinite"),
            ("1e999", "infinite"),
            ("-1", "negative"),
        )
    ),
    (
        {"toy.inter": inter(*((line, 2, "NULL") for line in range(10, 20)))},
        ["toy.inter: 10 times are not numbers, for example line 10 ('NULL'), line 11 ('NULL'), line 12 ('NULL'), ...; expected"],
    ),
    # titles
    (
        {"toy.item": item().replace(b"\ni", b"\nj")},
        ["toy.inter: none of its 6 items has a title, for example line 2 ('i0'), line 3 ('i1'), line 4 ('i2'), ...; toy.item has line 2 ('j0')"],
    ),
    ({"toy.item": item(**{f"i{number}": " " for number in range(6)})}, ["toy.inter: none of its 6 items has a title"]),
    # several at once
    (
        {"toy.inter": inter((3, 2, "x"), (4, 2, "-7"), (5, 0, ""), (6, 1, "i3\ti4")), "toy.item": b"item_id:token\ttitel:token\ni0\tx\n"},
        [
            "toy.inter: 1 lines do not have the 3 columns that the first line names, for example line 6",
            "toy.inter: 1 lines have no user, for example line 5;",
            "toy.inter: 1 times are not numbers, for example line 3 ('x');",
            "toy.inter: 1 times are negative, for example line 4 ('-7');",
            "toy.item has no column 'title'; it has item_id, titel; did you mean 'titel'?",
        ],
    ),
]


@pytest.mark.parametrize(("files", "expected"), CASES)
def test_a_mistake_in_the_files_is_named(tmp_path, files, expected):
    found = problems(tmp_path, files)
    assert len(found) == len(expected), found
    for got, wanted in zip(found, expected, strict=True):
        assert wanted in got


@pytest.mark.parametrize(
    ("rows", "split", "expected"),
    [
        (1, "global_time", "0 for training, 0 for validation, 0 for testing, and each needs one: split=global_time cuts 8:1:1 and needs 6 samples"),
        (6, "global_time", "4 for training, 0 for validation, 1 for testing"),
        (2, "leave_one_out", "1 for training, 0 for validation, 0 for testing, and each needs one: split=leave_one_out needs a user with 4"),
        (3, "leave_one_out", "1 for training, 0 for validation, 1 for testing"),
    ],
)
def test_a_part_without_samples_is_refused_with_all_sizes(tmp_path, rows, split, expected):
    few = "\n".join([HEADER, *(f"u\ti{row % 6}\t{1000 + row * row}" for row in range(rows))]).encode()
    assert [f"toy gives {expected}" in line for line in problems(tmp_path, {"toy.inter": few}, split=split, core="[0,inf)")] == [True]


@pytest.mark.parametrize(("rows", "split"), [(7, "global_time"), (4, "leave_one_out")])
def test_the_fewest_interactions_that_give_every_part_a_sample(tmp_path, rows, split):
    few = "\n".join([HEADER, *(f"u\ti{row % 6}\t{1000 + row * row}" for row in range(rows))]).encode()
    assert all(len(part) >= 1 for part in load(tmp_path, {"toy.inter": few}, split=split, core="[0,inf)"))


def test_a_core_that_nothing_survives_is_refused_with_counts(tmp_path):
    (line,) = problems(tmp_path, {}, core="[9,inf)")
    assert line.startswith("toy has 8 users, 6 items and 48 interactions, of which ")
    assert all(f"{key}=[9,inf)" in line for key in INTERVALS)


def test_separators_of_two_signs_are_refused(tmp_path):
    assert problems(tmp_path, {}, recbole={"field_separator": "\\t"}) == [
        "field_separator='\\\\t' has 2 characters; expected one, or no field_separator, which means a tab"
    ]


@pytest.fixture
def notes(caplog):
    """What was logged, as sentences."""
    caplog.set_level(logging.INFO)
    return lambda: [re.sub(r"/\S*/toy/", "", record.getMessage()) for record in caplog.records if record.name.startswith("recbole_prunerec.")]


def test_what_is_left_out_is_logged_with_counts_and_examples(tmp_path, notes):
    repeated = inter() + b"u0\ti0\t1000\nu1\ti9\t2000\nu2\ti9\t2000\nu2\ti9\t2001\nu2\ti8\t2001\n"
    load(tmp_path, {"toy.inter": repeated, "toy.item": item(i3=" ", i5="Title 4") + b"i4\tAnother\ni5\tTitle 4\ni9\t \n"}, core="[3,inf)")
    assert notes() == [
        "toy.item: 1 lines give an item a second title, and are left out: for example line 8 ('i4: Another')",
        "toy.inter: 1 lines repeat another's user, item and time, and stay: for example line 50 ('u0, i0, 1000')",
        "toy.item: 2 items have no title, and are left out with their 11 interactions: for example line 5 ('i3'), line 10 ('i9')",
        "toy.inter: 1 interactions are left out, of 1 items that are not in toy.item: for example line 54 ('i8')",
        "toy.item: 2 items share 1 titles, for example 'Title 4' (i4, i5); popularity orders those of one title "
        "(merge_titles=true makes them one item)",
        "toy has 8 users, 5 items and 41 interactions; user_inter_num_interval=[3,inf) and item_inter_num_interval=[3,inf) leave "
        "8 users, 5 items and 41 interactions",
    ]


def test_good_data_say_only_what_the_core_leaves(tmp_path, notes):
    load(tmp_path, {"toy.inter": inter() + b"u9\ti1\t5\n"})
    counts = "8 users, 6 items and 48 interactions"
    assert notes() == [f"toy has 9 users, 6 items and 49 interactions; {' and '.join(f'{key}=[5,inf)' for key in INTERVALS)} leave {counts}"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_encoding_holds_for_interactions_and_titles(tmp_path, encoding):
    files = {"toy.inter": inter((4, 0, "é")), "toy.item": item(i3="Café")}
    train, *_ = load(tmp_path, {name: content.decode().encode(encoding) for name, content in files.items()}, encoding=encoding, core="[1,inf)")
    assert "é" in train.field2id_token["user_id"] and train.titles["i3"] == "Café"


def test_an_unknown_encoding_is_refused_before_anything_is_read():
    with pytest.raises(ValidationError, match="encoding=utf9 is unknown; expected one that Python has, such as utf-8, cp1252 or utf-16"):
        Settings(encoding="utf9")


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b"\n", b"\n\n"),
        lambda content: content.rstrip(b"\n") + b"\n  \n",
    ],
)
def test_a_mark_before_the_text_other_line_ends_and_blank_lines_change_nothing(tmp_path, rewrite):
    (tmp_path / "plain").mkdir()
    plain = load(tmp_path / "plain", {})
    other = load(tmp_path, {"toy.inter": rewrite(inter()), "toy.item": rewrite(item())})
    assert [tokens(part) for part in other] == [tokens(part) for part in plain]
    assert other[0].titles == plain[0].titles == {f"i{number}": f"Title {number}" for number in range(6)}


@pytest.mark.parametrize("name", ["NA", "null", "nan", "None", '"u3', "u3'", "007", "1e5"])
def test_ids_are_text_whatever_they_look_like(tmp_path, name):
    parts = load(tmp_path, {"toy.inter": inter(*((line, 0, name) for line, row in enumerate(ROWS, 2) if row[0] == "u3"))})
    assert sum(user == name for part in parts for user, _, _ in tokens(part)) == 5


def test_times_that_float64_cannot_tell_apart_keep_their_order(tmp_path):
    start = 1_700_000_000_000_000_000
    lines = [f"u{user}\ti{place}\t{start + 9 - place}" for user in range(2) for place in range(6)]
    parts = load(tmp_path, {"toy.inter": "\n".join([HEADER, *lines]).encode()}, core="[2,inf)", split="leave_one_out")
    assert tokens(parts[2]) == [(f"u{user}", ["i5", "i4", "i3", "i2", "i1"], "i0") for user in range(2)]


def merged(rows: list[list[str]], into: dict[str, str]) -> bytes:
    return "\n".join([HEADER, *("\t".join([user, into.get(item, item), time]) for user, item, time in rows)]).encode()


def test_merge_titles_makes_items_of_one_title_the_one_with_most_interactions(tmp_path, notes):
    rows = [*ROWS, ["u0", "i4", "3000"]]  # i4 has one more than i1 and i2
    files = {"toy.inter": merged(rows, {}), "toy.item": item(i1="Same", i2="Other", i4=" Same  ", i5="Other")}
    got = load(tmp_path, files, merge_titles=True)
    shared = [line for line in notes() if "share" in line]
    (tmp_path / "by hand").mkdir()
    by_hand = load(tmp_path / "by hand", files | {"toy.inter": merged(rows, {"i1": "i4", "i5": "i2"})})  # i2 and i5 have 8 each: the first
    assert [tokens(part) for part in got] == [tokens(part) for part in by_hand]
    assert sorted(got[0].field2id_token["item_id"]) == ["[PAD]", "i0", "i2", "i3", "i4"]
    assert shared == ["toy.item: 4 items share 2 titles, for example 'Same' (i1, i4); 'Other' (i2, i5); each title becomes one item"]


def test_merging_comes_before_the_core(tmp_path):
    rows = [row for row in ROWS if row[1] != "i0"] + [[f"u{number}", "i0" if number % 2 else "i00", str(2000 + number)] for number in range(8)]
    files = {"toy.inter": merged(rows, {}), "toy.item": item() + b"i00\tTitle 0\n"}
    (tmp_path / "apart").mkdir()
    apart, one = load(tmp_path / "apart", files), load(tmp_path, files, merge_titles=True)
    assert not {"i0", "i00"} & set(apart[0].field2id_token["item_id"])  # four interactions each
    assert "i0" in one[0].field2id_token["item_id"] and "i00" not in one[0].field2id_token["item_id"]


SPLIT = {
    "train": [("u1", "i1 i2", "i3"), ("u2", "i4", "i1"), ("u1", "i1 i2 i3", "i5")],
    "valid": [("u2", "i4 i1", "i2")],
    "test": [("u1", "i1 i2 i3 i5", "i0"), ("u3", "i5", "i1")],
}


def split_files(parts) -> dict[str, bytes | None]:
    header = "user_id:token\titem_id_list:token_seq\titem_id:token"
    return {"toy.inter": None} | {f"toy.{name}.inter": "\n".join([header, *map("\t".join, rows)]).encode() for name, rows in parts.items()}


@pytest.mark.parametrize("alias", [{}, {"alias_of_item_id": ["item_id_list"]}])
@pytest.mark.parametrize("longest", [3, 10])
def test_files_that_are_split_already_are_taken_as_they_are(tmp_path, alias, longest):
    parts = load(tmp_path, split_files(SPLIT), recbole={"benchmark_filename": list(SPLIT), **alias}, MAX_ITEM_LIST_LENGTH=longest)
    expected = [[(user, history.split()[-longest:], target) for user, history, target in rows] for rows in SPLIT.values()]
    assert [tokens(part) for part in parts] == expected
    assert {part_of(part).histories.shape[1] for part in parts} == {longest}
    assert parts[0].item_num == 7 and np.isin(["i0", "i4"], parts[0].field2id_token["item_id"]).all()


def test_split_files_have_their_mistakes_too(tmp_path):
    files = split_files(SPLIT | {"valid": [("u2", "", "i2")]})
    assert problems(tmp_path, files, recbole={"benchmark_filename": ["train", "valid", "tset"]}) == [
        "toy.valid.inter: 1 lines have no history, for example line 2; fill it in or delete these lines",
        "toy.tset.inter does not exist; expected a first line such as 'user_id:token\\titem_id:token\\titem_id_list:token_seq'",
    ]


def test_items_of_split_files_need_titles_and_stay_apart(tmp_path):
    found = problems(tmp_path, split_files(SPLIT) | {"toy.item": item(i4="")}, recbole={"benchmark_filename": list(SPLIT)}, merge_titles=True)
    assert found[0].startswith("merge_titles=true changes histories")
    assert "1 items of the split files have no title in toy.item, for example i4; give them titles" in found[1]


def test_titles_are_read_only_where_they_are_used_or_there(tmp_path):
    parts = load(tmp_path, {"toy.item": None}, model=("SASRec",))
    assert len(parts) == 3 and parts[0].titles == {}


@pytest.mark.parametrize("content", ["item_id:token\tgenre:token\ni0\tx\n", "item_id:token\ni0\n", "item_id:token\tname:token_seq\ni0\tx\n"])
def test_items_without_a_column_of_titles_are_refused_only_where_titles_are_needed(tmp_path, notes, content):
    (tmp_path / "none").mkdir()
    expected = [tokens(part) for part in load(tmp_path / "none", {"toy.item": None}, model=("SASRec",))]
    parts = load(tmp_path, {"toy.item": content.encode()}, model=("SASRec",), merge_titles=True)
    assert [tokens(part) for part in parts] == expected and parts[0].titles == {}
    assert "toy.item has no column 'title', so no item is left out for want of a title" in notes()
    (tmp_path / "needed").mkdir()
    (line,) = problems(tmp_path / "needed", {"toy.item": content.encode()}, model=("PruneRec", "SASRec"))
    assert "toy.item has no column 'title'; it has item_id" in line or "toy.item has one column only, 'item_id:token'" in line


def test_a_separator_of_another_kind_is_no_column_without_titles(tmp_path):
    (line,) = problems(tmp_path, {"toy.item": item().replace(b"\t", b",")}, model=("SASRec",))
    assert "toy.item has one column only, 'item_id:token,title:token_seq', by field_separator='\\t'; is it field_separator=','?" in line


def test_columns_that_are_not_wanted_change_nothing_and_blank_lines_keep_the_count(tmp_path):
    header = "x:float\tuser_id:token\ty:token\titem_id:token\tz:token\ttimestamp:float\tw:token"
    wide = "\n".join([header, *(f"7\t{user}\t\t{name}\tz\t{time}" for user, name, time in ROWS)])
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.mkdir()
    other.mkdir()
    assert [tokens(part) for part in load(other, {"toy.inter": wide.encode()})] == [tokens(part) for part in load(plain, {})]
    rows = wide.split("\n")
    rows[5:5] = ["", "7\tu1", "   "]  # lines 6 to 8
    rows[10] += "\tw\tv"  # line 11
    bad = tmp_path / "bad"
    bad.mkdir()
    (line,) = problems(bad, {"toy.inter": "\n".join(rows).encode()})
    second = f"8: {rows[10]}".replace("\t", " ")
    assert f"2 lines do not have the 7 columns that the first line names, for example line 7 ('2: 7 u1'), line 11 ('{second}');" in line
