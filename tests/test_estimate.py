import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_run
import torch
from safetensors import safe_open

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.softmax import Vocabulary, softmax_of
from recbole_prunerec.estimate import (
    Epoch,
    Read,
    activation_bytes,
    cache_bytes,
    count_tokens,
    disk,
    duration,
    largest_batch,
    loss_bytes,
    planned_work,
    sizes_by_step,
    time_left,
    training_memory,
    training_rows,
)
from recbole_prunerec.pipeline import run
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.restore.teacher_cache import TeacherCache
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.settings import Settings
from recbole_prunerec.text.packing import SampleRows
from recbole_prunerec.text.prompts import Prompts

SIZES = Sizes(hidden=8, layers=2, heads=4, kv_heads=2, head_dim=2, intermediate=16, vocab=50, tied=True)
SHAPE = Shape("qwen2", 8, 2, 4, 2, 16)
STEPS = [{"do": "finetune"}, {"do": "mlp", "intermediate": 4}, {"do": "depth", "layers": 1, "restore": {"epochs": 1}}]
SETTINGS = Settings.model_validate({"steps": STEPS, "epochs": 3, "restore": {"epochs": 2}})
NARROW, SHALLOW = Sizes(8, 2, 4, 2, 2, 4, 50, True), Sizes(8, 1, 4, 2, 2, 4, 50, True)


EPOCH = Epoch(Read(100, 1000, 60, 700), Read(20, 400, 30, 90), (100, 150, 180))  # of three epochs that share some rows
PREVIOUS = [{"do": "finetune"}, *({"do": "mlp", "intermediate": width, "restore": {"teacher": "previous"}} for width in (4, 2))]


def body(sizes: Sizes) -> int:
    return sizes.non_embedding_parameters


def planned(settings=SETTINGS, **changes) -> list[float]:
    settings = Settings.model_validate({**settings.model_dump(exclude_unset=True), **changes})
    return planned_work(settings, SIZES, SHAPE, EPOCH, tokens_a_user=10, rows={"all": 30, "few": 5})


def ranked(sizes: Sizes, users: int) -> int:
    return users * 10 * (body(sizes) + 50 * 8)


def student(sizes: Sizes, passes: int = 3) -> int:
    """An epoch: forward and backward through 1,000 tokens and 700 logits of 8 numbers each, then forward through what validates."""
    return passes * 1000 * body(sizes) + 3 * 700 * 8 + 400 * body(sizes) + 90 * 8


HEAD = (700 + 90) * 8  # the teacher's logits from its hidden states, in every epoch


def test_planned_work_adds_training_teaching_and_ranking():
    """The second restoration has all rows of its one epoch in the cache."""
    assert planned() == [
        3 * student(SIZES) + ranked(SIZES, 30),
        2 * (student(NARROW) + HEAD) + (1000 * 150 // 100 + 400) * body(SIZES) + ranked(NARROW, 10),
        1 * (student(SHALLOW) + HEAD) + ranked(SHALLOW, 35),
    ]


def test_a_later_step_computes_what_earlier_ones_did_not():
    late = [{"do": "finetune"}, {"do": "mlp", "intermediate": 4, "restore": {"epochs": 1}}, {"do": "depth", "layers": 1, "restore": {"epochs": 3}}]
    assert planned(steps=late)[1:] == [
        1 * (student(NARROW) + HEAD) + (1000 + 400) * body(SIZES) + ranked(NARROW, 10),
        3 * (student(SHALLOW) + HEAD) + 1000 * 80 // 100 * body(SIZES) + ranked(SHALLOW, 35),
    ]


def test_chunkings_taken_in_turn_are_read_once():
    """Three epochs of the rows that the first step's first epoch had."""
    steps = [{"do": "finetune"}, {"do": "mlp", "intermediate": 4}, {"do": "depth", "layers": 1, "restore": {"epochs": 3}}]
    assert planned(steps=steps, restore={"epochs": 2, "chunkings": 1})[1:] == [
        2 * (student(NARROW) + HEAD) + (1000 + 400) * body(SIZES) + ranked(NARROW, 10),
        3 * (student(SHALLOW) + HEAD) + ranked(SHALLOW, 35),
    ]


def test_without_the_cache_the_teacher_reads_every_epoch():
    assert planned(restore={"epochs": 2, "cache": False})[1:] == [
        2 * (student(NARROW) + HEAD + 1400 * body(SIZES)) + ranked(NARROW, 10),
        1 * (student(SHALLOW) + HEAD + 1400 * body(SIZES)) + ranked(SHALLOW, 35),
    ]


def test_the_model_before_the_cut_teaches_where_it_is_asked_to():
    """Each teacher has a cache of its own; the first of them is the fine-tuned model."""
    narrower = replace(SIZES, intermediate=2)
    filled = 1500 + 400
    assert planned(steps=PREVIOUS)[1:] == [
        2 * (student(NARROW) + HEAD) + filled * body(SIZES) + ranked(NARROW, 10),
        2 * (student(narrower) + HEAD) + filled * body(NARROW) + ranked(narrower, 35),
    ]


def test_gradient_checkpointing_is_a_pass_more_through_the_layers():
    assert planned(gradient_checkpointing=True)[0] == 3 * student(SIZES, passes=4) + ranked(SIZES, 30)


def test_a_step_that_is_not_restored_costs_its_ranking():
    assert planned(restore={"epochs": 0})[1] == ranked(NARROW, 10)


@pytest.mark.parametrize(
    ("took", "expected"),
    [([], ""), ([None], ""), ([10.0], ", about 30 s left"), ([None, 40.0], ", about 20 s left"), ([600.0], ", about 30 min left")],
)
def test_time_left_scales_by_what_was_timed(took, expected):
    assert time_left([10.0, 20.0, 10.0], took, len(took)) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(0.2, "1 s"), (99.4, "99 s"), (120, "2 min"), (5900, "98 min"), (9000, "2 h"), (200_000, "56 h")])
