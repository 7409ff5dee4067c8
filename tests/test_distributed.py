"""Several processes that work on one run: what they share out and put together, what they leave behind, and how they end."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import together
from safetensors.torch import load_file
from small_data import write_small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import SETTINGS, TOKENIZER, backbone, samples

from recbole_prunerec import pipeline
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.distributed import agreed, alone, by_first, gathered, joined, rank, share, told, total, unshared, world
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking import recommender
from recbole_prunerec.ranking.recommender import ranker
from recbole_prunerec.report.measure import measure
from recbole_prunerec.restore.train import AnswerTrainer
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.settings import Ranking
from recbole_prunerec.text.prompts import Prompts

SCRIPT = Path(__file__).parent.parent / "run_recbole.py"
STEPS = ["1-finetune", "2-width", "3-mlp", "4-depth"]
COSTS = {"seconds_per_user", "peak_memory_bytes", "step_seconds", "training_memory_bytes"}
GOES_ON = "the same command, without --fresh, goes on where it was cut\n"
DIED = f"another process of this run has died; what it said, if it could, stands above; {GOES_ON}"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


@pytest.fixture
def ask(tmp_path):
    """Put functions of a process's number to three processes; gives each one's answers."""

    def asked(*questions):
        def work(number: int) -> None:
            with joined(cpu=True):
                (tmp_path / f"{number}.json").write_text(json.dumps([question(number) for question in questions]))

        assert together(tmp_path, work, 3) == [(0, "")] * 3
        return [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(3)]

    return asked


# What is shared out and put together


@pytest.mark.parametrize("kind", [torch.int32, torch.float64, torch.bfloat16, torch.bool], ids=str)
def test_rows_of_all_come_in_the_order_of_processes_and_none_twice(ask, kind):
    whole = torch.arange(10).view(5, 2).to(kind)

    def gather(number: int) -> list:
        found = gathered(whole[([0, 1], [], [2, 3, 4])[number]])
        return [found.tolist(), str(found.dtype)]

    assert ask(gather) == [[[whole.tolist(), str(kind)]]] * 3


def test_what_is_shared_out_comes_back_in_order(ask):
    def back(count: int):
        items = torch.arange(2 * count).view(count, 2)
        return lambda _: unshared(items[list(share(range(count)))]).tolist()

    counts = (0, 1, 2, 3, 7)
    assert ask(*map(back, counts)) == [[torch.arange(2 * count).view(count, 2).tolist() for count in counts]] * 3


def test_sums_and_words_are_the_same_everywhere(ask):
    questions = (
        lambda number: total(torch.tensor([number + 1.0, 0.5])).tolist(),
        lambda number: told(f"said by {number}, é"),
        lambda number: told("" if number == 0 else "more"),
        lambda number: agreed(lambda: number == 0),
        lambda number: agreed(lambda: number > 0),
    )
    assert ask(*questions) == [[[6.0, 1.5], "said by 0, é", "", True, False]] * 3


def test_a_process_alone_waits_for_nobody(ask):
    def work(number: int) -> list:
        if number == 1:
            with alone():
                return [world(), rank(), total(torch.tensor(5)).item(), list(share(range(3)))]
        return [world(), rank()]

    assert ask(work) == [[[3, 0]], [[1, 0, 5, [0, 1, 2]]], [[3, 2]]]


def test_process_0_works_alone_and_its_mistakes_are_everyones(ask, tmp_path):
    def wrong() -> None:
        raise UserError(f"a=1 is bad in {world()}")

    def mistake(number: int) -> str:
        try:
            by_first(wrong)
        except UserError as error:
            return str(error)
        return "none"

    def write(number: int) -> str:
        by_first(lambda: (tmp_path / "written").write_text(f"{number} of {world()}"))
        return (tmp_path / "written").read_text()

    assert ask(mistake, write) == [["a=1 is bad in 1", "0 of 1"]] * 3


def test_of_one_process_nothing_changes(tmp_path):
    values = torch.ones(2)
    assert world() == 1 and rank() == 0 and share([1, 2]) == [1, 2] and told("a") == "a" and agreed(lambda: True)
    assert total(values) is values and gathered(values) is values and torch.equal(unshared(values), values)
    with joined(cpu=True):
        assert not torch.distributed.is_initialized()


# Ranking


@pytest.mark.parametrize(
    "options",
    [{"beams": 4}, {"search": "exact", "beams": 2, "budget": 3}, {"search": "grounding", "popularity_weight": None}],
    ids=["beam", "exact", "grounding"],
)
def test_users_are_shared_out_and_ranked_as_by_one_process(ask, monkeypatch, options):
    monkeypatch.setattr(recommender, "ORDERED", 2)  # eight rows are shared out twice
    data = samples()
    prompts = Prompts(TOKENIZER, data.catalogue, "list", 512)
    settings = SETTINGS.model_copy(update={"ranking": Ranking(**options)})

    def ranked(count: int):
        def work(_) -> list:
            model = ranker(backbone(), prompts, settings, data.valid)
            measured, ranks = measure(model, data.catalogue, data.test, torch.arange(count).numpy(), [2])
            order = model.order([data.test.history(row).tolist() for row in range(count)])
            return [measured.metrics, measured.flops_per_user, measured.note, ranks.ranks.tolist(), order.tolist()]

        return work

    expected = [ranked(count)(0) for count in (8, 1)]  # of one user only one process has any
    assert options.get("search") != "exact" or "proven for 1" not in expected[0][2]
    assert ask(ranked(8), ranked(1)) == [json.loads(json.dumps(expected))] * 3


# A run


def run(folder: Path) -> list:
    return pipeline.run(backbone(), TOKENIZER, samples(), SETTINGS, folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run of two processes, with nobody's complaint; both have given the same records."""
    folder = tmp_path_factory.mktemp("two")

    def work(number: int) -> None:
        records = run(folder / "run")
        (folder / f"records-{number}").write_text(json.dumps([record.model_dump(mode="json") for record in records]))

    ended = together(folder, work)
    assert [code for code, _ in ended] == [0, 0] and ended[1][1] == ""
    assert (folder / "records-0").read_text() == (folder / "records-1").read_text()
    return folder / "run"


