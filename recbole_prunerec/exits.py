"""How a command line ends: its exit code, and what it says on stderr."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from recbole_prunerec.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
IN_THE_WAY = (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
LOST, MISTAKE, INTERRUPTED, TERMINATED = 1, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM
GONE = "another process of this run has died; what it said, if it could, stands above"
GOES_ON = "the same command, without --fresh, goes on where it was cut"


class _Terminated(BaseException):
    """SIGTERM, as an exception: what is open is closed, and locks are freed."""


def guarded(work: Callable[[], object], again: str = GOES_ON) -> int:
    """Do `work` and return the exit code: 0, 2 for a `UserError`, 130 for Ctrl-C, 143 for SIGTERM, and 1 where another process of the run has gone.
    To be called in the main thread.

    A `UserError` is shown as the number of its problems and a line for each, and what is in the way on the disk, or no room there, as one problem;
    the other three as one line that ends with `again`. All else is a defect, and keeps its traceback. Of several processes one says it.
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
        if _many() and _lost(error):
            return _end(LOST, f"\n{GONE}; {again}\n")
        raise
    except KeyboardInterrupt:
        return _end(INTERRUPTED, f"\ninterrupted; {again}\n")  # a new line, since a progress bar may stand on this one
    except _Terminated:
        return _end(TERMINATED, f"\nterminated{f', or {GONE}' if _many() else ''}; {again}\n")
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _mistake(problems: list[str]) -> int:
    count = f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}"
    return _end(MISTAKE, f"{count}:\n" + "".join(f"  - {problem}\n" for problem in problems))


def _many() -> bool:
    """Whether torchrun or accelerate has started this process with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _lost(error: Exception) -> bool:
    from recbole_prunerec.distributed import lost  # takes seconds to import, and was before such an error

    return lost(error)


def _end(code: int, text: str) -> int:
    """Say `text`, unless another process of the run says why it ends, and give the exit code."""
    if _many():
        for kind in (signal.SIGINT, signal.SIGTERM):  # the launcher's to all, since one has ended
            signal.signal(kind, signal.SIG_IGN)
        from recbole_prunerec.distributed import speaks  # takes seconds to import

        if not speaks():
            return code
        number, count = os.environ.get("RANK", "0"), os.environ["WORLD_SIZE"]
        text = text if number == "0" else f"{text.removesuffix(text.lstrip())}process {number} of {count}: {text.lstrip()}"
    sys.stderr.write(text)
    return code


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