def test_durations_have_two_digits(seconds, expected):
    assert duration(seconds) == expected


def test_sizes_follow_the_steps():
    assert sizes_by_step(SETTINGS.steps, SIZES, SHAPE) == [SIZES, NARROW, SHALLOW]
    untied = replace(SIZES, tied=False, qkv_bias=True)
    width = Settings.model_validate({"steps": [{"do": "finetune"}, {"do": "width", "heads": 2, "hidden": 6, "kv_policy": "group"}]}).steps
    assert sizes_by_step(width, untied, SHAPE)[1] == replace(untied, heads=2, kv_heads=1, hidden=6)


def prompts_of(data) -> Prompts:
    return Prompts(tiny_run.TOKENIZER, data.catalogue, "list", 512)


def test_tokens_of_single_samples_are_those_of_the_rows():
    data, settings = tiny_run.samples(), tiny_run.SETTINGS.model_copy(update={"packing": False})
    prompts = prompts_of(data)
    lengths = {}
    for name, part in (("train", data.train), ("valid", data.valid)):
        lengths[name] = [(len(prompts.prompt(part.history(row).tolist())), len(prompts.answer(part.targets[row]))) for row in range(len(part))]
    asked = [len(prompts.prompt(data.test.history(row).tolist())) for row in range(len(data.test))]
    found, vocab = count_tokens(settings, prompts, data), len(tiny_run.TOKENIZER)
    for name, read in (("train", found.epoch.train), ("valid", found.epoch.valid)):
        answers = sum(answer for _, answer in lengths[name])
        assert read == (len(lengths[name]), sum(map(sum, lengths[name])), answers, answers * vocab)
    assert found.epoch.distinct == (len(lengths["train"]),) * 2  # the same in both epochs of restoration
    assert found.user == sum(asked) // len(asked) + 8 * sum(map(len, prompts.answers)) // len(prompts.answers)
    longest = max(map(sum, lengths["train"]))
    for budget, rows in ((10**6, 8), (3 * longest + 1, 3), (1, 1)):
        labels = largest_batch(settings, prompts, data.train, budget)
        assert labels.shape == (rows, longest) and sum(lengths["train"][0]) <= longest
        assert int((labels[0] >= 0).sum()) in {answer for prompt, answer in lengths["train"] if prompt + answer == longest}


def test_few_rows_validate_where_that_is_asked_for():
    data = tiny_run.samples()
    found = count_tokens(tiny_run.SETTINGS.model_copy(update={"valid_rows": 2}), prompts_of(data), data)
    assert found.epoch.valid.rows == 2 < len(data.valid)


