"""Several processes that work on one run, as `torchrun` or `accelerate launch` start them; without either, one.

All go the same way through the program. What can be shared out is, and put together again, so that every process has the whole; what cannot, and all
that writes into the run's folder, process 0 does alone. Whatever waits for the other processes has to be called by all of them, in the same order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from recbole_prunerec.errors import UserError

Item = TypeVar("Item")
P = ParamSpec("P")

PATIENCE = timedelta(days=7)  # for process 0, which trains the compared models while the others wait
GRACE = 1.0  # seconds that the others leave to process 0 to say why a run ended
GLOO = "third_party/gloo"  # in the text of an error of torch's processes on CPUs, which has no type of its own

_group: dist.ProcessGroup | None = None  # for tensors on the CPU, whatever the default group is for; None: the default
_store: dist.Store | None = None
_alone = False


@contextmanager
def joined(cpu: bool) -> Iterator[None]:
    """Within the block this process works with those that were started beside it. Nothing happens where it was started alone, or has joined them.

    They talk over NCCL, or with `cpu`, or without a GPU, over gloo. Where the block raises, the connection is left as it is, for `speaks`.
    """
    global _group, _store
    if _group is not None or "LOCAL_RANK" not in os.environ:
        yield
        return
    ours = not dist.is_initialized()
    if ours:
        _store, number, count = next(dist.rendezvous("env://"))
        dist.init_process_group("gloo" if cpu or not torch.cuda.is_available() else "nccl", store=_store, rank=number, world_size=count)
    _group = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield
    barrier()
    _group = None
    if ours:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process counts as the only one."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world() -> int:
    """How many processes there are."""
    return 1 if _alone or _group is None else dist.get_world_size()


def rank() -> int:
    """The number of this one, from 0; process 0 alone writes."""
    return dist.get_rank() if world() > 1 else 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of `items`: every world-th."""
    return items[rank() :: world()]


def unshared(values: Tensor) -> Tensor:
    """The rows of all processes, (row, ...), where each has those of its `share`, in the order of what was shared out. Waits for all."""
    rows = gathered(values)
    places = torch.arange(len(rows), device=rows.device)
    whole = torch.empty_like(rows)
    whole[torch.cat([places[first :: world()] for first in range(world())])] = rows
    return whole


def total(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, the same in each to the bit, on the device that they are on. Waits for all."""
    if world() == 1:
        return values
    summed = values.clone()
    dist.all_reduce(summed, group=_group if summed.device.type == "cpu" else None)
    return summed


def gathered(values: Tensor) -> Tensor:
    """The rows of all processes, (row, ...), in the order of processes; each may have its own number of them. Waits for all."""
    if world() == 1:
        return values
    data = values.detach().cpu().contiguous().flatten().view(torch.uint8)
    counts = [torch.empty(1, dtype=torch.int64) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([len(data)]), group=_group)
    padded = data.new_zeros(max(map(int, counts)))
    padded[: len(data)] = data
    everyone = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(everyone, padded, group=_group)
    joint = torch.cat([part[: int(count)] for part, count in zip(everyone, counts, strict=True)])
    return joint.view(values.dtype).view(-1, *values.shape[1:]).to(values.device)


def barrier() -> None:
    """Wait here until all processes are."""
    total(torch.zeros(1))


def told(text: str) -> str:
    """What process 0 was given, in every process. Waits for all."""
    if world() == 1:
        return text
    return bytes(gathered(torch.tensor(list(text.encode()) if rank() == 0 else [], dtype=torch.uint8)).tolist()).decode()


def agreed(question: Callable[[], bool]) -> bool:
    """Process 0's answer, in every process: what it sees on the disk or the clock holds for all. Waits for all."""
    return bool(told("yes" if rank() == 0 and question() else ""))


def by_first(work: Callable[[], object]) -> None:
    """Have process 0 do `work` alone, once all are here; the others wait for its end. Its `UserError` is raised in every process."""
    if world() == 1:
        work()
        return
    barrier()  # nobody is still at what it changes
    problem = ""
    if rank() == 0:
        try:
            with alone():
                work()
        except UserError as error:
            problem = str(error)
    if problem := told(problem):
        raise UserError(problem)


def first_only(method: Callable[P, None]) -> Callable[P, None]:
    """A function that runs `by_first`."""

    @wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        by_first(partial(method, *args, **kwargs))

    return wrapped


def speaks() -> bool:
    """Whether it is this process that says why the run ends: the first that asks, where process 0 comes before others of the same second.

    To be asked once, by a process that ends. Before all have joined it is process 0.
    """
    number = int(os.environ.get("RANK", "0"))
    if _store is None:
        return number == 0
    if number:
        time.sleep(GRACE)
    try:
        return _store.add("ended", 1) == 1
    except RuntimeError:  # whoever kept it is gone
        return True


def lost(error: BaseException) -> bool:
    """Whether an error comes from another process having gone."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, dist.DistError) or (isinstance(cause, RuntimeError) and GLOO in str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
