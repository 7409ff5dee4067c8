"""A kill at any write of a run, a full disk, a damaged cache: the same call again ends with the same result.

Each case runs in a forked child, which Python's audit events stop right before the n-th change to the disk: a file opened for writing, renamed or
removed, a folder made or removed. What comes after one change is what comes before the next. Files that Rust and C++ write (weights, optimiser
states) raise no event: they are met absent and whole, and half-written on the full disk.
"""

import io
import os
import resource
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import SETTINGS, TOKENIZER, backbone, samples

from recbole_prunerec import pipeline
from recbole_prunerec.exits import MISTAKE, guarded
from recbole_prunerec.report.ranks import Ranks

SHORT = SETTINGS.model_copy(
    update={"steps": (SETTINGS.steps[0], SETTINGS.steps[2]), "checkpoint_minutes": 10.0}  # a training step and a pruning step have all the code
)
STEPS = ["1-finetune", "2-mlp"]
PARTS = 32  # of the enumeration, for parallel tests; every eighth is in every run of the tests, the others under -m slow
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


def in_child(work) -> int:
    """Run `work` in a forked child. Returns its exit code: 0, 1 where it raised, 128 + signal where it was killed."""
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = sys.stderr = io.StringIO()  # pytest's own files may be as full as the disk
            torch.set_num_threads(1)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(folder) -> None:
    pipeline.run(backbone(), TOKENIZER, samples(), SHORT, folder)


def whole_path(name, folder) -> str:
    """A path that an event names, where it is relative to an open folder too."""
    return str(name) if not isinstance(folder, int) or folder < 0 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), str(name))


def at_changes(folder, see) -> None:
    """Call `see()` before every change to the disk under `folder`, in this process, for good."""
    inside = str(folder)

    def hook(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            changes = isinstance(path, str) and path.startswith(inside) and (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or "w" in (mode or ""))
        else:
            changes = event in CHANGES and any(whole_path(argument, arguments[-1]).startswith(inside) for argument in arguments)
        if changes and "/tensorboard/" not in str(arguments[0]) and not str(arguments[0]).endswith(".lock"):
            see()

    sys.addaudithook(hook)


def killed_at(folder, number: int) -> None:
    """A run that dies right before its change of this number."""
    count = 0

    def see():
        nonlocal count
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    at_changes(folder, see)
    run(folder)


def counting(folder, to) -> None:
    count = 0

    def see():
        nonlocal count
        count += 1

    at_changes(folder, see)
    run(folder)
    to.write_text(str(count))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, and how often it changes the disk."""
    folder, count = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("count") / "count"
    assert in_child(lambda: counting(folder, count)) == 0
    return folder, int(count.read_text())


def same(folder, whole) -> bool:
    """Whether two runs have the same weights and ranks, and nothing half-written."""
    for step in STEPS:
        one, other = (load_file(path / step / "model.safetensors") for path in (folder, whole))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for name in (*STEPS, "2-mlp-unrestored"):
        first, second = (Ranks.read(path / "ranks" / f"{name}.csv") for path in (folder, whole))
        assert first.ranks.tolist() == second.ranks.tolist() and first.rows.tolist() == second.rows.tolist()
    assert not [path for path in folder.rglob("*") if path.suffix in (".partial", ".old") or path.name.startswith("checkpoint-")]
    return True


def test_there_are_many_changes_and_the_last_is_met(whole):
    assert whole[1] > 150


@pytest.mark.parametrize("part", [pytest.param(part, marks=[pytest.mark.slow] * (part % 8 > 0)) for part in range(PARTS)])
def test_a_kill_before_any_change_loses_nothing(whole, tmp_path, part):
    reference, changes = whole
    for number in range(part, changes, PARTS):
        folder = tmp_path / str(number)
        assert in_child(lambda folder=folder, number=number: killed_at(folder, number)) == -signal.SIGKILL, number
        assert in_child(lambda folder=folder: run(folder)) == 0, number
        assert same(folder, reference), number


@pytest.mark.parametrize("largest", [500, 3_000, 60_000, 235_000, 300_000])
def test_a_disk_that_is_full_loses_nothing(whole, tmp_path, largest):
    """No file may grow beyond `largest` bytes: small files, weights, optimiser states fail to be written, and the user is told what to do."""
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def on_a_full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        os._exit(guarded(lambda: run(tmp_path)))

    try:
        assert in_child(on_a_full_disk) == MISTAKE
    finally:
        signal.signal(signal.SIGXFSZ, signal_before)
    assert in_child(lambda: run(tmp_path)) == 0
    assert same(tmp_path, whole[0])