def test_the_catalogue_softmax_takes_the_children():
    """Logits counted node by node, those of nodes with several children, whose number is rounded up to a power of two but at the root."""
    data = tiny_run.samples()
    prompts, settings = prompts_of(data), tiny_run.SETTINGS.model_copy(update={"softmax": "catalogue", "packing": False})
    answers = logits = 0
    for target in data.train.targets.tolist():
        node = 0
        for token in prompts.answer(target).tolist():
            tokens, nodes = prompts.trie.children(node)
            if len(tokens) > 1:
                answers += 1
                logits += len(tokens) if node == 0 else 2 ** math.ceil(math.log2(len(tokens)))
            node = int(nodes[tokens.tolist().index(token)])
    train = count_tokens(settings, prompts, data).epoch.train
    assert (train.answers, train.logits) == (answers, logits) and answers < sum(len(prompts.answer(target)) for target in data.train.targets)


def test_tokens_of_packed_rows_are_those_of_the_chunks():
    """With a stride of a whole chunk and long chunks, a user's five training titles are one row, or two where the seeded offset cuts them."""
    data, settings = tiny_run.samples(), tiny_run.SETTINGS.model_copy(update={"MAX_ITEM_LIST_LENGTH": 10})
    prompts = prompts_of(data)
    longest = 0
    for user in np.unique(data.train.users):
        samples = np.flatnonzero(data.train.users == user)
        items = [*data.train.history(samples[0]).tolist(), *data.train.targets[samples].tolist()]
        longest = max(longest, len(prompts.chunk(items, [True] * len(items)).ids))
    found, rows = count_tokens(settings, prompts, data), training_rows(settings, prompts, data.train)
    first, second = rows.keys(0), rows.keys(1)
    assert found.epoch.train[:2] == (len(first), sum(len(rows[key].ids) for key in first))
    assert found.epoch.distinct == (len(first), len({*first, *second})) and len({*first, *second}) > len(first)
    assert largest_batch(settings, prompts, data.train, 10**6).shape[1] == max(len(rows[key].ids) for key in first) <= longest


def test_much_is_told_from_a_hundred_rows():
    rows = Read(100, 12_345, 700, 7000)
    assert rows.times(250) == (250, 30_862, 1750, 17_500) and rows + rows == (200, 24_690, 1400, 14_000)
    assert Read(0, 0, 0, 0).times(0) == (0, 0, 0, 0)


def test_memory_counts_the_models_that_stand_beside():
    """16 bytes a parameter that is trained, 4 for the teacher and for the model before the cut, which after the teacher's step is the teacher."""
    labels, softmax = torch.tensor([[-100, 1, 2, 3]] * 10), Vocabulary(50)
    p, q, r = (sizes.total_parameters for sizes in (SIZES, NARROW, SHALLOW))
    parts = softmax.parts(labels, 8)
    losses = [loss_bytes(parts, SIZES, loss) for loss in (None, "forward_kl", "forward_kl")]
    layers = [activation_bytes(sizes, 40) for sizes in (SIZES, NARROW, SHALLOW)]
    held = [16 * p, 16 * q + 4 * p, 16 * r + 4 * p + 4 * q]
    assert training_memory(SETTINGS, SIZES, [SIZES, NARROW, SHALLOW], labels, softmax) == [
        sum(parts) for parts in zip(held, losses, layers, strict=True)
    ]
    assert losses == [4 * (400 + 4 * 1500), 4 * (400 + 8 * 1500), 4 * (400 + 8 * 1500)]
    live = Settings.model_validate({"steps": STEPS, "epochs": 3, "restore": {"epochs": 2, "cache": False}})
    assert training_memory(live, SIZES, [SIZES, NARROW, SHALLOW], labels, softmax)[1] == held[1] + losses[1] + layers[1] + 4 * 40 * 4 * (16 - 4)
    still = Settings.model_validate({"steps": STEPS[:2], "restore": {"epochs": 0}})
    assert training_memory(still, SIZES, [SIZES, NARROW], labels, softmax)[1] == 4 * q + 4 * p


