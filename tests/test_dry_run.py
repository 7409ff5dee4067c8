"""`--dry_run` on MovieLens 100k: what it says, and that it makes no weights and writes nothing."""

import re
from types import SimpleNamespace

import pytest
import torch
from tiny import llama, qwen2
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from recbole_prunerec import dry_run as dry
from recbole_prunerec import quick_start
from recbole_prunerec.arguments import USAGE, load_arguments
from recbole_prunerec.backbone import load
from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.errors import UserError
from recbole_prunerec.report.tables import si
from recbole_prunerec.text.tokenizer import train_tokenizer

RATE = 2e9  # multiply-adds a second, in place of this machine's


def refuse(*args, **kwargs):
    raise AssertionError("weights were read")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, where weights can be neither read nor drawn but on the meta device, and where time is not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)

    def on_meta(config):
        model = AutoModelForCausalLM.from_config(config)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        return model

    monkeypatch.setattr(dry, "AutoModelForCausalLM", SimpleNamespace(from_config=on_meta))
    monkeypatch.setattr(dry, "measured_rate", lambda *args: RATE)
    return tmp_path


def ask(*argv: str) -> str:
    return quick_start.run(load_arguments(["--dry_run", *argv]))


def table(report: str) -> dict[str, list[str]]:
    """Cells by the first of each line; cells are two spaces or more apart."""
    lines = report.split("\n\n")[1].splitlines()
    rule = next(index for index, line in enumerate(lines) if line.startswith("---"))
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in lines[rule + 1 :])}


def test_the_default_run(here):
    report = ask("--model=PruneRec")
    assert report.startswith(
        "ml-100k: 943 users, 1,349 items, 99,287 interactions; samples: 78,675 train, 9,834 validate, 9,835 test, "
        "of which 3,000 are ranked, 500 of them between steps\n"
    )
    rows = table(report)
    assert list(rows) == ["backbone", "1 finetune", "2 width", "3 mlp", "4 depth"]
    assert rows["backbone"] == ["4", "128", "4", "2", "32", "384", "1,500", "789 k (100.0 %)", "981 k (100.0 %)"]
    assert rows["1 finetune"][:9] == rows["backbone"]
    assert rows["2 width"][:9] == ["4", "64", "2", "1", "32", "384", "1,500", "345 k (43.8 %)", "441 k (45.0 %)"]  # as a run measures it: README
    assert rows["3 mlp"][:9] == ["4", "64", "2", "1", "32", "128", "1,500", "149 k (18.8 %)", "245 k (24.9 %)"]
    assert rows["4 depth"][:9] == ["2", "64", "2", "1", "32", "128", "1,500", "74.3 k (9.4 %)", "170 k (17.4 %)"]
    assert report.endswith("\nA dry run: nothing was trained or written. The formulas: docs/training.md.\n")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "passes", "budget", "floats"),
    [
        ([], 3, 4096, "((layers + 1) (6 hidden + 2 head width (heads + K/V heads) + 4 MLP) + 2 hidden)"),
        (
            ["--softmax=vocabulary", "--restore.cache=false"],
            3,
            4096,
            "((layers + 1) (6 hidden + 2 head width (heads + K/V heads) + 4 MLP) + 2 hidden)",
        ),
        (
            ["--gradient_checkpointing=true", "--micro_batch_tokens=1000"],
            4,
            1000,
            "(1.5 (6 hidden + 2 head width (heads + K/V heads) + 4 MLP) + (layers + 2) hidden)",
        ),
    ],
)
def test_costs_follow_from_the_formulas(monkeypatch, argv, passes, budget, floats):
    """Work, memory and disk as they are handed to the report, and in its words."""
    seen = {}

    def watched(name, real):
        def call(*args):
            seen[name] = real(*args)
            return seen[name]

        return call

    for name in ("planned_work", "training_memory", "count_tokens", "largest_batch", "cache_bytes"):
        monkeypatch.setattr(dry, name, watched(name, getattr(dry, name)))
    report = ask("--model=PruneRec", "--preset=quick", "--epochs=40", *argv)
    work, tokens, labels = seen["planned_work"], seen["count_tokens"], seen["largest_batch"]
    train, valid, _ = tokens.epoch
    assert f"  {si(sum(work))} planned multiply-adds at 2.00 G a second" in report
    assert f"trains on {si(train.tokens)} tokens, {passes} times, and {si(train.logits)} logits, 3 times." in report
    assert re.search(rf"Time: at least about {sum(work) / RATE / 60:.0f} min on ", report)
    rows = table(report)
    assert [row[-2] for row in list(rows.values())[1:]] == [f"{held / 2**20:.0f} MiB" for held in seen["training_memory"]]
    assert f"Memory: at most {max(seen['training_memory']) / 2**20:.0f} MiB" in report
    assert f"a micro-batch in float32: {labels.numel():,} tokens of 4 bytes times\n  {floats}, its loss" in report
    assert labels.numel() <= budget
    parameters = [981_000, 441_000, 245_000, 170_000]  # the table's, to three digits
    kept, peak = (int(size) for size in re.search(r"Disk: (\d+) MiB .*; at most (\d+) MiB", report).groups())
    assert kept == round(4 * sum(parameters) / 2**20) and peak == round(40 * parameters[0] / 2**20)
    assert f"{seen['cache_bytes'] / 2**20:.0f} MiB for what teachers say, in saved/cache: " in report
    assert f"for each of {si(train.answers)} positions an epoch" in report
    layers = 789_000 * (40 * (passes * train.tokens + valid.tokens))
    head = 128 * 40 * (3 * train.logits + valid.logits)
    assert work[0] == pytest.approx(layers + head + 981_000 * 64 * tokens.user, rel=0.01)


