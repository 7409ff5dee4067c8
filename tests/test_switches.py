"""Every setting of the method reaches the place where it acts. What it does there is tested beside the code."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from tiny import qwen2

from recbole_prunerec import pipeline
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone.load import Backbone, load_step
from recbole_prunerec.data.samples import Part, Samples
from recbole_prunerec.errors import UserError
from recbole_prunerec.pipeline import Method
from recbole_prunerec.prune.decide import decide_mlp, decide_width
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.report.results import Measured
from recbole_prunerec.restore.losses import LOSSES
from recbole_prunerec.restore.train import Distillation, Optimisation
from recbole_prunerec.restore.tutor import Tutor
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.settings import Restore, Settings
from recbole_prunerec.storage import read_json
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.packing import PackedRows, SampleRows
from recbole_prunerec.text.prompts import TEMPLATES, Prompts
from recbole_prunerec.text.tokenizer import train_tokenizer

TITLES = [f"Film {letter}" for letter in "ABCDEFGHIJKLMNOPQRST"]
TOKENIZER = train_tokenizer(TITLES, 290)
PROMPTS = Prompts(TOKENIZER, Catalogue.build([str(item) for item in range(21)], ["", *TITLES], [0] * 21), "list", 256)
FINETUNE, WIDTH, MLP = {"do": "finetune"}, {"do": "width", "heads": 3, "hidden": 24}, {"do": "mlp", "intermediate": 28}


def part(sequences: list[list[int]]) -> Part:
    """One sample a position, by a plain loop."""
    rows = [(user, items[max(0, place - 10) : place], items[place]) for user, items in enumerate(sequences) for place in range(1, len(items))]
    histories = np.array([[*history, *[0] * (10 - len(history))] for _, history, _ in rows])
    return Part(np.array([row[0] for row in rows]), histories, np.array([len(row[1]) for row in rows]), np.array([row[2] for row in rows]))


SEQUENCES = [np.random.default_rng(user).integers(1, 21, size=length).tolist() for user, length in enumerate([5, 14, 30])]
SAMPLES = Samples(part(SEQUENCES), part([[3, *range(1, 21)]]), part([[4, 5, 6]]))


@dataclass
class Trained:
    """What one call of `train` was given; the guide's weights as they were then."""

    rows: SampleRows | PackedRows
    valid: SampleRows
    how: Optimisation
    distillation: Distillation | None
    guide: dict[str, torch.Tensor]
    tutor: Tutor | None


