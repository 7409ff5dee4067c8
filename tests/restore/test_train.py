"""The trainer's loss against loops over positions, and what it leaves behind."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import qwen2

from recbole_prunerec.data.samples import Part
from recbole_prunerec.restore.train import Distillation, Optimisation, train, use_bfloat16
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.packing import SampleRows, collate
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.text.tokenizer import train_tokenizer

TITLES = [f"Film {letter}" for letter in "ABCDEFGH"]
TOKENIZER = train_tokenizer(TITLES, 280)
PROMPTS = Prompts(TOKENIZER, Catalogue.build([str(item) for item in range(9)], ["", *TITLES], [0] * 9), "list", 128)
HOW = Optimisation(
    epochs=2, batch_size=4, learning_rate=1e-3, schedule="linear", warmup_steps=1, weight_decay=0.01, betas=(0.9, 0.999), clip=1.0, stopping_step=0,
    precision="float32", seed=3,
)  # fmt: skip


def rows(count: int, seed: int = 0) -> SampleRows:
    generator = np.random.default_rng(seed)
    histories, lengths = generator.integers(1, 9, size=(count, 4)), generator.integers(1, 5, size=count)
    histories[np.arange(4) >= lengths[:, None]] = 0
    return SampleRows(PROMPTS, Part(np.arange(count), histories, lengths, generator.integers(1, 9, size=count)))


def model(seed: int = 0, dtype=torch.float32):
    return qwen2(seed, dtype, vocab_size=len(TOKENIZER))


def fit(student, tmp_path, how=HOW, data=None, valid=None, **more) -> float:
    return train(
        student,
        data or rows(24),
        valid or rows(8, 1),
        PROMPTS.pad_id,
        how,
        "test",
        tmp_path / "work",
        tmp_path / "tensorboard",
        show_progress=False,
        **more,
    )


def reference_loss(student, data: SampleRows, teacher=None, weight: float = 0.0, temperature: float = 1.0) -> float:
    """kd_weight * KL(teacher || student) + (1 - kd_weight) * CE, one sample and one position at a time, in float64."""
    total, count = 0.0, 0
    for key in data.keys(0):
        ids, labels = data[key]
        inputs = torch.from_numpy(ids)[None]
        own = student(inputs).logits[0].double()
        other = teacher(inputs).logits[0].double() if teacher is not None else None
        for position in range(1, len(ids)):
            if labels[position] == -100:
                continue
            count += 1
            loss = (1 - weight) * -torch.log_softmax(own[position - 1], -1)[ids[position]].item()
            if other is not None:
                p, q = (torch.log_softmax(logits[position - 1] / temperature, -1) for logits in (other, own))
                loss += weight * temperature**2 * sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
            total += loss
    return total / count


def test_validation_loss_of_finetuning_is_mean_cross_entropy(tmp_path):
    student, valid = model(), rows(8, 1)
    loss = fit(student, tmp_path, valid=valid)
    assert loss == pytest.approx(reference_loss(student, valid), rel=1e-5)


def test_validation_loss_of_restoration_is_the_mixture(tmp_path):
    student, teacher, valid = model(), model(7), rows(8, 1)
    loss = fit(student, tmp_path, valid=valid, distillation=Distillation(teacher, 0.8, "forward_kl", 2.0))
    assert loss == pytest.approx(reference_loss(student, valid, teacher, 0.8, 2.0), rel=1e-4)


def test_one_step_follows_the_gradient_of_the_global_mean(tmp_path):
    """One AdamW step of a single batch moves every weight by the learning rate against the sign of the reference gradient."""
    student, data = model(), rows(4)
    reference = copy.deepcopy(student)
    batch = collate([data[key] for key in data.keys(0)], PROMPTS.pad_id)
    reference(**batch).loss.backward()  # transformers' own shifted mean over labels
    how = replace(HOW, epochs=1, warmup_steps=0, weight_decay=0.0, clip=1e9)
    fit(student, tmp_path, how=how, data=data)
    moved = {name: parameter.detach() - dict(student.named_parameters())[name].detach() for name, parameter in reference.named_parameters()}
    for name, parameter in reference.named_parameters():
        certain = parameter.grad.abs() > 1e-5
        assert certain.any()
        torch.testing.assert_close(moved[name][certain], HOW.learning_rate * parameter.grad.sign()[certain], rtol=2e-2, atol=1e-6)


def test_training_repeats_to_the_bit(tmp_path):
    first, second = model(), model()
    assert fit(first, tmp_path / "a") == fit(second, tmp_path / "b")
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(next(first.parameters()), next(model().parameters()))


def test_the_best_weights_are_kept_and_training_stops(tmp_path):
    """At a learning rate that destroys the model every epoch is worse than the first: what is left is the first epoch's model."""
    how = replace(HOW, epochs=1, learning_rate=0.3, warmup_steps=0, schedule="constant")
    once, longer = model(), model()
    first = fit(once, tmp_path / "a", how=how)
    best = fit(longer, tmp_path / "b", how=replace(how, epochs=6))
    assert best <= first
    assert best == pytest.approx(reference_loss(longer, rows(8, 1)), rel=1e-4)


def test_the_teacher_does_not_change_and_no_epochs_change_nothing(tmp_path):
    student, teacher = model(), model(7)
    fit(student, tmp_path, distillation=Distillation(teacher, 0.8, "js", 1.0))
    assert all(torch.equal(one, other) for one, other in zip(teacher.parameters(), model(7).parameters(), strict=True))
    untouched = model()
    assert math.isnan(fit(untouched, tmp_path, how=replace(HOW, epochs=0)))
    assert all(torch.equal(one, other) for one, other in zip(untouched.parameters(), model().parameters(), strict=True))


def test_losses_and_learning_rate_are_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(model(), tmp_path, data=rows(60), distillation=Distillation(model(7), 0.8, "forward_kl", 1.0))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/kd", "train/ce", "train/learning_rate", "eval/loss", "eval/kd", "eval/ce"} <= tags
    kd, ce, loss = (events.Scalars(f"train/{name}")[0].value for name in ("kd", "ce", "loss"))
    assert loss == pytest.approx(0.8 * kd + 0.2 * ce, rel=1e-4)


def test_precision_follows_a_rule_not_a_clock():
    assert use_bfloat16("bfloat16", 1) and not use_bfloat16("float32", 10**12)
    if not torch.cuda.is_available():
        assert not use_bfloat16("auto", 10**6)
        assert use_bfloat16("auto", 10**9) == torch.cpu._is_avx512_bf16_supported()
