"""Two CSV files become a dataset that is read back as it was meant, or every mistake in them is named."""

import csv
import io
import logging
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from recbole_prunerec.config import RunConfig
from recbole_prunerec.data.csv_files import to_atomic
from recbole_prunerec.data.dataset import NextItemDataset, part_of
from recbole_prunerec.errors import UserError
from recbole_prunerec.model.popularity import Popularity
from recbole_prunerec.settings import Settings

TITLES = {
    "b1": 'War, and "Peace"',
    "b2": '"Heat"',
    "b3": "  Two\nlines,\ta tab\r\nand  spaces ",
    "b4": "'Tis",
    "b5": '"',
    "b6": 'Ends in a quote"',
    "b7": "Ünïcödé 日本\u2028語",
    "b8": "back\\slash",
}
ROWS = [(f"u, {user}", f"b{1 + (user + place) % 8}", str(1_700_000_000 + 60 * place + user)) for user in range(4) for place in range(8)]


def written(path: Path, header: list[str], rows, separator: str = ",", encoding: str = "utf-8") -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows([header, *rows])
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def two_files(folder: Path, rows=ROWS, titles=TITLES, headers=(("user", "item", "time"), ("item", "title")), **form) -> tuple[Path, Path]:
    return written(folder / "interactions.csv", list(headers[0]), rows, **form), written(
        folder / "items.csv", list(headers[1]), titles.items(), **form
    )


def lines(folder: Path, name: str) -> list[list[str]]:
    """Rows of an atomic file, cut at its tabs and line ends and nowhere else."""
    return [line.split("\t") for line in (folder / name).read_bytes().decode().removesuffix("\n").split("\n")]


def load(data_path: Path, name: str) -> tuple[NextItemDataset, list[NextItemDataset]]:
    core = dict.fromkeys(("user_inter_num_interval", "item_inter_num_interval"), "[2,inf)")
    settings = Settings(recbole=core, dataset=name, data_path=str(data_path))
    dataset = NextItemDataset(RunConfig(settings, Popularity, data_path / "run", data_path / "cache"))
    return dataset, dataset.build()


def problems(*arguments, **options) -> list[str]:
    with pytest.raises(UserError) as caught:
        to_atomic(*arguments, **options)
    folder = arguments[1].parent
    return str(caught.value).replace(f"{folder}/mine/", "").replace(f"{folder}/", "").splitlines()


def test_what_is_written_is_read_back_as_it_was_meant(tmp_path):
    folder = to_atomic(*two_files(tmp_path), "mine", tmp_path / "data")
    assert folder == tmp_path / "data" / "mine"
    assert lines(folder, "mine.inter") == [["user_id:token", "item_id:token", "timestamp:float"], *map(list, ROWS)]
    dataset, parts = load(tmp_path / "data", "mine")
    assert dataset.titles == {item: re.sub(r"\s+", " ", title).strip() for item, title in TITLES.items()}
    arrays, items = part_of(parts[2]), dataset.field2id_token["item_id"]
    last = [(f"u, {user}", f"b{1 + (user + 7) % 8}") for user in range(1, 4)]  # the latest 3 of 28 samples
    assert [(dataset.field2id_token["user_id"][arrays.users[row]], items[arrays.targets[row]]) for row in range(len(arrays))] == last


@pytest.mark.parametrize(
    ("headers", "names"),
    [
        ((("userId", "movieId", "timestamp"), ("movieId", "title")), {}),
        ((("User ID", "Product-ID", "Date"), ("id", "Name")), {}),
        ((("reviewerID", "asin", "unixReviewTime"), ("asin", "title")), {}),
        ((("who", "what", "when"), ("key", "label")), {"user": "who", "item": "what", "time": "when", "title": "label"}),
        ((("who", "what", "when"), ("what", "label")), {"user": "who", "item": "what", "time": "when", "title": "label"}),
    ],
)
def test_columns_are_found_by_common_names_or_those_given(tmp_path, headers, names):
    paths = two_files(tmp_path, headers=headers)
    if headers[1][0] == "key":  # no common name, and not the one given
        assert problems(*paths, "mine", tmp_path, **names) == [
            "items.csv has no column for the item; it has key, label; name it, item=<column>, or call it item"
        ]
        return
    folder = to_atomic(*paths, "mine", tmp_path, **names)
    assert lines(folder, "mine.inter")[1:] == [list(row) for row in ROWS]
    assert [row[0] for row in lines(folder, "mine.item")[1:]] == list(TITLES)