@pytest.mark.parametrize("make", [qwen2, llama])
def test_a_folder_is_judged_by_its_config_and_tokenizer_alone(here, make):
    model = make(0, torch.float32, vocab_size=300)
    model.config.save_pretrained(here / "model")
    train_tokenizer(["Film A", "Film B"], 300).save_pretrained(here / "model")
    settings = load_arguments(["--steps=[{do: finetune}, {do: mlp, intermediate: 28}]", "--template=bigrec", "--packing=false"]).settings
    rows = table(dry.dry_run(settings.model_copy(update={"backbone": str(here / "model")})))
    sizes = Sizes.of(model)
    assert rows["backbone"] == [
        *("3", "48", "6", "2", "8", "56", "300"),
        f"{si(sum(weight.numel() for name, weight in model.named_parameters() if 'embed' not in name and 'head' not in name))} (100.0 %)",
        f"{si(model.num_parameters())} (100.0 %)",
    ]
    assert (rows["2 mlp"][5], rows["2 mlp"][8].split(" (")[0]) == ("28", si(sizes.total_parameters - 3 * 3 * 48 * 28))


@pytest.mark.parametrize(("argv", "named"), [([], ", and all of SASRec."), (["--model=PruneRec,SLMRec"], ", and all of SASRec, E4SRec, SLMRec.")])
def test_models_whose_training_is_not_reckoned_are_named(argv, named):
    assert f"reading the data{named}\n" in ask(*argv)


def test_the_backbone_is_stated(here, monkeypatch):
    said = []
    monkeypatch.setattr("recbole_prunerec.loading.logger.info", lambda form, *argv: said.append(form % argv))
    ask("--model=PruneRec")
    (lines,) = [text for text in said if text.startswith("backbone tiny: family qwen2; random weights, float32, ")]
    assert re.search(r"\nbackbone tiny: 788,608 non-embedding parameters, 19\d,\d{3} in a tied embedding; training all of them holds 15 MiB", lines)


def test_other_models_show_their_data_only(here):
    report = ask("--model=SASRec", "--test_rows=200")
    assert report.startswith("ml-100k: 943 users") and "200 are ranked" in report and report.count("\n") == 3
    assert list(here.iterdir()) == []


def test_steps_that_do_not_fit_are_told_where_only_the_config_knows(here):
    model = qwen2(0, torch.float32, vocab_size=300)
    model.config.save_pretrained(here / "model")
    train_tokenizer(["Film A"], 300).save_pretrained(here / "model")
    settings = load_arguments([]).settings.model_copy(update={"backbone": str(here / "model")})
    with pytest.raises(UserError) as caught:
        dry.dry_run(settings)
    assert str(caught.value).splitlines() == [
        "steps.2.hidden=64 is more than the model's 48",
        "steps.3.intermediate=128 is more than the model's 56",
        f"preset=tiny was made for tiny; steps that fit this backbone come from: python -m recbole_prunerec plan --backbone={here / 'model'}",
    ]


def test_a_backbone_that_is_not_there_is_told(monkeypatch):
    def missing(name, key, weights, revision):
        assert not weights and revision is None
        raise UserError(f"{key}={name} is not on the hub")

    settings = load_arguments(["--model=PruneRec"]).settings.model_copy(update={"backbone": "nobody/nothing"})
    monkeypatch.setattr(load, "hub_folder", missing)
    with pytest.raises(UserError) as caught:
        dry.dry_run(settings)
    assert str(caught.value) == "backbone=nobody/nothing is not on the hub"


@pytest.mark.parametrize(("argv", "expected"), [([], False), (["--dry_run"], True), (["--dry_run=true"], True), (["--dry_run=no"], False)])
def test_the_word(argv, expected):
    arguments = load_arguments(argv)
    assert "\n  --dry_run " in USAGE
    assert (arguments.dry_run, arguments.fresh) == (expected, False)
    with pytest.raises(UserError) as caught:
        load_arguments(["--dry_run=perhaps"])
    assert str(caught.value) == "dry_run='perhaps': expected true, false, or the bare --dry_run"


def test_the_rate_is_that_of_the_models_products(monkeypatch):
    """With a clock that takes a tenth of a second for a pair of products, the first of them a second."""
    monkeypatch.undo()
    took = iter([1.0] + [0.1] * 100)

    class Clock:
        def __init__(self, device):
            assert device == torch.device("cpu")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.seconds = next(took)

    monkeypatch.setattr(dry, "Stopwatch", Clock)
    sizes = Sizes(hidden=8, layers=2, heads=4, kv_heads=2, head_dim=2, intermediate=16, vocab=50, tied=True)
    assert dry.measured_rate(32, sizes, torch.device("cpu"), torch.float32, 2.0) == pytest.approx(2 * 32 * 8 * 16 / 0.1)
    assert 10 <= 101 - len(list(took)) <= 12