def files(folder: Path) -> list[str]:
    """The files of a run by kind: the times in TensorBoard's names, and how the teacher's states are kept, differ from run to run."""
    kept = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "cache")
    return sorted(re.sub(r"/events.*|/\d+\.\d+(?=/)", lambda found: found[0][:2], str(path)) for path in kept)


def test_two_processes_leave_what_one_does(one, two):
    assert files(two) == files(one)
    for step in STEPS:
        ours, theirs = (json.loads((folder / step / "metrics.json").read_text()) for folder in (two, one))
        assert ours["valid_loss"] == pytest.approx(theirs["valid_loss"], abs=1e-5)
        for kind in ("final", "unrestored"):
            without_costs = [{**(record[kind] or {}), **dict.fromkeys(COSTS)} for record in (ours, theirs)]
            assert without_costs[0] == without_costs[1]
        weights, others = (load_file(folder / step / "model.safetensors") for folder in (two, one))
        assert all(torch.allclose(weights[name], others[name], atol=1e-3) for name in others)  # sums in another order, from step to step
    for path in (one / "ranks").iterdir():
        assert (two / "ranks" / path.name).read_text() == path.read_text()


def test_two_processes_make_the_same_plans_and_losses(one, two):
    for step in STEPS[1:]:
        ours, theirs = (json.loads((folder / step / "plan.json").read_text()) for folder in (two, one))
        scales = [plan.pop("norm_scales") or {} for plan in (ours, theirs)]
        assert ours == theirs and scales[0] == pytest.approx(scales[1], rel=1e-5)
    for step in STEPS:
        events = [EventAccumulator(str(folder / "tensorboard" / step)).Reload() for folder in (two, one)]
        for tag in ("train/loss", "eval/loss"):
            losses = [[(event.step, event.value) for event in found.Scalars(tag)] for found in events]
            assert len(losses[0]) > 1 and losses[0] == [(step, pytest.approx(value, abs=1e-5)) for step, value in losses[1]]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_and_the_same_call_ends_it_as_if_uncut(two, tmp_path, monkeypatch, victim):
    steps, original = [], AnswerTrainer.training_step

    def dying(self, *args, **kwargs):
        steps.append(1)
        if rank() == victim and len(steps) == 4:  # the second step of the method's second training
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(AnswerTrainer, "training_step", dying)
        ended = together(tmp_path, lambda _: run(tmp_path / "run"))
    survivor = 1 - victim
    assert ended[victim][0] == -signal.SIGKILL
    assert ended[survivor][0] == 1 and ended[survivor][1].endswith("process 1 of 2: " * survivor + DIED) and "Traceback" not in ended[survivor][1]
    assert [path.name for path in (tmp_path / "run" / ".work" / "2-width").glob("checkpoint-*")]
    assert [code for code, _ in together(tmp_path, lambda _: run(tmp_path / "run"))] == [0, 0]
    for step in STEPS:
        weights, others = (load_file(folder / step / "model.safetensors") for folder in (tmp_path / "run", two))
        assert all(torch.equal(weights[name], others[name]) for name in others)
    assert set(files(tmp_path / "run")) == set(files(two))