@pytest.mark.parametrize(("packing", "most"), [(False, 1), (True, 1.3)])  # the mean chunk is told from the first epoch's
def test_the_cache_takes_what_its_files_have(tmp_path, packing, most):
    """Against the states that a real cache of two epochs and their validation has, of both softmaxes."""
    data = tiny_run.samples()
    prompts, teacher = prompts_of(data), tiny_run.backbone().eval()
    sizes, made = Sizes.of(teacher), []
    for name in ("vocabulary", "catalogue"):
        settings = tiny_run.SETTINGS.model_copy(update={"softmax": name, "packing": packing})
        rows, valid = training_rows(settings, prompts, data.train), SampleRows(prompts, data.valid)
        cache = TeacherCache(tmp_path, teacher, softmax_of(name, prompts.trie, sizes.vocab), prompts.made_of, prompts.pad_id, 500, False)
        wanted = [(rows, list({*rows.keys(0), *rows.keys(1)})), (valid, valid.keys(0))]
        for some, keys in wanted:
            cache.fill(some, keys, show_progress=False)
        made.append(sum(cache.states([some[key] for key in keys]).nbytes for some, keys in wanted))
        found = cache_bytes(settings, sizes, [sizes] * 4, count_tokens(settings, prompts, data).epoch)
        assert made[-1] <= found <= most * made[-1]
    assert made[1] < made[0]


def test_every_teacher_has_its_cache():
    """4 bytes a number: 60 answers a hundred rows, 30 of the validation, 8 numbers each."""
    after = [SIZES, NARROW, SHALLOW]
    assert cache_bytes(SETTINGS, SIZES, after, EPOCH) == 4 * 8 * (90 + 30)
    previous = Settings.model_validate({"steps": PREVIOUS, "restore": {"epochs": 2}})
    assert cache_bytes(previous, SIZES, after, EPOCH) == 2 * 4 * 8 * (90 + 30)
    without = [
        {"do": "finetune"},
        {"do": "mlp", "intermediate": 4, "restore": {"cache": False}},
        {"do": "depth", "layers": 1, "restore": {"epochs": 1}},
    ]
    assert cache_bytes(Settings.model_validate({"steps": without}), SIZES, after, EPOCH) == 4 * 8 * (60 + 30)
    assert cache_bytes(Settings.model_validate({"steps": STEPS, "restore": {"cache": False}}), SIZES, after, EPOCH) == 0


def test_disk_is_what_a_run_leaves_and_what_it_takes_meanwhile(tmp_path, monkeypatch):
    """Against a real run of the method: the weights in its folders, and the checkpoints that lie there after each save."""
    sizes = Sizes.of(tiny_run.backbone())
    settings = tiny_run.SETTINGS.model_copy(update={"train_batch_size": 4})  # so that there are checkpoints within an epoch
    after = sizes_by_step(settings.steps, sizes, Shape.of_config(tiny_run.backbone().config.to_dict()))
    seen: dict[str, list[list[int]]] = {}
    drop = RunFolder.drop

    def watched(folder, paths):
        for step in (folder.path / ".work").glob("*"):
            files = [[step / name / file for file in ("model.safetensors", "optimizer.pt")] for name in step.glob("checkpoint-*")]
            seen.setdefault(step.name, []).append([sum(file.stat().st_size for file in pair) for pair in files])
        drop(folder, paths)

    monkeypatch.setattr(RunFolder, "drop", watched)
    run(tiny_run.backbone(), tiny_run.TOKENIZER, tiny_run.samples(), settings, tmp_path / "run")
    kept = 0
    for path in sorted((tmp_path / "run").glob("[0-9]-*/model.safetensors")):
        with safe_open(path, "pt") as file:
            kept += sum(file.get_tensor(name).numel() * 4 for name in file.keys())  # noqa: SIM118  # not a dictionary
    assert disk(settings, after).kept == kept
    assert list(seen) == ["1-finetune", "2-width", "3-mlp", "4-depth"]
    for checkpoints, model in zip(seen.values(), after, strict=True):
        assert max(map(len, checkpoints)) == 3
        assert all(0 < size - 12 * model.total_parameters < 50_000 for sizes in checkpoints for size in sizes)  # the rest are names and headers


def test_disk_peaks_in_the_step_with_the_largest_model_or_the_last():
    p, q, r = (sizes.total_parameters for sizes in (SIZES, NARROW, SHALLOW))
    assert disk(SETTINGS, [SIZES, NARROW, SHALLOW]) == (4 * (p + q + r), 40 * p)
    even = disk(SETTINGS, [SIZES, SIZES, SIZES])
    assert even == (12 * p, 12 * p + 36 * p)
    still = SETTINGS.model_copy(update={"epochs": 0})
    assert disk(still, [SIZES, NARROW, SHALLOW]).peak == max(4 * (p + q) + 36 * q, 4 * (p + q + r) + 36 * r)