class Run:
    """The method over a tiny random model, its training replaced by a small change of the weights that notes what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, **settings) -> None:
        self.settings = Settings(show_progress=False, test_rows=2, **settings)
        self.folder, self.trained, self.calibration = RunFolder(folder), [], []
        self._train = pipeline.train
        model = qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER), num_hidden_layers=4)
        measured = Measured(test_rows=2, metrics={"hit@10": 0.5}, seconds_per_user=1.0, peak_memory_bytes=1)
        backbone, counts = Backbone(model, TOKENIZER, "tiny", True), {"all": 2, "few": 2}
        self.method = Method(self.settings, backbone, PROMPTS, SAMPLES, self.folder, lambda *_: measured, counts, folder / "cache")
        monkeypatch.setattr(pipeline, "train", self._note)
        monkeypatch.setattr(pipeline, "DECISIONS", {name: self._noting(decide) for name, decide in pipeline.DECISIONS.items()})

    def training_rows(self):
        """The rows that the finetune step trains on."""
        self.method.run()
        return self.trained[0].rows

    def _note(self, model, rows, valid, *more):
        (how,), guides, tutors = ([value for value in more if isinstance(value, kind)] for kind in (Optimisation, Distillation, Tutor))
        weights = {name: value.clone() for guide in guides for name, value in guide.teacher.state_dict().items()}
        self.trained.append(Trained(rows, valid, how, guides[0] if guides else None, weights, tutors[0] if tutors else None))
        if how.epochs == 0:
            return self._train(model, rows, valid, *more)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        return 1.0

    def _noting(self, decide):
        def noted(model, batches, *more):
            self.calibration.append(batches)
            return decide(model, batches, *more)

        return noted

    def weights(self, step: str) -> dict[str, torch.Tensor]:
        return load_step(self.folder.path / step).state_dict()

    def plan(self, step: str) -> Plan:
        return read_json(self.folder.path / step / "plan.json", Plan)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def labelled(rows: SampleRows | PackedRows) -> list[tuple[int, int]]:
    """For each row of the first epoch, its tokens and those that the loss falls on."""
    return [(len(rows[key].ids), int((rows[key].labels != -100).sum())) for key in rows.keys(0)]


# How to train

TRAINING = {
    "epochs": 4,
    "learning_rate": 0.02,
    "schedule": "cosine",
    "warmup_steps": 7,
    "train_batch_size": 9,
    "micro_batch_tokens": 300,
    "gradient_checkpointing": True,
    "weight_decay": 0.3,
    "adam_betas": (0.8, 0.95),
    "clip": 0.7,
    "stopping_step": 2,
    "precision": "bfloat16",
    "seed": 11,
}
RENAMED = {"train_batch_size": "batch_size", "adam_betas": "betas"}


def test_training_settings_reach_finetuning_and_restoration(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, steps=[FINETUNE, MLP], restore={"epochs": 2}, **TRAINING)
    run.method.run()
    expected = {RENAMED.get(key, key): value for key, value in TRAINING.items()}
    finetune, restore = (asdict(call.how) for call in run.trained)
    assert {key: finetune[key] for key in expected} == expected
    assert {key: restore[key] for key in expected} == {**expected, "epochs": 2}
    assert all(value != Settings.model_fields[key].default for key, value in TRAINING.items())


@pytest.mark.parametrize("asked", ["auto", "eager", "sdpa", "flash_attention_2"])
def test_flash_attention_reaches_training_and_all_else_the_model_itself(monkeypatch, tmp_path, asked):
    run = Run(monkeypatch, tmp_path, steps=[FINETUNE, MLP], attn_implementation=asked)
    run.method.run()
    assert [call.how.attn_implementation for call in run.trained] == ["flash_attention_2" if asked == "flash_attention_2" else None] * 2


# Restoration

OTHERWISE = {"kd_weight": 0.25, "kd_loss": "js", "temperature": 3.0, "teacher": "previous", "epochs": 5, "learning_rate": 0.004, "cache": False}
OTHERWISE |= {"start": "random", "chunkings": 1, "tutor_weight": 0.3}
TUTORED = {"tutor": {"model": "SASRec"}, "softmax": "catalogue"}  # without which no tutor has a weight


def restoration(call: Trained) -> dict:
    given = {key: getattr(call.distillation, key) for key in ("kd_weight", "kd_loss", "temperature")}
    chunkings = 1 if call.rows.keys(0) == call.rows.keys(1) else None
    cached = call.distillation.cache is not None
    weight = 0.0 if call.tutor is None else call.tutor.weight
    given |= {"epochs": call.how.epochs, "learning_rate": call.how.learning_rate, "cache": cached, "chunkings": chunkings}
    return {**given, "tutor_weight": weight}


@pytest.mark.parametrize("where", ["run", "step"])
def test_restoration_settings_reach_the_training_of_a_run_or_of_one_step(monkeypatch, tmp_path, where):
    """Both ways: the run's values in a step that names none, and a step's own values over the run's."""
    step, run_restore = ({**MLP, "restore": OTHERWISE}, {}) if where == "step" else (MLP, OTHERWISE)
    run = Run(monkeypatch, tmp_path, steps=[FINETUNE, WIDTH, step], restore=run_restore, learning_rate=0.01, **TUTORED)
    run.method.tutor = lambda histories: pytest.fail("training is replaced")
    run.method.run()
    other = {key: value for key, value in OTHERWISE.items() if key not in ("teacher", "start")}
    default = {"kd_weight": 0.8, "kd_loss": "forward_kl", "temperature": 1.0, "epochs": 3, "learning_rate": 0.01, "cache": True, "chunkings": None}
    default |= {"tutor_weight": 0.0}
    assert run.trained[0].distillation is None
    assert [restoration(call) for call in run.trained[1:]] == [default if where == "step" else other, other]
    assert set(OTHERWISE) == set(Restore.model_fields)


@pytest.mark.parametrize("key", OTHERWISE)
def test_a_step_may_differ_from_the_run_in_one_key_alone(key):
    settings = Settings(steps=[FINETUNE, {**MLP, "restore": {key: OTHERWISE[key]}}, WIDTH], restore={"epochs": 1, "kd_weight": 0.5}, **TUTORED)
    expected = {**Restore().model_dump(), "epochs": 1, "kd_weight": 0.5}
    own, others = (settings.restore_of(step).model_dump() for step in settings.steps[1:])
    assert own == {**expected, key: OTHERWISE[key]} and others == expected


