"""The teacher's states from disk against those of the teacher itself, and what becomes of files that are cut, foreign or not there yet."""

import ctypes
import logging
import os
import re
import shutil
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from naive import closed
from safetensors import safe_open
from tiny import every_family, llama, qwen2
from transformers import AutoModelForCausalLM

from recbole_prunerec import distributed
from recbole_prunerec.backbone.forward import answer_states
from recbole_prunerec.backbone.softmax import softmax_of
from recbole_prunerec.errors import UserError
from recbole_prunerec.restore import teacher_cache
from recbole_prunerec.restore.teacher_cache import TeacherCache
from recbole_prunerec.text.packing import PackedRows, SampleRows, collate
from recbole_prunerec.text.prompts import Example, Prompts

SAMPLES = tiny_run.samples()
PROMPTS = Prompts(tiny_run.TOKENIZER, SAMPLES.catalogue, "list", 512)
ROWS = SampleRows(PROMPTS, SAMPLES.train)
VOCAB, PAD = len(tiny_run.TOKENIZER), PROMPTS.pad_id
both_softmaxes = pytest.mark.parametrize("name", ["vocabulary", "catalogue"])


def cache_of(root, teacher, name="vocabulary", made_of=PROMPTS.made_of, tokens=100, bfloat16=False):
    return TeacherCache(root, teacher, softmax_of(name, PROMPTS.trie, VOCAB), made_of, PAD, tokens, bfloat16)


def alone(teacher, example, name):
    """A row's states without padding or other rows, position by position."""
    ids, labels = (torch.from_numpy(part)[None] for part in example[:2])
    with torch.no_grad():
        hidden = teacher.model(input_ids=ids).last_hidden_state[0]
    allowed = closed(labels, PROMPTS.trie, VOCAB)[0] == 0
    before = [position for position in range(len(example.ids) - 1) if example.labels[position + 1] >= 0]
    return torch.stack([hidden[position] for position in before if name == "vocabulary" or allowed[position].sum() > 1])


def watch(teacher):
    """The rows that go through the teacher from now on, as tuples of their tokens."""
    seen = []

    def note(_, args, kwargs):
        seen.extend(tuple(row[row != PAD].tolist()) for row in kwargs["input_ids"])

    teacher.model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.fixture
def teacher():
    return tiny_run.backbone().eval()


@both_softmaxes
@every_family
def test_equals_the_teacher(tmp_path, make, name):
    teacher = make(0, torch.float32, vocab_size=VOCAB)
    cache, keys = cache_of(tmp_path, teacher, name), ROWS.keys(0)
    cache.fill(ROWS, keys, show_progress=False)
    chosen = [ROWS[keys[index]] for index in (5, 0, 11, 5)]
    expected = torch.cat([alone(teacher, example, name) for example in chosen])
    found = cache.states(chosen)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5
    everything = sum(len(alone(teacher, ROWS[key], name)) for key in keys)
    answers = sum(int((ROWS[key].labels >= 0).sum()) for key in keys)
    assert everything == answers if name == "vocabulary" else 0 < everything < answers  # what has no choice is not kept


@both_softmaxes
def test_is_equal_to_the_bit_in_a_batch_of_the_same_shape(tmp_path, teacher, name):
    keys = ROWS.keys(0)
    examples = [ROWS[key] for key in keys]
    cache = cache_of(tmp_path, teacher, name, tokens=10**6)
    cache.fill(ROWS, keys, show_progress=False)
    softmax = softmax_of(name, PROMPTS.trie, VOCAB)
    batch = collate(examples, PAD)
    with torch.no_grad():
        assert torch.equal(cache.states(examples), answer_states(teacher, batch, softmax))


def test_runs_under_bfloat16_where_asked(tmp_path, teacher):
    examples = [ROWS[key] for key in ROWS.keys(0)]
    cache = cache_of(tmp_path, teacher, tokens=10**6, bfloat16=True)
    cache.fill(ROWS, ROWS.keys(0), show_progress=False)
    softmax = softmax_of("vocabulary", PROMPTS.trie, VOCAB)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = answer_states(teacher, collate(examples, PAD), softmax)
    with torch.no_grad():
        full = answer_states(teacher, collate(examples, PAD), softmax)
    assert torch.equal(cache.states(examples), low.float()) and not torch.equal(low.float(), full)


