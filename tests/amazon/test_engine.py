"""Little memory: what does not fit is spilled and the result is the same, and where there is no room for it, that is told."""

import multiprocessing
import resource
import signal

import pytest
from amazon_files import interactions, titled, write_raw

from recbole_prunerec.amazon import engine, making
from recbole_prunerec.amazon.store import raw_dataset
from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Rules

ROWS = interactions(60_000, 10_000, 2000, 1)


def test_what_is_spilled_changes_nothing(tmp_path, monkeypatch):
    paths = write_raw(tmp_path / "raw", "2018", ROWS, titled(sorted({row["item"] for row in ROWS}), 1), faults=False)
    spilled = []

    def watched(connection, rules):
        outcome = apply(connection, rules)
        spilled.append(connection.execute("SELECT count(*) FROM duckdb_temporary_files()").fetchall()[0][0])
        return outcome

    apply = making.apply
    monkeypatch.setattr(making, "apply", watched)
    texts = []
    for mebibytes in (2048, 12):
        monkeypatch.setattr(engine, "MEMORY_MIB", mebibytes)
        folder = raw_dataset(*paths, Rules(min_items=200), tmp_path / str(mebibytes), "games", show_progress=False)
        texts.append([(folder / f"games.{kind}").read_text(encoding="utf-8") for kind in ("inter", "item")])
    assert texts[0] == texts[1] and len(texts[0][0]) > 1000 and spilled[0] == 0 < spilled[1]


def starved(folder, said):
    """Spill where no file may be larger than 64 KiB, and send what is said."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    engine.MEMORY_MIB = 24
    try:
        with engine.engine(folder) as connection:
            connection.execute("CREATE TABLE t AS SELECT hash(range) AS a, hash(range + 1) AS b FROM range(10000000)")
    except UserError as error:
        said.send(str(error))


def test_no_room_to_spill_is_told(tmp_path):
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=starved, args=(tmp_path, writer))
    child.start()
    child.join(60)
    said = reader.recv()
    assert said.startswith(f"{tmp_path} has no room for what does not fit into memory (") and said.endswith("; make room there, or elsewhere")
    assert "\n" not in said


def test_threads_and_memory_are_bounded(tmp_path):
    with engine.engine(tmp_path) as connection:
        limit, threads = connection.execute("SELECT current_setting('memory_limit'), current_setting('threads')").fetchall()[0]
        assert limit == "2.0 GiB" and 1 <= threads <= engine.THREADS
        assert engine.single(connection, "SELECT 3, 4") == (3, 4)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    import duckdb

    with pytest.raises(duckdb.CatalogException), engine.engine(tmp_path) as connection:
        connection.execute("SELECT * FROM nothing")