def test_a_step_may_take_back_what_the_run_says():
    """0 and the run's defaults are values, not absences."""
    settings = Settings(
        steps=[FINETUNE, {**MLP, "restore": {"epochs": 0, "kd_weight": 0.0, "teacher": "original"}}], restore={"epochs": 2, "teacher": "previous"}
    )
    assert settings.restore_of(settings.steps[1]) == Restore(epochs=0, kd_weight=0.0, teacher="original")


@pytest.mark.parametrize("teacher", ["original", "previous"])
def test_the_teacher_is_the_finetuned_model_or_the_one_before_the_cut(monkeypatch, tmp_path, teacher):
    run = Run(monkeypatch, tmp_path, steps=[FINETUNE, WIDTH, MLP], restore={"teacher": teacher})
    run.method.run()
    guides = [call.guide for call in run.trained[1:]]
    assert same(guides[0], run.weights("1-finetune"))
    assert same(guides[1], run.weights({"original": "1-finetune", "previous": "2-width"}[teacher]))


@pytest.mark.parametrize("start", ["cut", "random"])
def test_restoration_begins_with_the_cut_model_or_with_weights_drawn_by_the_seed(monkeypatch, tmp_path, start):
    """Training multiplies weights by 1.01 here."""
    run = Run(monkeypatch, tmp_path, steps=[FINETUNE, WIDTH], restore={"start": start})
    run.method.run()
    cut = apply(run.plan("2-width"), load_step(tmp_path / "1-finetune"))
    torch.manual_seed(run.settings.seed + 2)
    drawn = type(cut)(cut.config)
    expected, other = (cut, drawn) if start == "cut" else (drawn, cut)
    assert same(run.weights("2-width"), {name: value * 1.01 for name, value in expected.state_dict().items()})
    assert {name: value.shape for name, value in other.state_dict().items()} == {name: value.shape for name, value in cut.state_dict().items()}
    assert not same(drawn.state_dict(), cut.state_dict())


def test_a_run_from_before_there_was_a_start_is_found_again():
    steps = [FINETUNE, WIDTH, {**MLP, "restore": {"epochs": 1}}]
    found, same = Settings(steps=steps).identity(), [*steps[:2], {**MLP, "restore": {"epochs": 1, "start": "cut"}}]
    assert "start" not in found["restore"] and all("start" not in step.get("restore", {}) for step in found["steps"])
    assert found == Settings(steps=steps, restore={"start": "cut"}).identity() == Settings(steps=same).identity()
    drawn = Settings(steps=steps, restore={"start": "random"}).identity()
    assert drawn not in (found, Settings(steps=same, restore={"start": "random"}).identity())
    assert Settings(steps=[*steps[:2], {**MLP, "restore": {"epochs": 1, "start": "random"}}]).identity() != found
    assert "chunkings" not in found["restore"] and all("chunkings" not in step.get("restore", {}) for step in found["steps"])
    turns = [*steps[:2], {**MLP, "restore": {"epochs": 1, "chunkings": 1}}]
    assert found not in (Settings(steps=turns).identity(), Settings(steps=steps, restore={"chunkings": 1}).identity())


def test_a_step_tells_what_it_took_unless_it_was_cut(monkeypatch, tmp_path):
    steps = [FINETUNE, WIDTH, {**MLP, "restore": {"epochs": 0}}]
    assert all(0 < record.seconds < 60 for record in Run(monkeypatch, tmp_path, steps=steps).method.run())
    run = Run(monkeypatch, tmp_path, steps=steps)
    run.folder.drop([tmp_path / "2-width", tmp_path / "3-mlp"])
    (tmp_path / ".work" / "2-width").mkdir(parents=True)  # as a kill leaves it
    finetune, width, mlp = run.method.run()
    assert finetune.seconds > 0 and width.seconds is None and mlp.seconds > 0
    assert finetune.training_memory_bytes > 2**20 and width.training_memory_bytes > 2**20 and mlp.training_memory_bytes is None


def test_without_restoration_the_cut_model_stays_as_it_is(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path, steps=[FINETUNE, WIDTH], epochs=2, restore={"epochs": 0})
    records = run.method.run()
    teacher = load_step(tmp_path / "1-finetune")
    assert same(run.weights("2-width"), apply(run.plan("2-width"), teacher).state_dict())
    assert records[1].valid_loss is None and records[0].valid_loss == 1.0


def test_settings_name_the_losses_and_templates_that_there_are():
    assert set(get_args(Restore.model_fields["kd_loss"].annotation)) == set(LOSSES)
    assert set(get_args(Settings.model_fields["template"].annotation)) == set(TEMPLATES)