def test_every_row_goes_through_the_teacher_once(tmp_path, teacher, monkeypatch):
    """Packed rows of two epochs, which share some chunks, then again in a new process, which opens each shard once."""
    opened = []
    monkeypatch.setattr(teacher_cache, "safe_open", lambda path, kind: opened.append(path) or safe_open(path, kind))
    rows, seen = PackedRows(PROMPTS, SAMPLES.train, 3, 3, seed=1), watch(teacher)
    epochs = [rows.keys(0), rows.keys(1)]
    shared = set(epochs[0]) & set(epochs[1])
    assert shared and shared != set(epochs[0])
    distinct = {(rows[key].ids.tobytes(), rows[key].labels.tobytes()) for keys in epochs for key in keys}
    cache = cache_of(tmp_path, teacher)
    for keys in epochs:
        cache.fill(rows, keys, show_progress=False)
    assert len(seen) == len(distinct) and sorted(opened) == sorted(cache.folder.iterdir())
    again = cache_of(tmp_path, teacher)
    for keys in epochs:
        again.fill(rows, keys, show_progress=False)
        assert torch.equal(again.states([rows[key] for key in keys]), cache.states([rows[key] for key in keys]))
    assert len(seen) == len(distinct)


def test_rows_that_differ_in_labels_alone_differ(tmp_path, teacher):
    ids, labels, _ = ROWS[(0,)]
    more = labels.copy()
    more[-len(PROMPTS.answers[0]) - 1] = ids[-len(PROMPTS.answers[0]) - 1]
    rows = {(0,): Example(ids, labels), (1,): Example(ids, more)}
    cache = cache_of(tmp_path, teacher)
    cache.fill(rows, list(rows), show_progress=False)
    assert [len(cache.states([rows[key]])) for key in rows] == [int((rows[key].labels >= 0).sum()) for key in rows]