def test_other_columns_and_another_order_do_not_matter(tmp_path):
    rows = [(time, "x,y", item, "", user) for user, item, time in ROWS]
    interactions = written(tmp_path / "a.csv", ["time", "note", "item", "", "user"], rows, separator=";", encoding="cp1252")
    items = written(tmp_path / "b.csv", ["year", "title", "item"], [("1999", "Café; au lait", "b1")], separator=";", encoding="cp1252")
    folder = to_atomic(interactions, items, "mine", tmp_path, field_separator=";", encoding="cp1252")
    assert lines(folder, "mine.inter")[1:] == [list(row) for row in ROWS]
    assert lines(folder, "mine.item") == [["item_id:token", "title:token_seq"], ["b1", "Café; au lait"]]


def test_a_mark_before_the_text_and_white_space_around_ids_go(tmp_path):
    interactions, items = two_files(tmp_path, rows=[(f" {user}", f"{item} ", f" {time} ") for user, item, time in ROWS], encoding="utf-8-sig")
    folder = to_atomic(interactions, items, "mine", tmp_path)
    assert lines(folder, "mine.inter") == [["user_id:token", "item_id:token", "timestamp:float"], *map(list, ROWS)]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-05-31", datetime(2024, 5, 31, tzinfo=UTC)),
        ("2024-05-31 18:00:01", datetime(2024, 5, 31, 18, 0, 1, tzinfo=UTC)),
        ("2024-05-31T18:00:01Z", datetime(2024, 5, 31, 18, 0, 1, tzinfo=UTC)),
        ("2024-05-31T18:00:01+02:00", datetime(2024, 5, 31, 16, 0, 1, tzinfo=UTC)),
        ("2024-05-31T18:00:01.000250", datetime(2024, 5, 31, 18, 0, 1, 250, tzinfo=UTC)),
        ("1970-01-01", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_dates_become_seconds(tmp_path, text, moment):
    folder = to_atomic(*two_files(tmp_path, rows=[("u", "b1", "2020-01-01"), ("u", "b2", text)]), "mine", tmp_path)
    first, second = (row[2] for row in lines(folder, "mine.inter")[1:])
    assert first == "1577836800" and float(second) == moment.timestamp()


@pytest.mark.parametrize("time", ["1700000000", "1700000000123456789", "1.5e9", "0", "0.25"])
def test_numbers_stay_as_they_stand(tmp_path, time):
    folder = to_atomic(*two_files(tmp_path, rows=[("u", "b1", time)]), "mine", tmp_path)
    assert lines(folder, "mine.inter")[1] == ["u", "b1", time]


def changed(line: int, column: int, text: str, rows=ROWS) -> list[tuple[str, ...]]:
    return [tuple(text if (number, place) == (line, column) else cell for place, cell in enumerate(row)) for number, row in enumerate(rows, 2)]


DATED = [(user, item, f"2024-05-{place % 28 + 1:02}") for place, (user, item, _) in enumerate(ROWS)]
EITHER = "expected numbers from 0 up, such as seconds since 1970"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"headers": (("user", "thing", "time"), ("item", "title"))},
            ["interactions.csv has no column for the item; it has user, thing, time; name it, item="],
        ),
        (
            {"headers": (("user", "item", "time"), ("item", "text"))},
            ["items.csv has no column for the title; it has item, text; name it, title=<column>"],
        ),
        (
            {"headers": (("user", "item", "user_id"), ("item", "item_id"))},
            [
                "interactions.csv has several columns for the user: user, user_id; choose one, user=<column>",
                "interactions.csv has no column for the time; it has user, item, user_id; name it, time=<column>, or call it time",
                "items.csv has several columns for the item: item, item_id; choose one, item=<column>",
                "items.csv has no column for the title;",
            ],
        ),
        ({"rows": []}, ["interactions.csv has nothing below its first line"]),
        ({"titles": {}}, ["items.csv has nothing below its first line"]),
        ({"rows": changed(4, 0, "  ")}, ["interactions.csv: 1 lines have no user, for example line 4; fill it in"]),
        ({"rows": changed(4, 1, "")}, ["interactions.csv: 1 lines have no item, for example line 4; fill it in"]),
        (
            {"rows": changed(4, 1, "b\t1")},
            [r"interactions.csv: 1 ids of the item hold a tab or a line end, for example line 4 ('b\t1'); expected one"],
        ),
        ({"titles": {"b\n1": "x"}}, [r"items.csv: 1 ids of the item hold a tab or a line end, for example line 3 ('b\n1')"]),
        ({"rows": changed(4, 2, "soon")}, [f"interactions.csv: 1 times are not numbers, for example line 4 ('soon'); {EITHER}"]),
        ({"rows": changed(4, 2, "2024-05-31")}, [f"interactions.csv: 1 times are not numbers, for example line 4 ('2024-05-31'); {EITHER}"]),
        ({"rows": changed(4, 2, "-3")}, ["interactions.csv: 1 times are negative, for example line 4 ('-3');"]),
        *(
            (
                {"rows": changed(4, 2, text, DATED)},
                [f"interactions.csv: 1 times are not ISO dates from 1970 on, for example line 4 ('{text}'); expected"],
            )
            for text in ("soon", "", "1700000000", "31/05/2024", "2024-13-01", "1969-12-31", "now")
        ),
        (
            {"rows": [*ROWS[:3], ("u", "b1")]},
            ["interactions.csv: 1 lines do not have the 3 columns that the first line names, for example line 5 ('2: u b1')"],
        ),
        ({"titles": {"c1": "A"}}, ["interactions.csv: none of its 8 items has a title, for example line 2 ('b1'), "]),
        (
            {"rows": changed(4, 0, "", changed(6, 2, "inf")), "titles": TITLES | {" ": "x"}},
            [
                "interactions.csv: 1 lines have no user, for example line 4;",
                "items.csv: 1 lines have no item, for example line 12;",
                "interactions.csv: 1 times are infinite, for example line 6 ('inf');",
            ],
        ),
    ],
)
def test_every_mistake_is_named_and_nothing_is_written(tmp_path, files, expected):
    found = problems(*two_files(tmp_path, **files), "mine", tmp_path)
    assert len(found) == len(expected), found
    assert all(wanted in got for got, wanted in zip(found, expected, strict=True)), found
    assert not (tmp_path / "mine").exists()


