import weakref
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tiny_run
import torch
from safetensors import safe_open
from tiny import batch, llama, qwen2, qwen3
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import answer_logits, answer_mask
from recbole_prunerec.estimate import (
    LOGITS,
    Tokens,
    activation_bytes,
    count_tokens,
    disk,
    duration,
    planned_work,
    sizes_by_step,
    time_left,
    training_memory,
    training_rows,
)
from recbole_prunerec.pipeline import run
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.restore.losses import LOSSES, restoration_loss
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.settings import Settings
from recbole_prunerec.text.prompts import Prompts

SIZES = Sizes(hidden=8, layers=2, heads=4, kv_heads=2, head_dim=2, intermediate=16, vocab=50, tied=True)
SHAPE = Shape("qwen2", 8, 2, 4, 2, 16)
STEPS = [{"do": "finetune"}, {"do": "mlp", "intermediate": 4}, {"do": "depth", "layers": 1, "restore": {"epochs": 1}}]
SETTINGS = Settings.model_validate({"steps": STEPS, "epochs": 3, "restore": {"epochs": 2}})
NARROW, SHALLOW = Sizes(8, 2, 4, 2, 2, 4, 50, True), Sizes(8, 1, 4, 2, 2, 4, 50, True)


def weights(sizes: Sizes) -> int:
    return sizes.non_embedding_parameters + sizes.vocab * sizes.hidden


def test_planned_work_adds_training_and_ranking():
    work = planned_work(SETTINGS, SIZES, SHAPE, tokens_an_epoch=1000, tokens_a_user=10, rows={"all": 30, "few": 5})
    teacher, narrow, shallow = map(weights, (SIZES, NARROW, SHALLOW))
    assert work == [
        teacher * (9 * 1000 + 300),
        2 * 1000 * (3 * narrow + teacher) + 100 * narrow,
        1 * 1000 * (3 * shallow + teacher) + 350 * shallow,
    ]


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


def test_tokens_of_single_samples_are_those_of_the_rows():
    data, settings = tiny_run.samples(), tiny_run.SETTINGS.model_copy(update={"packing": False})
    prompts = Prompts(tiny_run.TOKENIZER, data.catalogue, "list", 512)
    train, test = data.train, data.test
    rows = [(len(prompts.prompt(train.history(index).tolist())), len(prompts.answer(train.targets[index]))) for index in range(len(train))]
    asked = [len(prompts.prompt(test.history(index).tolist())) for index in range(len(test))]
    found = count_tokens(settings, prompts, data)
    assert found.epoch == sum(prompt + answer for prompt, answer in rows)
    assert found.user == sum(asked) // len(asked) + 8 * sum(map(len, prompts.answers)) // len(prompts.answers)
    assert found.batch == 8 * max(prompt + answer for prompt, answer in rows)
    assert found.answers in {8 * answer for prompt, answer in rows if 8 * (prompt + answer) == found.batch}


def test_tokens_of_packed_rows_are_those_of_the_chunks():
    """With a stride of a whole chunk and long chunks, a user's five training titles are one row, or two where the seeded offset cuts them."""
    data, settings = tiny_run.samples(), tiny_run.SETTINGS.model_copy(update={"MAX_ITEM_LIST_LENGTH": 10})
    prompts = Prompts(tiny_run.TOKENIZER, data.catalogue, "list", 512)
    longest = 0
    for user in np.unique(data.train.users):
        samples = np.flatnonzero(data.train.users == user)
        items = [*data.train.history(samples[0]).tolist(), *data.train.targets[samples].tolist()]
        longest = max(longest, len(prompts.chunk(items, [True] * len(items)).ids))
    found, rows = count_tokens(settings, prompts, data), training_rows(settings, prompts, data.train)
    assert found.epoch == sum(len(rows[key].ids) for key in rows.keys(0))
    assert found.batch <= 8 * longest and found.batch == 8 * max(len(rows[key].ids) for key in rows.keys(0))


class Held(TorchDispatchMode):
    """The most bytes of tensors that live at once among those made meanwhile, as the dispatcher sees them."""

    def __init__(self, known):
        super().__init__()
        self._known, self._live, self._now, self.peak = {tensor.untyped_storage().data_ptr() for tensor in known}, {}, 0, 0

    def _freed(self, key):
        self._now -= self._live.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._live and storage.data_ptr() not in self._known:
                    self._live[key] = storage.nbytes()
                    self._now += storage.nbytes()
                    self.peak = max(self.peak, self._now)
                    weakref.finalize(storage, self._freed, key)
        return out


