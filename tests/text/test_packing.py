import numpy as np
import pytest
import torch
from naive import answer_logits
from tiny import llama, qwen2

from recbole_prunerec.backbone.softmax import IGNORE
from recbole_prunerec.data.samples import Part, training_sequences
from recbole_prunerec.text import packing
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.packing import EpochBatches, PackedRows, SampleRows, chunk_bounds, collate, micro_batches
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.text.tokenizer import train_tokenizer

ITEMS = 30
TITLES = [f"Film {chr(65 + item % 26)} {item // 3}" for item in range(ITEMS)]
CATALOGUE = Catalogue.build([str(item) for item in range(ITEMS + 1)], ["", *TITLES], [0] * (ITEMS + 1))
TOKENIZER = train_tokenizer(TITLES, 290)
PROMPTS = Prompts(TOKENIZER, CATALOGUE, "list", 512)
LONGEST = 10


def samples(sequences: list[list[int]]) -> Part:
    """One sample a position, by a plain loop."""
    rows = [(user, items[max(0, place - LONGEST) : place], items[place]) for user, items in enumerate(sequences) for place in range(1, len(items))]
    histories = np.zeros((len(rows), LONGEST), dtype=int)
    for row, (_, history, _) in enumerate(rows):
        histories[row, : len(history)] = history
    return Part(np.array([row[0] for row in rows]), histories, np.array([len(row[1]) for row in rows]), np.array([row[2] for row in rows]))


SEQUENCES = [np.random.default_rng(user).integers(1, ITEMS + 1, size=length).tolist() for user, length in enumerate([2, 5, 11, 12, 27, 40])]
TRAIN = samples(SEQUENCES)


@pytest.mark.parametrize("length", [1, 2, 10, 11, 12, 40])
@pytest.mark.parametrize(("stride", "offset"), [(1, 0), (4, 0), (4, 3), (11, 0), (11, 1), (11, 7)])
def test_chunks_have_targets_once_and_histories_of_at_most_ten(length, stride, offset):
    targets = []
    for start, stop, first in chunk_bounds(length, LONGEST + 1, stride, offset):
        assert 0 <= start < first < stop <= length and stop - start <= LONGEST + 1
        targets += range(first, stop)
    assert len(set(targets)) == len(targets)
    if stride < LONGEST + 1:
        assert targets == list(range(1, length))
    else:  # the first title of a chunk has nothing before it
        starts = {start for start, _, _ in chunk_bounds(length, LONGEST + 1, stride, offset)}
        assert set(range(1, length)) - set(targets) <= starts | {length - 1}


def test_stride_one_sees_what_one_sample_a_position_sees():
    packed = PackedRows(PROMPTS, TRAIN, LONGEST + 1, stride=1, seed=3)
    seen = []
    for number, start, _stop, first in packed.keys(0):
        seen += [(number, SEQUENCES[number][start:place], SEQUENCES[number][place]) for place in range(first, _stop)]
    expected = [(int(TRAIN.users[row]), TRAIN.history(row).tolist(), int(TRAIN.targets[row])) for row in range(len(TRAIN))]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("family", [qwen2, llama])
def test_a_packed_target_has_the_logits_of_its_own_sample(family):
    model = family(vocab_size=len(TOKENIZER))
    packed = PackedRows(PROMPTS, TRAIN, LONGEST + 1, stride=4, seed=3)
    for key in [key for key in packed.keys(1) if key[2] - key[1] > 3][:4]:
        number, start, stop, first = key
        chunk = answer_logits(model, collate([packed[key]], 0)).logits
        alone = [
            answer_logits(model, collate([PROMPTS.example(SEQUENCES[number][start:place], SEQUENCES[number][place])], 0)).logits
            for place in range(first, stop)
        ]
        torch.testing.assert_close(chunk, torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_stride_one_has_the_loss_of_one_sample_a_position():
    model = qwen2(vocab_size=len(TOKENIZER))
    packed, single = PackedRows(PROMPTS, TRAIN, LONGEST + 1, stride=1, seed=3), SampleRows(PROMPTS, TRAIN)

    def summed(rows) -> tuple[float, int]:
        answers = answer_logits(model, collate([rows[key] for key in rows.keys(0)], 0))
        return torch.nn.functional.cross_entropy(answers.logits, answers.targets, reduction="sum").item(), len(answers.targets)

    loss, count = summed(packed)
    expected, expected_count = summed(single)
    assert count == expected_count and loss == pytest.approx(expected, rel=1e-9)


def test_no_chunk_holds_anything_but_training_interactions():
    train = TRAIN.take(np.arange(len(TRAIN) - 30))  # without the last thirty of the last user
    allowed = {(user, item) for user, item in zip(train.users.tolist(), train.targets.tolist(), strict=True)} | {
        (u, s[0]) for u, s in enumerate(SEQUENCES)
    }
    packed = PackedRows(PROMPTS, train, LONGEST + 1, stride=11, seed=0)
    users, sequences = list(dict.fromkeys(train.users.tolist())), training_sequences(train)
    for epoch in range(3):
        for number, start, stop, _ in packed.keys(epoch):
            assert {(users[number], int(item)) for item in sequences[number][start:stop]} <= allowed


def test_batches_repeat_and_cover_an_epoch():
    rows = SampleRows(PROMPTS, TRAIN)
    batches = EpochBatches(rows, 8, epochs=2, seed=5)
    batches.set_epoch(1)
    first = list(batches)
    batches.set_epoch(0)
    assert list(batches) != first
    batches.set_epoch(1)
    assert list(batches) == first
    assert sorted(key for batch in first for key in batch) == rows.keys(1)
    assert len(first) == len(batches)


def test_every_epoch_of_chunks_has_the_same_number_of_batches():
    batches = EpochBatches(PackedRows(PROMPTS, TRAIN, LONGEST + 1, stride=11, seed=1), 2, epochs=6, seed=5)
    for epoch in range(6):
        batches.set_epoch(epoch)
        assert len(list(batches)) == len(batches)


def test_offsets_differ_between_epochs_and_repeat_by_seed():
    keys = [PackedRows(PROMPTS, TRAIN, LONGEST + 1, stride=11, seed=seed).keys(epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0), (1, 0))]
    assert keys[0] != keys[1] and keys[0] != keys[2] and keys[0] == keys[3]


