"""How a command line ends: its exit code, and what it says on stderr."""

from __future__ import annotations

import errno
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from recbole_prunerec.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
IN_THE_WAY = (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
MISTAKE, INTERRUPTED, TERMINATED = 2, 128 + signal.SIGINT, 128 + signal.SIGTERM
GOES_ON = "the same command, without --fresh, goes on where it was cut"


class _Terminated(BaseException):
    """SIGTERM, as an exception: what is open is closed, and locks are freed."""


def guarded(work: Callable[[], object], again: str = GOES_ON) -> int:
    """Do `work` and return the exit code: 0, 2 for a `UserError`, 130 for Ctrl-C, 143 for SIGTERM. To be called in the main thread.

    A `UserError` is shown as the number of its problems and a line for each, and what is in the way on the disk, or no room there, as one problem;
    the other two as one line that ends with `again`. All else is a defect, and keeps its traceback.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
    except UserError as error:
        return _mistake(str(error).splitlines())
    except Exception as error:  # what a library makes of a full disk has no type of its own
        if disk_is_full(error):
            return _mistake([f"a file could not be written, since the disk is full ({error}); make room, and {again}"])
        if isinstance(error, IN_THE_WAY) and error.filename is not None:
            return _mistake([f"{error.filename2 or error.filename}: {error.strerror}; see to this file or folder, and {again}"])
        raise
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; {again}\n")  # a new line, since a progress bar may stand on this one
        return INTERRUPTED
    except _Terminated:
        sys.stderr.write(f"\nterminated; {again}\n")
        return TERMINATED
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _mistake(problems: list[str]) -> int:
    count = f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}"
    sys.stderr.write(f"{count}:\n" + "".join(f"  - {problem}\n" for problem in problems))
    return MISTAKE


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is that of a disk, a quota or a file-size limit without room, in Python's words, Rust's or C++'s."""
    while error is not None:
        numbers = re.findall(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else []
        if isinstance(error, OSError):
            numbers.append(str(error.errno))
        if {int(number) for number in numbers if number.isdecimal()} & FULL or "iostream error" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _terminate(*_: object) -> NoReturn:
    raise _Terminated