def held_by_a_step(model, teacher, rows, loss) -> int:
    """Bytes at the peak of a training step with AdamW, weights of model and teacher included, once there are moments."""
    known = [*model.parameters(), *(teacher.parameters() if teacher else [])]
    with Held(known) as held:
        optimiser = torch.optim.AdamW(model.parameters(), foreach=False)
        for _ in range(2):
            student = answer_logits(model, rows)
            if teacher is None:
                total = torch.nn.functional.cross_entropy(student.logits, student.targets, reduction="sum") / 7
            else:
                with torch.no_grad():
                    guide = answer_logits(teacher, rows)
                total, *_ = restoration_loss(student.logits, guide.logits, student.targets, 0.8, loss, 1.0, 7)
            total.backward()
            del student, total
            optimiser.step()
            optimiser.zero_grad()
    return held.peak + 4 * sum(parameter.numel() for parameter in known)


WIDE = {"hidden_size": 48, "intermediate_size": 400, "num_hidden_layers": 4}
MODELS = {
    "activations": lambda seed: qwen2(seed, torch.float32, **WIDE),
    "attention": lambda seed: llama(seed, torch.float32, num_attention_heads=12, num_key_value_heads=6),
    "vocabulary": lambda seed: qwen2(seed, torch.float32, vocab_size=4000, num_hidden_layers=1),
    "norms on heads": lambda seed: qwen3(seed, torch.float32),
}


@pytest.mark.parametrize(("name", "loss"), [*product(MODELS, [None, "forward_kl"]), *(("vocabulary", loss) for loss in list(LOSSES)[1:])])
def test_memory_is_what_training_holds(name, loss):
    """Against the tensors that live in a real training step: never less, and not much more."""
    model, teacher = MODELS[name](0).train(), MODELS[name](1) if loss else None
    rows = batch(rows=8, prompt=(40, 41), answer=(6, 7))
    sizes, tokens = Sizes.of(model), Tokens(0, 0, rows["input_ids"].numel(), int(answer_mask(rows["labels"]).sum()))
    steps = [{"do": "finetune"}] if loss is None else [{"do": "finetune"}, {"do": "depth", "layers": 1, "restore": {"kd_loss": loss}}]
    estimated = training_memory(Settings.model_validate({"steps": steps}), sizes, [sizes] * len(steps), tokens)[-1]
    measured = held_by_a_step(model, teacher, rows, loss)
    assert 0.97 * measured < estimated < 1.3 * measured


@pytest.mark.parametrize("make", [qwen2, qwen3, llama])
def test_a_layer_keeps_what_autograd_saves(make):
    """Two more layers, by the storages that autograd keeps for the backward pass, shared ones counted once."""
    rows, kept = batch(rows=8, prompt=(40, 41), answer=(6, 7)), []
    for layers in (2, 4):
        model, storages = make(0, torch.float32, num_hidden_layers=layers).train(), {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def pack(tensor, storages=storages, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = answer_logits(model, rows).logits.sum()
        kept.append(sum(storage.nbytes() for storage in storages.values()))
        del loss
    sizes = Sizes.of(model)
    few, more = (activation_bytes(replace(sizes, layers=layers), rows["input_ids"].numel(), 0, None) for layers in (2, 4))
    assert more - few == pytest.approx(kept[1] - kept[0], rel=0.04)


def test_memory_counts_the_models_that_stand_beside():
    """16 bytes a parameter that is trained, 4 for the teacher and for the model before the cut, which after the teacher's step is the teacher."""
    tokens = Tokens(0, 0, 100, 10)
    p, q, r = (sizes.total_parameters for sizes in (SIZES, NARROW, SHALLOW))
    activations = [activation_bytes(SIZES, 100, 10, None), *(activation_bytes(sizes, 100, 10, "forward_kl", SIZES) for sizes in (NARROW, SHALLOW))]
    expected = [16 * p + activations[0], 16 * q + 4 * p + activations[1], 16 * r + 4 * p + 4 * q + activations[2]]
    assert training_memory(SETTINGS, SIZES, [SIZES, NARROW, SHALLOW], tokens) == expected
    untrained = SETTINGS.model_copy(update={"steps": (SETTINGS.steps[0], *Settings.model_validate({"steps": [
        {"do": "finetune"}, {"do": "mlp", "intermediate": 4, "restore": {"epochs": 0}}]}).steps[1:])})  # fmt: skip
    assert training_memory(untrained, SIZES, [SIZES, NARROW], tokens)[1] == 4 * q + 4 * p


def test_every_loss_has_its_logits():
    assert set(LOGITS) == {None, *LOSSES}


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
