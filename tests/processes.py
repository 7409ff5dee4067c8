"""Several processes that work on one run, as torchrun would start them; but forks of this one, so that nothing has to be imported again."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed import TCPStore

from recbole_prunerec.exits import guarded

PATIENCE = 120  # seconds; then a process that waits is killed


def together(folder: Path, work: Callable[[int], object], count: int = 2) -> list[tuple[int, str]]:
    """Run `work(rank)` under `guarded` in `count` processes. Gives for each its exit code, or minus the signal that killed it, and what it said.

    A defect of `work` ends with the exit code 70. `folder` gets a file for each.
    """
    reader, writer = os.pipe()
    keeper = _fork(lambda: _keep_store(writer), folder / "said-store")  # elsewhere, since its thread must not be forked
    port = os.read(reader, 16).decode()
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in range(count):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_USE_AGENT_STORE": "True"}

        def start(rank: int = rank, environment: dict[str, str] = common | own) -> int:
            os.environ |= environment
            return guarded(lambda: work(rank))

        children.append(_fork(start, folder / f"said-{rank}"))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)
    os.close(reader)
    os.close(writer)
    return [(code, (folder / f"said-{rank}").read_text()) for rank, code in enumerate(codes)]


def _keep_store(writer: int) -> int:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(writer, str(store.port).encode())
    signal.pause()
    return 0


def _fork(work: Callable[[], int], says: Path) -> int:
    """The number of a new process that does `work`, whose exit code that returns, and writes what it says into a file."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        signal.alarm(PATIENCE)
        torch.set_num_threads(1)
        said = os.open(says, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout = sys.stderr = os.fdopen(said, "w", buffering=1)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