def test_a_pass_has_as_many_tokens_as_were_allowed(tmp_path, teacher, monkeypatch):
    """Rows of like length go together, the longest first, whatever number of them is in memory at once."""
    monkeypatch.setattr(teacher_cache, "TAKEN", 6)
    shapes = []
    teacher.model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    keys = ROWS.keys(0)
    longest = max(len(ROWS[key].ids) for key in keys)
    cache_of(tmp_path, teacher, tokens=3 * longest).fill(ROWS, keys, show_progress=False)
    assert max(rows * width for rows, width in shapes) <= 3 * longest and sum(rows for rows, _ in shapes) == len(keys)
    assert len(shapes) == -(-len(keys) // 3) and [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)
    assert len({width for _, width in shapes}) > 1


def test_what_states_depend_on_is_another_folder(tmp_path, teacher):
    other = tiny_run.backbone()
    with torch.no_grad():
        other.model.norm.weight[3] += 1e-3
    wider = tiny_run.backbone()
    wider.config.rms_norm_eps *= 2
    titles = {**PROMPTS.made_of, "titles": "others"}
    folders = [
        cache_of(tmp_path, teacher).folder,
        cache_of(tmp_path, other.eval()).folder,
        cache_of(tmp_path, wider.eval()).folder,
        cache_of(tmp_path, teacher, bfloat16=True).folder,
        cache_of(tmp_path, teacher, "catalogue").folder,
        cache_of(tmp_path, teacher, "catalogue", titles).folder,
    ]
    assert len(set(folders)) == len(folders) and {folder.parent for folder in folders} == {tmp_path}
    assert cache_of(tmp_path, teacher, made_of=titles, tokens=7).folder == folders[0]  # the vocabulary needs no titles


def test_a_teacher_that_was_saved_and_loaded_is_the_same(tmp_path, teacher):
    before = cache_of(tmp_path, teacher).folder
    teacher.save_pretrained(tmp_path / "model")
    assert cache_of(tmp_path, AutoModelForCausalLM.from_pretrained(tmp_path / "model")).folder == before == cache_of(tmp_path, teacher).folder


def flip(path, other):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": flip,
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path, other: path.write_bytes(b""),
    "no tensors": lambda path, other: path.write_bytes(b"no tensors"),
    "another teacher's": lambda path, other: shutil.copy(other, path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_made_again(tmp_path, teacher, damage, caplog, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 1)
    keys = ROWS.keys(0)
    examples = [ROWS[key] for key in keys]
    other = cache_of(tmp_path, llama(0, torch.float32, vocab_size=VOCAB))
    cache = cache_of(tmp_path, teacher)
    for made in (other, cache):
        made.fill(ROWS, keys, show_progress=False)
    expected, seen = cache.states(examples).clone(), watch(teacher)
    del cache
    path = sorted((cache_of(tmp_path, teacher)).folder.iterdir())[1]
    with safe_open(path, "pt") as file:
        rows = len(file.get_tensor("ends"))
    damage(path, next(other.folder.iterdir()))
    again = cache_of(tmp_path, teacher)
    assert [record.getMessage() for record in caplog.records] == [f"{path} is damaged; its rows go through the teacher again"]
    assert not path.exists()
    again.fill(ROWS, keys, show_progress=False)
    assert torch.equal(again.states(examples), expected)
    assert len(seen) == rows < len(keys)


def test_goes_on_where_it_was_cut(tmp_path, teacher, monkeypatch):
    """The fourth pass fails: the three before are on the disk, and the rest alone is computed afterwards."""
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 1)
    keys = ROWS.keys(0)
    examples = [ROWS[key] for key in keys]
    whole = cache_of(tmp_path / "whole", teacher)
    whole.fill(ROWS, keys, show_progress=False)
    passes = []

    def fail(*_):
        passes.append(1)
        if len(passes) == 4:
            raise KeyboardInterrupt

    hook = teacher.model.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        cache_of(tmp_path, teacher).fill(ROWS, keys, show_progress=False)
    hook.remove()
    seen, again = watch(teacher), cache_of(tmp_path, teacher)
    assert len(list(again.folder.iterdir())) == 3
    again.fill(ROWS, keys, show_progress=False)
    assert torch.equal(again.states(examples), whole.states(examples)) and 0 < len(seen) < len(keys)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("cut", [2, 3, 5])
def test_a_cut_does_not_show_in_the_last_bit(tmp_path, teacher, monkeypatch, cut, bfloat16):
    """Rows of many lengths, of which some were there before, in passes that a cut would put together otherwise."""
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 1)
    generator, answer = np.random.default_rng(1), PROMPTS.answers[0]
    ids = [generator.integers(1, VOCAB, length) for length in generator.integers(5, 40, 30)]
    rows = {(n,): Example(np.concatenate([row, answer]), np.concatenate([np.full(len(row), -100), answer])) for n, row in enumerate(ids)}
    keys, before = list(rows), [(4,), (11,), (20,)]
    for folder in ("whole", "cut"):
        cache_of(tmp_path / folder, teacher, tokens=90, bfloat16=bfloat16).fill(rows, before, show_progress=False)
    whole = cache_of(tmp_path / "whole", teacher, tokens=90, bfloat16=bfloat16)
    whole.fill(rows, keys, show_progress=False)
    passes = []

    def fail(*_):
        passes.append(1)
        if len(passes) == cut:
            raise KeyboardInterrupt

    hook = teacher.model.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        cache_of(tmp_path / "cut", teacher, tokens=90, bfloat16=bfloat16).fill(rows, keys, show_progress=False)
    hook.remove()
    again = cache_of(tmp_path / "cut", teacher, tokens=90, bfloat16=bfloat16)
    again.fill(rows, keys, show_progress=False)
    examples = [rows[key] for key in keys]
    assert torch.equal(again.states(examples), whole.states(examples))