# Rows

TARGETS = sum(len(sequence) - 1 for sequence in SEQUENCES)
ANSWER = len(PROMPTS.answer(1))  # all titles have as many tokens


def test_without_packing_a_row_is_a_sample(monkeypatch, tmp_path):
    rows = Run(monkeypatch, tmp_path, packing=False).training_rows()
    before = len(PROMPTS.prompt([]))
    expected = [before + len(items) * (ANSWER + 1) + ANSWER for s in SEQUENCES for n in range(1, len(s)) for items in [s[max(0, n - 10) : n]]]
    assert {len(PROMPTS.answer(item)) for item in range(1, 21)} == {ANSWER}
    assert labelled(rows) == [(length, ANSWER) for length in expected]


@pytest.mark.parametrize("stride", [1, 4, 11])
def test_packing_spans_a_history_and_its_target_and_moves_by_the_stride(monkeypatch, tmp_path, stride):
    rows = Run(monkeypatch, tmp_path, packing_stride=stride).training_rows()
    keys = rows.keys(0)
    starts = {number: [start for sequence, start, _, _ in keys if sequence == number and start] for number in range(3)}
    assert all(np.diff(starts[number]).tolist() == [stride] * (len(starts[number]) - 1) for number in range(3)) and len(starts[2]) > 1
    assert max(stop - start for _, start, stop, _ in keys) == 11
    targets = sum(tokens for _, tokens in labelled(rows)) // ANSWER
    assert targets == TARGETS if stride < 11 else 0.8 * TARGETS < targets < TARGETS
    assert Settings(packing_stride=stride, MAX_ITEM_LIST_LENGTH=3).packing_stride == min(stride, 4)
    other = Run(monkeypatch, tmp_path / "other", packing_stride=stride, seed=1).training_rows()
    assert (other.keys(0) != keys) == (stride > 1)  # where chunks start is drawn by the run's seed


def test_a_restoration_takes_its_chunkings_in_turn(monkeypatch, tmp_path):
    steps = [FINETUNE, {**MLP, "restore": {"chunkings": 2}}, {"do": "depth", "layers": 2}]
    run = Run(monkeypatch, tmp_path, steps=steps, restore={"chunkings": 1})
    run.method.run()
    finetuned, mlp, depth = ([trained.rows.keys(epoch) for epoch in range(4)] for trained in run.trained)
    assert finetuned[0] != finetuned[1] != finetuned[2]
    assert mlp == [finetuned[0], finetuned[1]] * 2 and depth == [finetuned[0]] * 4


def test_the_longest_history_sets_the_chunk(monkeypatch, tmp_path):
    rows = Run(monkeypatch, tmp_path, MAX_ITEM_LIST_LENGTH=4).training_rows()
    assert max(stop - start for _, start, stop, _ in rows.keys(0)) == 5


@pytest.mark.parametrize("count", [None, 6, 1000])
def test_valid_rows_are_drawn_by_the_runs_seed(monkeypatch, tmp_path, count):
    drawn = []
    for seed in (1, 1, 2):
        run = Run(monkeypatch, tmp_path / f"{len(drawn)}", valid_rows=count, seed=seed)
        run.method._train(run.method.backbone.model, 1, "finetune", 1, 0.1)
        valid = run.trained[0].valid
        drawn.append([tuple(valid[row].ids.tolist()) for row in range(len(valid))])
    every = [tuple(SampleRows(PROMPTS, SAMPLES.valid)[row].ids.tolist()) for row in range(20)]
    assert drawn[0] == drawn[1] and set(drawn[0]) <= set(every) and len(set(drawn[0])) == len(drawn[0]) == (6 if count == 6 else 20)
    assert (drawn[2] != drawn[0]) == (count == 6)