def test_a_longer_chunk_shows_targets_more_of_what_came_before():
    """A sequence shorter than a chunk is whole where the seeded offset lies behind its end, and otherwise cut once, anywhere."""

    def histories(size: int) -> list[int]:
        keys = [key for epoch in range(50) for key in PackedRows(PROMPTS, TRAIN, size, size, seed=1).keys(epoch)]
        assert max(stop - start for _, start, stop, _ in keys) <= size
        return [place - start for _, start, stop, first in keys for place in range(first, stop)]

    short, long = histories(LONGEST + 1), histories(41)
    assert max(short) == LONGEST < 3 * LONGEST < max(long)
    assert np.mean(np.array(long) >= 8) > 2 * np.mean(np.array(short) >= 8)
    assert len(long) > len(short)  # fewer titles begin a chunk


def test_of_so_many_chunkings_epochs_take_one_after_the_other():
    own, turns = (PackedRows(PROMPTS, TRAIN, LONGEST + 1, LONGEST + 1, 7, chunkings) for chunkings in (None, 2))
    assert [turns.keys(epoch) for epoch in range(5)] == [own.keys(epoch % 2) for epoch in range(5)] != [own.keys(epoch) for epoch in range(5)]


def test_collate_pads_on_the_right():
    short, long = PROMPTS.example([1], 2), PROMPTS.example([1, 2, 3], 4)
    batch = collate([short, long], pad_id=7)
    width, length = len(long.ids), len(short.ids)
    assert batch["input_ids"].shape == (2, width)
    assert batch["input_ids"][0].tolist() == short.ids.tolist() + [7] * (width - length)
    assert batch["attention_mask"][0].tolist() == [1] * length + [0] * (width - length)
    assert batch["labels"][0].tolist() == short.labels.tolist() + [IGNORE] * (width - length)


def test_processes_share_every_batch(monkeypatch):
    rows = SampleRows(PROMPTS, TRAIN)
    whole, shares = list(EpochBatches(rows, 8, epochs=1, seed=5)), []
    assert len({len(batch) for batch in whole}) == 2  # the last has fewer rows
    for rank in range(3):
        monkeypatch.setattr(packing, "share", lambda keys, rank=rank: keys[rank::3])
        shares.append(list(EpochBatches(rows, 8, epochs=1, seed=5)))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(key for part in parts for key in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("tokens", [1, 60, 150, 10**6])
def test_micro_batches_hold_at_most_so_many_padded_tokens(tokens):
    rows = SampleRows(PROMPTS, TRAIN)
    examples = [rows[key] for key in rows.keys(0)[:40]]
    groups = micro_batches(examples, tokens)
    lengths = [[len(example.ids) for example in group] for group in groups]
    flat = [length for group in lengths for length in group]
    assert flat == sorted((len(example.ids) for example in examples), reverse=True)
    assert all(len(group) == 1 or len(group) * max(group) <= tokens for group in lengths)
    assert all((len(group) + 1) * max(group) > tokens for group in lengths[:-1])  # as many as fit


def test_without_rows_there_is_one_micro_batch_of_padding():
    (group,) = micro_batches([], 100)
    batch = collate(group, 7)
    assert [batch[key].tolist() for key in ("input_ids", "attention_mask", "labels")] == [[[7]], [[0]], [[IGNORE]]]
