"""Fine-tuning beside a model over item ids: its loss against sums over whole titles, and whole runs with SASRec as the tutor."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from naive import closed
from small_data import write_small
from tiny import qwen2

from recbole_prunerec import pipeline
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone.softmax import softmax_of
from recbole_prunerec.compared.systems import models_of
from recbole_prunerec.data.samples import Part
from recbole_prunerec.errors import UserError
from recbole_prunerec.evaluate import evaluate
from recbole_prunerec.loading import load_data, load_tutor
from recbole_prunerec.quick_start import run
from recbole_prunerec.restore.teacher_cache import TeacherCache
from recbole_prunerec.restore.train import Distillation, Optimisation, train
from recbole_prunerec.restore.tutor import Tutor
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.settings import Settings
from recbole_prunerec.settings import Tutor as Chosen
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.packing import PackedRows, Rows, SampleRows
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.text.tokenizer import train_tokenizer

TITLES = ["Heat", "Heat and Dust", "Toy Story", "Heat", "Toy Soldiers", "The Net", "Casino", "The Nutty Professor"]
TOKENIZER = train_tokenizer(TITLES, 262)  # so few tokens that titles branch within words
CATALOGUE = Catalogue.build([str(item) for item in range(9)], ["", *TITLES], [0, 1, 2, 3, 9, 5, 6, 7, 8])
PROMPTS, LINES = (Prompts(TOKENIZER, CATALOGUE, template, 256) for template in ("list", "lines"))
HOW = Optimisation(
    epochs=1, batch_size=4, learning_rate=1e-3, schedule="linear", warmup_steps=0, weight_decay=0.0, betas=(0.9, 0.999), clip=1.0, stopping_step=0,
    precision="float32", seed=3, micro_batch_tokens=200,
)  # fmt: skip
SEQUENCES = [[1, 5, 3, 8, 2], [7, 6], [4, 2, 8, 1]]


def part() -> Part:
    """One sample a position."""
    samples = [(user, items[:place], items[place]) for user, items in enumerate(SEQUENCES) for place in range(1, len(items))]
    histories = np.zeros((len(samples), 4), dtype=int)
    for row, (_, history, _) in zip(histories, samples, strict=True):
        row[: len(history)] = history
    users, lengths, targets = (np.array(values) for values in zip(*((user, len(h), target) for user, h, target in samples), strict=True))
    return Part(users, histories, lengths, targets)


SAMPLED, PACKED = SampleRows(PROMPTS, part()), PackedRows(PROMPTS, part(), 5, 5, 0)
ROWS = {"samples": (SAMPLED, PROMPTS), "packed": (PACKED, PROMPTS), "packed lines": (PackedRows(LINES, part(), 5, 5, 0), LINES)}
all_rows = pytest.mark.parametrize("rows, prompts", ROWS.values(), ids=ROWS)


def probabilities(histories) -> np.ndarray:
    """Of the items after each history: any that differ from one history to the next."""
    rows = [np.random.default_rng([len(history), *history.tolist()]).dirichlet(np.full(8, 0.5)) for history in histories]
    return np.concatenate([np.zeros((len(rows), 1)), rows], 1)


def beginnings(rows: Rows, prompts: Prompts) -> list[tuple[list[int], list[int]]]:
    """Of every answer the tokens before it, and the history that its row gives."""
    found, answers = [], {tuple(answer.tolist()) for answer in prompts.answers}
    for key in rows.keys(0):
        example, starts, begun = rows[key], [], ()
        for place, label in enumerate(example.labels.tolist()):
            if label != -100:
                starts += [] if begun else [place]
                begun = () if (*begun, label) in answers else (*begun, label)
        for start, history in zip(starts, example.histories, strict=True):
            found.append((example.ids[:start].tolist(), history.tolist()))
    return found


@all_rows
def test_the_histories_of_a_row_are_what_its_answers_follow(rows, prompts):
    found = beginnings(rows, prompts)
    assert len(found) == sum(len(rows[key].histories) for key in rows.keys(0)) >= 8 - len(SEQUENCES)
    for before, history in found:
        assert before == prompts.prompt(history).tolist()


def test_a_chunk_that_drops_its_oldest_titles_drops_them_from_histories():
    longest = len(PROMPTS.prompt([2, 3]))
    example = Prompts(TOKENIZER, CATALOGUE, "list", longest).chunk([1, 2, 3, 4], [False, True, True, True])
    assert [history.tolist() for history in example.histories] == [[2], [2, 3]]


@torch.no_grad()
def reference_loss(student, rows: Rows, prompts: Prompts, weight: float, teacher=None, mixed: float = 1.0) -> float:
    """weight * KL(tutor || student) + (1 - weight) * CE, token by token in float64; the tutor's by summing whole titles that go on so.

    With a teacher, of p, the divergence is from p ** (1 - mixed) * q ** mixed, normalised, q being the tutor's.
    """
    total, count, answers = 0.0, 0, {item: prompts.answer(item).tolist() for item in range(1, 9)}
    for key in rows.keys(0):
        example = rows[key]
        ids, labels = torch.from_numpy(example.ids), torch.from_numpy(example.labels)
        own = (student(ids[None]).logits[0].double() + closed(labels[None], prompts.trie, len(TOKENIZER))[0]).log_softmax(-1)
        histories, begun = iter(example.histories), []
        for place in range(1, len(ids)):
            if labels[place] == -100:
                continue
            if labels[place - 1] == -100 or begun in answers.values():
                items, begun = probabilities([next(histories)])[0], []
            following = {}
            for item, answer in answers.items():
                if answer[: len(begun)] == begun:
                    following[answer[len(begun)]] = following.get(answer[len(begun)], 0.0) + items[item]
            said = {token: share / sum(following.values()) for token, share in following.items()}
            if teacher is not None:
                p = teacher(ids[None]).logits[0, place - 1].double().exp()
                both = {token: p[token].item() ** (1 - mixed) * share**mixed for token, share in said.items()}
                said = {token: share / sum(both.values()) for token, share in both.items()}
            kl = sum(share * (math.log(share) - own[place - 1, token].item()) for token, share in said.items() if share > 0)
            total += weight * kl - (1 - weight) * own[place - 1, ids[place]].item()
            count += 1
            begun = [*begun, int(ids[place])]
    return total / count


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@all_rows
def test_the_loss_is_that_of_the_tutors_titles_token_by_token(tmp_path, rows, prompts, weight):
    student = qwen2(0, torch.float32, vocab_size=len(TOKENIZER))
    tutor, softmax = Tutor(probabilities, CATALOGUE, prompts.trie, weight), softmax_of("catalogue", prompts.trie, len(TOKENIZER))
    loss = train(student, rows, rows, prompts.pad_id, HOW, RunFolder(tmp_path), "1-test", softmax, None, False, tutor)
    assert loss == pytest.approx(reference_loss(student, rows, prompts, weight), rel=1e-5)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("mixed", [0.3, 1.0])
@all_rows
def test_restoration_learns_from_what_teacher_and_tutor_say_together(tmp_path, rows, prompts, mixed, cached):
    student, teacher = (qwen2(seed, torch.float32, vocab_size=len(TOKENIZER)) for seed in (0, 1))
    tutor, softmax = Tutor(probabilities, CATALOGUE, prompts.trie, mixed), softmax_of("catalogue", prompts.trie, len(TOKENIZER))
    cache = TeacherCache(tmp_path / "cache", teacher.eval(), softmax, prompts.made_of, prompts.pad_id, 200, False) if cached else None
    distillation = Distillation(teacher, 0.7, "forward_kl", 1.0, cache)
    loss = train(student, rows, rows, prompts.pad_id, HOW, RunFolder(tmp_path), "2-test", softmax, distillation, False, tutor)
    assert loss == pytest.approx(reference_loss(student, rows, prompts, 0.7, teacher, mixed), rel=1e-5)


def test_items_that_share_a_title_are_one_and_sums_end_at_one():
    sums = Tutor(probabilities, CATALOGUE, PROMPTS.trie, 0.5).sums([SAMPLED[(0,)], SAMPLED[(1,)]])
    assert sums.shape == (2, 8) and sums.dtype == torch.float64
    assert sums[:, 0].tolist() == [0, 0] and sums[:, -1].tolist() == pytest.approx([1, 1])
    order = PROMPTS.trie.order.tolist()
    row = probabilities([SAMPLED[(0,)].histories[0]])[0]
    expected = [sum(row[item] for item in range(1, 9) if TITLES[item - 1] == CATALOGUE.distinct[title]) for title in order]
    assert sums[0].diff().tolist() == pytest.approx(expected)


# Whole runs

ARGV = [
    *("--dataset=small", "--model=PruneRec", "--compare=", "--softmax=catalogue", "--training_rows=48", "--epochs=1", "--restore.epochs=1"),
    *("--valid_rows=8", "--calibration_samples=4", "--test_rows=20", "--step_test_rows=10", "--topk=2,5", "--ranking.beams=8"),
    *("--steps=[{do: finetune}, {do: mlp, intermediate: 64}]", "--baselines.epochs=2", "--show_progress=false"),
]


def ran(place: Path, name: str, *argv: str) -> Path:
    run(load_arguments([*ARGV, f"--data_path={place / 'dataset'}", f"--checkpoint_dir={place / name}", *argv]))
    return (place / name / "latest").resolve()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("place")
    write_small(place / "dataset")
    return place


@pytest.fixture(scope="module")
def tutored(place) -> Path:
    return ran(place, "tutored", "--tutor.model=SASRec")


def test_a_tutor_has_a_row_and_the_teacher_says_whose_items_it_has_learnt(place, tutored):
    rows = json.loads((tutored / "results.json").read_text())["rows"]
    assert [row["system"] for row in rows[:3]] == ["Pop", "SASRec", "BIGRec (teacher)"]
    assert [row["note"] for row in rows[2:]] == ["fine-tuned beside SASRec, weight 0.5", None, None]
    plain = ran(place, "plain")
    metrics = [json.loads((folder / "1-finetune" / "metrics.json").read_text())["valid_loss"] for folder in (tutored, plain)]
    assert metrics[0] != metrics[1]
    assert list((tutored / "tensorboard" / "1-finetune").iterdir())


def test_restoration_beside_the_tutor_alone_trains_it_for_a_given_teacher(place, tutored):
    """It has a row, the final model says so, and without weight none is trained."""
    argv = [argument for argument in ARGV if not argument.startswith("--steps")]
    argv += [f"--teacher={tutored / '1-finetune'}", "--tutor.model=SASRec", f"--data_path={place / 'dataset'}"]
    folders = []
    for weight in (0.0, 0.4):
        steps = f"--steps=[{{do: mlp, intermediate: 64, restore: {{tutor_weight: {weight}}}}}]"
        run(load_arguments([*argv, steps, f"--checkpoint_dir={place / f'restored-{weight}'}"]))
        folders.append((place / f"restored-{weight}" / "latest").resolve())
    rows = [json.loads((folder / "results.json").read_text())["rows"] for folder in folders]
    assert ["SASRec" in [row["system"] for row in each] for each in rows] == [False, True]
    assert [each[-1]["note"] for each in rows] == [None, "restored beside SASRec, weight 0.4"]
    losses = [json.loads((folder / "1-mlp" / "metrics.json").read_text())["valid_loss"] for folder in folders]
    assert losses[0] != losses[1]


def test_a_tutor_gives_no_probability_to_what_was_seen(place):
    """Nor does it where several titles of a user are learnt at once, each with a history of its own."""
    argv = ("--tutor.model=SASRec", "--exclude_seen=true")
    folder = ran(place, "unseen", *argv)
    settings = load_arguments([*ARGV, f"--data_path={place / 'dataset'}", *argv]).settings
    data = load_data(settings, place / "unused", place / "cache")
    probabilities = load_tutor(settings, data, folder, place / "cache")
    histories = [data.samples.train.history(row) for row in range(20)]
    for history, found in zip(histories, probabilities(histories), strict=True):
        assert set(np.flatnonzero(found == 0)) == {0, *history} and found.sum() == pytest.approx(1)
    loss = json.loads((folder / "1-finetune" / "metrics.json").read_text())["valid_loss"]
    assert np.isfinite(loss)
    long = data.samples.train.targets[: settings.longest_history + 3]  # as a chunk of more titles has it: the tutor reads the last of them
    np.testing.assert_array_equal(probabilities([long]), probabilities([long[3:]]))


def test_a_tutor_speaks_in_chunks_longer_than_it_reads(place):
    folder = ran(place, "long", "--tutor.model=SASRec", "--MAX_ITEM_LIST_LENGTH=2", "--packing_titles=20", "--packing_stride=20")
    assert np.isfinite(json.loads((folder / "1-finetune" / "metrics.json").read_text())["valid_loss"])


def test_an_evaluation_needs_no_tutor(tutored, place):
    where = [f"--data_path={place / 'dataset'}", f"--checkpoint_dir={place / 'again'}", "--topk=2", "--ranking.beams=4", "--show_progress=false"]
    evaluate(str(tutored / "2-mlp"), ["--dataset=small", *where])
    results = json.loads(next((place / "again").glob("*/results.json")).read_text())
    assert [row["system"] for row in results["rows"]] == ["Pop", "2-mlp"]


def test_a_model_that_reads_more_than_histories_is_no_tutor(place):
    with pytest.raises(UserError, match=r"tutor.model=Caser reads more than a history: .*; choose another, such as SASRec or GRU4Rec"):
        ran(place, "caser", "--tutor.model=Caser")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--softmax=vocabulary", "--tutor.model=SASRec"], "tutor.model=SASRec speaks of what goes on with some title; choose softmax=catalogue"),
        (["--tutor.model=SASrec"], "tutor.model=SASrec is unknown; did you mean 'SASRec'?"),
        (["--tutor.model=DIN"], "tutor.model=DIN scores items one at a time"),
        (["--tutor.weight=2"], "tutor.weight=2: expected at most 1"),
        (["--restore.tutor_weight=0.5"], "restore.tutor_weight=0.5 weighs a tutor, and there is none; name one, such as tutor.model=SASRec"),
        (["--steps=[{do: finetune}, {do: depth, layers: 1, restore: {tutor_weight: 0.1}}]"], "restore.tutor_weight=0.1 weighs a tutor, and"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(argv, expected):
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        load_arguments(["--model=PruneRec", "--softmax=catalogue", *argv])


def test_runs_without_a_tutor_are_found_again_and_train_none():
    taught = {"tutor": {"model": "SASRec"}, "compare": (), "softmax": "catalogue"}
    assert "tutor" not in Settings().identity() and "tutor" in Settings(**taught).identity()
    assert models_of(Settings(**taught)) == ["Popularity", "SASRec", "PruneRec"]
    assert models_of(Settings(**taught, steps=[{"do": "depth", "layers": 1}], teacher="x")) == ["Popularity", "PruneRec"]


def test_without_recbole_there_is_no_tutor(tmp_path):
    settings = tiny_run.SETTINGS.model_copy(update={"softmax": "catalogue", "tutor": Chosen(model="SASRec")})
    with pytest.raises(UserError, match=r"tutor.model=SASRec needs RecBole, which is not here"):
        pipeline.run(tiny_run.backbone(), tiny_run.TOKENIZER, tiny_run.samples(), settings, tmp_path)
