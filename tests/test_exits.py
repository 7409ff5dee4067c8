"""How a command line ends, in this process and as a shell sees it."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from recbole_prunerec.errors import UserError
from recbole_prunerec.exits import guarded

WAITS = """
import sys, time
from recbole_prunerec.exits import guarded

def work():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

sys.exit(guarded(work, *sys.argv[1:]))
"""


def fails(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "expected"),
    [(UserError("a=1 is bad"), "1 problem:\n  - a=1 is bad\n"), (UserError("a\nb"), "2 problems:\n  - a\n  - b\n")],
)
def test_problems_are_counted_and_listed(capsys, error, expected):
    assert guarded(lambda: fails(error)) == 2
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (type("SafetensorError", (Exception,), {})("I/O error: File too large (os error 27)"), "the disk is full"),
        (RuntimeError("basic_ios::clear: iostream error"), "the disk is full"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a", None, "saved/latest"), "saved/latest: Is a directory; see to this"),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), "x/y: Permission denied; see to this"),
    ],
)
def test_what_the_disk_refuses_is_one_problem(capsys, error, said):
    assert guarded(lambda: fails(error)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 2) and said in err and "goes on" in err


def test_a_missing_file_of_ours_is_a_defect():
    with pytest.raises(FileNotFoundError):
        guarded(lambda: fails(FileNotFoundError(errno.ENOENT, "No such file", "x")))


def test_what_ends_well_is_silent(capsys):
    assert guarded(lambda: 7) == 0
    assert capsys.readouterr() == ("", "")


def test_a_defect_keeps_its_traceback_and_the_signal_its_handler():
    before = signal.getsignal(signal.SIGTERM)
    assert before == signal.SIG_DFL
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)
    with pytest.raises(SystemExit):  # argparse's, for --help
        guarded(sys.exit)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(os.name != "posix", reason="Windows has other signals")
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")], ids=["Ctrl-C", "kill"]
)
def test_a_signal_cleans_up_and_says_how_to_go_on(number, code, word):
    started = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "ready\n"
    started.send_signal(number)
    out, err = started.communicate(timeout=20)
    assert (started.returncode, out) == (code, "cleaned up\n")
    assert err == f"\n{word}; the same command, without --fresh, goes on where it was cut\n"