# How they end


def fail(error: BaseException) -> None:
    raise error


def end(tmp_path: Path, work) -> list[tuple[int, str]]:
    def joining(number: int) -> None:
        with joined(cpu=True):
            work(number)
            told("")

    return together(tmp_path, joining)


def test_a_mistake_of_all_is_said_once(tmp_path):
    assert end(tmp_path, lambda _: fail(UserError("a=1 is bad"))) == [(2, "1 problem:\n  - a=1 is bad\n"), (2, "")]
    assert together(tmp_path, lambda _: fail(UserError("before all have joined"))) == [(2, "1 problem:\n  - before all have joined\n"), (2, "")]


def test_a_mistake_of_one_names_it_and_the_others_are_silent(tmp_path):
    ended = end(tmp_path, lambda number: fail(UserError("a=1 is bad")) if number else None)
    assert ended == [(1, ""), (2, "process 1 of 2: 1 problem:\n  - a=1 is bad\n")]


def test_a_defect_keeps_its_traceback(tmp_path):
    (code, lost), (_, said) = end(tmp_path, lambda number: fail(ZeroDivisionError("of 1")) if number else None)
    assert code == 1 and lost == "\n" + DIED and said.endswith("ZeroDivisionError: of 1\n")


def test_what_the_launcher_ends_says_so_once(tmp_path):
    """torchrun sends SIGTERM to all when one has ended."""
    ended = end(tmp_path, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert ended == [(143, f"\nterminated, or {DIED}"), (143, "")]


def test_processes_with_other_settings_are_refused(tmp_path):
    (code, said), other = end(tmp_path, lambda number: RunFolder(tmp_path / "run", f"run {number}").check())
    assert other[0] == 2 and "process 1 has other settings, data or model files than process 0; start all with the same command" in other[1]
    assert (code, said) == (1, "")


# Of the command line


def test_a_launched_command_gives_the_table_that_one_process_gives(tmp_path):
    """With all that a run can have: a compared model, an assistant, and notes. torchrun itself starts the processes."""
    write_small(tmp_path / "dataset")
    argv = [
        *(f"--data_path={tmp_path / 'dataset'}", "--dataset=small", "--model=PruneRec", "--show_progress=false", "--device=cpu"),
        *("--compare=[SASRec]", "--baselines.epochs=1", "--ranking.assistant=SASRec", "--ranking.beams=5", "--topk=2,5", "--test_rows=21"),
        *("--epochs=0", "--restore.epochs=0", "--calibration_samples=4", "--steps=[{do: finetune}, {do: mlp, intermediate: 64}]"),
    ]  # training has its own tests: what an untrained model's heads are worth hangs on the last bits of its weights
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launched = subprocess.Popen(
        [*launcher, *argv, f"--checkpoint_dir={tmp_path / 'two'}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    from recbole_prunerec.quick_start import run  # takes seconds to import

    table = run(load_arguments([*argv, f"--checkpoint_dir={tmp_path / 'one'}"]))
    out, err = launched.communicate(timeout=200)
    assert launched.returncode == 0, err
    assert out.count("finished") == table.count("finished") == 1 and err.count("step 1 of 2") == 1
    ours, theirs = (json.loads((tmp_path / name / "latest" / "results.json").read_text()) for name in ("two", "one"))
    for row, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert {**row, **dict.fromkeys(COSTS)} == {**other, **dict.fromkeys(COSTS)}
    assert ours["device"] == theirs["device"] + ", 2 processes"
    assert ours["command"].startswith("torchrun --nnodes=1 --nproc_per_node=2 run_recbole.py ")
    assert ours["comparisons"] == theirs["comparisons"]
    assert files((tmp_path / "two" / "latest").resolve()) == files((tmp_path / "one" / "latest").resolve())