@pytest.mark.parametrize("count", [5, 40, 1000])
def test_calibration_samples_are_drawn_by_the_runs_seed_and_are_the_same_for_every_step(monkeypatch, tmp_path, count):
    drawn = []
    for seed in (1, 2):
        run = Run(monkeypatch, tmp_path / f"{seed}", calibration_samples=count, seed=seed, steps=[FINETUNE, {"do": "depth", "layers": 3}, MLP])
        run.method.run()
        rows = [
            [tuple(ids[: mask.sum()].tolist()) for batch in batches for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
            for batches in run.calibration
        ]
        assert rows[0] == rows[1]
        drawn.append(rows[0])
    every = {tuple(SampleRows(PROMPTS, SAMPLES.train)[row].ids.tolist()) for row in range(TARGETS)}
    assert set(drawn[0]) <= every and [len(rows) for rows in drawn] == [min(count, TARGETS)] * 2
    assert (drawn[0] != drawn[1]) == (count < TARGETS)


# Steps


def test_a_step_is_decided_with_its_own_settings_and_seed_and_repeats_have_their_own_folders(monkeypatch, tmp_path):
    heads = {**WIDTH, "heads": 6, "hidden": 36, "criterion": "random"}
    steps = [FINETUNE, {**MLP, "intermediate": 40, "tau": 0.2}, heads, {**MLP, "criterion": "random"}, {**heads, "hidden": 30}]
    run = Run(monkeypatch, tmp_path, steps=[*steps, {"do": "depth", "layers": 3}, {"do": "depth", "layers": 1}], seed=5)
    records = run.method.run()
    names = ["1-finetune", "2-mlp", "3-width", "4-mlp", "5-width", "6-depth", "7-depth"]
    assert [f"{record.number}-{record.name}" for record in records] == names
    assert all((tmp_path / name / "model.safetensors").exists() for name in names)
    for number, decide in ((2, decide_mlp), (3, decide_width), (4, decide_mlp), (5, decide_width)):
        model = load_step(tmp_path / names[number - 2])
        arguments = (run.method.calibration(torch.device("cpu")), run.method.softmax, run.settings.steps[number - 1], None)
        assert run.plan(names[number - 1]) == decide(model, *arguments, (5, number)).plan
        if number > 2:
            assert run.plan(names[number - 1]) != decide(model, *arguments, (6, number)).plan
    sizes = [(r.sizes.heads, r.sizes.hidden, r.sizes.intermediate, r.sizes.layers) for r in records]
    assert sizes == [(6, 48, 56, 4), (6, 48, 40, 4), (6, 36, 40, 4), (6, 36, 28, 4), (6, 30, 28, 4), (6, 30, 28, 3), (6, 30, 28, 1)]


STEPS = "--steps=[{do: finetune}, {do: %s}]"


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (
            "width, heads: 2, hidden: 64, scope: global, greedy: true",
            "greedy=true chooses heads layer by layer, got scope=global, which chooses for all at once; choose scope=layer or greedy=false",
        ),
        (
            "width, heads: 2, hidden: 64, criterion: random, greedy: true",
            "greedy is read by criterion=prunerec alone, got criterion=random; leave it out",
        ),
        (
            "width, heads: 2, hidden: 64, criterion: random, recursion: 0",
            "recursion is read by criterion=prunerec alone, got criterion=random; leave it out",
        ),
        ("mlp, intermediate: 9, criterion: random, tau: 1", "tau is read by criterion=prunerec alone, got criterion=random; leave it out"),
        ("depth, layers: 2, criterion: random, search: oneshot", "search is read by criterion=prunerec alone, got criterion=random; leave it out"),
        (
            "depth, layers: 2, criterion: randm",
            "criterion=randm: expected one of prunerec, random, magnitude, minitron, shortgpt, laco, blockpruner; did you mean 'random'?",
        ),
        (
            "mlp, intermediate: 9, criterion: laco",
            "criterion=laco: expected one of prunerec, random, magnitude, wanda, sparsegpt, llm_pruner, flap, minitron",
        ),
        (
            "width, heads: 2, hidden: 64, criterion: wanda, hidden_score: gradient",
            "hidden_score is read by criterion=prunerec, sparsegpt, flap alone, got criterion=wanda; leave it out",
        ),
        ("mlp, intermediate: 9, taylor: mix", "taylor is read by criterion=llm_pruner alone, got criterion=prunerec; leave it out"),
        (
            "mlp, intermediate: 9, criterion: llm_pruner, taylor: secnd",
            "taylor=secnd: expected one of first, second, mix, vector; did you mean 'second'?",
        ),
        ("width, heads: 2, hidden: 64, scope: globl", "scope=globl: expected one of layer, global; did you mean 'global'?"),
    ],
)
def test_what_would_change_nothing_is_refused(step, problem):
    with pytest.raises(UserError) as caught:
        load_arguments([STEPS % step])
    assert str(caught.value) == f"steps.2.{problem}"


def test_what_a_random_criterion_takes_is_let_through():
    step = "width, heads: 3, hidden: 64, criterion: random, scope: global, kv_policy: expand, norm_rescale: false, recursion: 0.7"
    (_, width) = load_arguments([STEPS % step]).settings.steps
    assert (width.criterion, width.scope) == ("random", "global")