def test_files_that_cannot_be_read_are_named(tmp_path):
    interactions, items = two_files(tmp_path)
    items.write_bytes("item,title\nb1,Café\n".encode("latin-1"))
    assert problems(tmp_path / "no.csv", items, "mine", tmp_path) == [
        "no.csv is not a file; expected one such as 'user,item,time'",
        r"items.csv is not text in encoding=utf-8: 1 lines, for example line 2 ('b1,Caf\\xe9'); save it as UTF-8, "
        "or name its encoding, such as encoding=cp1252",
    ]
    items.write_text('item,title\nb1,x\nb2,"never closed\nb3,y\n')
    assert problems(interactions, items, "mine", tmp_path) == [
        "items.csv: unexpected end of data, in what begins after line 2; close the quote there, or shorten the text"
    ]
    assert problems(interactions, items, "mine", tmp_path, encoding="utf9")[0].startswith("encoding=utf9 is unknown; expected one that Python has")
    assert problems(interactions, interactions, "mine", tmp_path, field_separator=";") == [
        "interactions.csv has one column only, 'user,item,time', by field_separator=';'; is it field_separator=','?; expected a first line such as "
        f"'{first}'"
        for first in ("user;item;time", "item;title")
    ]


@pytest.mark.parametrize("name", ["", "..", "a/b", "ml-100k", "a b", "-x"])
def test_a_name_that_is_no_datasets_is_refused(tmp_path, name):
    assert problems(*two_files(tmp_path), name, tmp_path)[0].startswith(f"name={name!r}: expected letters, digits")


def test_a_column_that_is_not_there_is_refused_with_the_nearest(tmp_path):
    assert problems(*two_files(tmp_path), "mine", tmp_path, user="usr") == [
        "interactions.csv has no column 'usr'; it has user, item, time; did you mean 'user'? (the key is user)"
    ]


def test_the_same_again_is_no_mistake_but_other_data_are_not_overwritten(tmp_path):
    first = to_atomic(*two_files(tmp_path), "mine", tmp_path)
    content = (first / "mine.inter").read_bytes()
    assert to_atomic(*two_files(tmp_path), "mine", tmp_path) == first
    assert problems(*two_files(tmp_path, rows=ROWS[1:]), "mine", tmp_path) == [
        "mine.inter exists and holds other data; choose another name than name=mine, or delete mine"
    ]
    assert (first / "mine.inter").read_bytes() == content


def test_what_will_be_left_out_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = [*ROWS, ROWS[0], ("u", "b9", "5")]
    to_atomic(*two_files(tmp_path, rows=rows, titles=TITLES | {"b8": " "}), "mine", tmp_path)
    assert [re.sub(r"/\S*/", "", record.getMessage()) for record in caplog.records] == [
        "interactions.csv: 1 lines repeat another's user, item and time, and stay: for example line 34 ('u, 0, b1, 1700000000')",
        "items.csv: 1 items have no title, and are left out with their 4 interactions: for example line 11 ('b8')",
        "interactions.csv: 1 interactions are left out, of 1 items that are not in items.csv: for example line 35 ('b9')",
        "mine: 34 interactions of 5 users, 8 items",
    ]