def test_a_shard_is_written_when_it_took_long(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_SECONDS", 0.0)
    cache = cache_of(tmp_path, teacher)
    cache.fill(ROWS, ROWS.keys(0), show_progress=False)
    assert len(list(cache.folder.iterdir())) > 3


def test_processes_share_the_rows(tmp_path, teacher, monkeypatch):
    """As if there were two, one after the other; the last finds what both did."""
    monkeypatch.setattr(distributed, "world", lambda: 2)
    waited = []
    monkeypatch.setattr(teacher_cache, "barrier", lambda: waited.append(len(list(cache.folder.iterdir()))))
    seen, keys = watch(teacher), ROWS.keys(0)
    counts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        cache = cache_of(tmp_path, teacher)
        cache.fill(ROWS, keys, show_progress=False)
        counts.append(len(seen))
    assert counts == [len(keys) - len(keys) // 2, len(keys)]
    assert waited == [1, 2]  # for the others, when its own shard is on the disk
    expected = torch.cat([alone(teacher, ROWS[key], "vocabulary") for key in keys])
    assert (cache.states([ROWS[key] for key in keys]) - expected).abs().max() < 1e-5


def test_a_row_that_was_never_computed_is_a_defect(tmp_path, teacher):
    cache = cache_of(tmp_path, teacher)
    assert cache.states([]).shape == (0, teacher.config.hidden_size)
    with pytest.raises(LookupError, match=r"2 of 2 rows are not in .*teacher-\w{16}: they were never computed"):
        cache.states([ROWS[(0,)], ROWS[(1,)]])
    cache.fill(ROWS, [(0,)], show_progress=False)
    with pytest.raises(LookupError, match="1 of 2 rows"):
        cache.states([ROWS[(0,)], ROWS[(1,)]])


def states_on_disk(cache):
    """Bytes of states alone."""
    total = 0
    for path in cache.folder.iterdir():
        with safe_open(path, "pt") as file:
            total += file.get_tensor("states").nbytes
    return total


@both_softmaxes
def test_what_it_will_take_is_said(tmp_path, teacher, name, caplog, monkeypatch):
    monkeypatch.setattr(teacher_cache, "_amount", lambda count: f"{count} bytes")
    caplog.set_level(logging.INFO)
    cache, keys = cache_of(tmp_path, teacher, name), ROWS.keys(0)
    cache.announce([(ROWS, keys[:5]), (ROWS, [*keys[5:], *keys[5:]])])
    cache.fill(ROWS, keys, show_progress=False)
    needed = states_on_disk(cache)
    assert caplog.messages == [f"teacher's hidden states: {len(keys)} of {len(keys)} rows, about {needed} bytes at most, go into {cache.folder}"]
    caplog.clear()
    cache.announce([(ROWS, keys)])
    assert caplog.messages == []


def test_a_sample_tells_the_size_of_all(tmp_path, teacher, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(teacher_cache, "SAMPLED", 12)
    monkeypatch.setattr(teacher_cache, "_amount", lambda count: f"{count} bytes")
    room = namedtuple("usage", ["free"])(0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    cache, keys = cache_of(tmp_path, teacher), ROWS.keys(0)
    with pytest.raises(UserError) as caught:
        cache.announce([(ROWS, keys)])
    cache.fill(ROWS, keys, show_progress=False)
    needed = int(re.search(r"about (\d+) bytes", caplog.text)[1])
    assert "has 0 MiB free" in str(caught.value)
    assert needed == pytest.approx(states_on_disk(cache), rel=0.2)


def test_a_disk_without_room_is_told_before(tmp_path, teacher, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return namedtuple("usage", ["free"])(2**20)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    cache = cache_of(tmp_path / "saved" / "cache", teacher)
    cache.announce([(ROWS, ROWS.keys(0))])  # that much there is
    many = {(index,): ROWS[(index % 20,)] for index in range(5000)}
    with pytest.raises(UserError) as caught:
        cache.announce([(many, list(many))])
    assert re.fullmatch(
        rf"checkpoint_dir={cache.folder} has 1 MiB free, and the run needs about \d MiB; "
        "make room, or choose another folder; or choose restore.cache=false",
        str(caught.value),
    )
    assert set(asked) == {tmp_path}


def test_what_a_killed_process_left_is_swept_away(tmp_path, teacher):
    folder = cache_of(tmp_path, teacher).folder
    folder.mkdir()
    old, new = folder / ".a.safetensors.1.partial", folder / ".b.safetensors.2.partial"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    cache_of(tmp_path, teacher)
    assert not old.exists() and new.exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells memory of files and of its own apart")
def test_files_stay_files(tmp_path):
    """Sixteen megabytes are read from a memory map, shard by shard, and take no memory of their own."""
    wide = qwen2(0, torch.float32, vocab_size=VOCAB, hidden_size=2048, intermediate_size=8, num_hidden_layers=1)
    generator = np.random.default_rng(0)
    ids = generator.integers(1, VOCAB, (100, 21))
    rows = {(index,): Example(row, np.where(np.arange(21) > 0, row, -100)) for index, row in enumerate(ids)}
    made = cache_of(tmp_path, wide, tokens=1000)
    made.fill(rows, list(rows), show_progress=False)
    size = states_on_disk(made)
    del made

    def own():
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    ctypes.CDLL(None).malloc_trim(0)  # or what was freed is taken again unseen
    before = own()
    cache = cache_of(tmp_path, wide, tokens=1000)
    sums = [float(cache.states([row]).sum()) for row in rows.values()]
    assert size == 100 * 20 * 2048 * 4 and len(set(sums)) == 100
    assert own() - before < size / 4
