"""The trainer's loss against loops over positions, and what it leaves behind."""

import copy
import math
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from naive import answer_logits, closed
from tiny import qwen2
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2 import modeling_qwen2

from recbole_prunerec.backbone.softmax import softmax_of
from recbole_prunerec.data.samples import Part
from recbole_prunerec.restore.losses import LOSSES
from recbole_prunerec.restore.train import Distillation, Optimisation, train, use_bfloat16
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.packing import EpochBatches, SampleRows, collate
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


def fit(student, tmp_path, how=HOW, data=None, valid=None, softmax="vocabulary", **more) -> float | None:
    return train(
        student,
        data or rows(24),
        valid or rows(8, 1),
        PROMPTS.pad_id,
        how,
        RunFolder(tmp_path),
        "1-test",
        softmax_of(softmax, PROMPTS.trie, len(TOKENIZER)),
        show_progress=False,
        **more,
    )


def reference_loss(student, data: SampleRows, teacher=None, weight: float = 0.0, temperature: float = 1.0, trie=None) -> float:
    """kd_weight * KL(teacher || student) + (1 - kd_weight) * CE, one sample and one position at a time, in float64."""
    total, count = 0.0, 0
    for key in data.keys(0):
        ids, labels, _ = data[key]
        inputs = torch.from_numpy(ids)[None]
        mask = 0.0 if trie is None else closed(torch.from_numpy(labels)[None], trie, len(TOKENIZER))[0]
        own = student(inputs).logits[0].double() + mask
        other = teacher(inputs).logits[0].double() + mask if teacher is not None else None
        for position in range(1, len(ids)):
            if labels[position] == -100:
                continue
            count += 1
            loss = (1 - weight) * -torch.log_softmax(own[position - 1], -1)[ids[position]].item()
            if other is not None:
                p, q = (torch.log_softmax(logits[position - 1] / temperature, -1) for logits in (other, own))
                loss += weight * temperature**2 * sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > -math.inf)
            total += loss
    return total / count


SOFTMAXES = {"vocabulary": None, "catalogue": PROMPTS.trie}


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_validation_loss_of_finetuning_is_mean_cross_entropy(softmax, tmp_path):
    student, valid = model(), rows(8, 1)
    loss = fit(student, tmp_path, valid=valid, softmax=softmax)
    assert loss == pytest.approx(reference_loss(student, valid, trie=SOFTMAXES[softmax]), rel=1e-5)


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_validation_loss_of_restoration_is_the_mixture(softmax, tmp_path):
    student, teacher, valid = model(), model(7), rows(8, 1)
    loss = fit(student, tmp_path, valid=valid, softmax=softmax, distillation=Distillation(teacher, 0.8, "forward_kl", 2.0))
    assert loss == pytest.approx(reference_loss(student, valid, teacher, 0.8, 2.0, SOFTMAXES[softmax]), rel=1e-4)


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


def reference_training(student, data: SampleRows, valid: SampleRows, how: Optimisation) -> dict[str, torch.Tensor]:
    """AdamW written out: the weights after the epoch with the best validation loss. No decay on norms and biases; warm-up is a fifth at most."""
    batches = EpochBatches(data, how.batch_size, how.epochs, how.seed)
    total, step, best, kept = len(batches) * how.epochs, 0, math.inf, {}
    warmup = min(how.warmup_steps, total // 5)
    first, second = ({name: torch.zeros_like(p) for name, p in student.named_parameters()} for _ in range(2))

    def loss(source, keys) -> tuple[torch.Tensor, int]:
        with torch.autocast("cpu", torch.bfloat16, enabled=how.precision == "bfloat16"):
            logits, targets, _ = answer_logits(student, collate([source[key] for key in keys], PROMPTS.pad_id))
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)

    for epoch in range(how.epochs):
        batches.set_epoch(epoch)
        for keys in batches:
            summed, count = loss(data, keys)
            student.zero_grad()
            (summed / count).backward()
            left = (total - step) / (total - warmup)
            decay = left if how.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
            rate, step = how.learning_rate * (step / warmup if step < warmup else decay), step + 1
            norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in student.parameters()))
            with torch.no_grad():
                for name, p in student.named_parameters():
                    gradient = p.grad * min(1.0, how.clip / (norm + 1e-6))
                    p -= rate * how.weight_decay * p * (p.ndim > 1)
                    first[name] += (1 - how.betas[0]) * (gradient - first[name])
                    second[name] += (1 - how.betas[1]) * (gradient**2 - second[name])
                    mean, square = first[name] / (1 - how.betas[0] ** step), second[name] / (1 - how.betas[1] ** step)
                    p -= rate * mean / (square.sqrt() + 1e-8)
        with torch.no_grad():
            found = loss(valid, valid.keys(0))[0].item()
        if found < best:
            best, kept = found, {name: p.detach().clone() for name, p in student.named_parameters()}
    return kept


@cache
def plainly_trained() -> dict[str, torch.Tensor]:
    return reference_training(model(), rows(28), rows(8, 1), HOW)


def distance(one, other) -> float:
    return math.sqrt(sum((one[name] - other[name]).detach().square().sum().item() for name in one))


OPTIONS = {"epochs": 3, "batch_size": 8, "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 0, "weight_decay": 3.0, "betas": (0.5, 0.9),
           "clip": 1e-8, "precision": "bfloat16", "seed": 4}  # fmt: skip
ELSEWHERE = {
    "stopping_step",
    "checkpoint_minutes",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "attn_implementation",
}  # what other tests are about


@pytest.mark.parametrize("changes", [{}, {"warmup_steps": 50}, *({key: value} for key, value in OPTIONS.items())], ids=str)
def test_every_option_does_what_a_loop_written_by_hand_does(changes, tmp_path):
    trained, how = model(), replace(HOW, **changes)
    fit(trained, tmp_path, how, rows(28))
    expected = reference_training(model(), rows(28), rows(8, 1), how)
    moved = distance(expected, dict(model().named_parameters()))
    assert distance(expected, dict(trained.named_parameters())) < (6e-3 if how.precision == "bfloat16" else 1e-3 if how.clip < 1 else 3e-5) * moved
    assert (distance(expected, plainly_trained()) > 0.01 * moved) == bool(changes)
    assert {field.name for field in fields(Optimisation)} == {*OPTIONS, *ELSEWHERE}


@pytest.mark.parametrize("kd_loss", LOSSES)
def test_the_distance_to_the_teacher_is_the_one_named(kd_loss, tmp_path):
    """The validation loss after a step that is too small to move a weight."""
    student, teacher, valid = model(), model(7), rows(8, 1)
    how = replace(HOW, epochs=1, learning_rate=1e-12, batch_size=24)
    found = fit(student, tmp_path, how, valid=valid, distillation=Distillation(teacher, 0.3, kd_loss, 2.0))
    batch = collate([valid[key] for key in valid.keys(0)], PROMPTS.pad_id)
    with torch.no_grad():
        (own, targets, _), (guide, _, _) = (answer_logits(either, batch) for either in (student, teacher))
    kd, ce = LOSSES[kd_loss](own, guide, 2.0).mean().item(), torch.nn.functional.cross_entropy(own, targets).item()
    assert found == pytest.approx(0.3 * kd + 0.7 * ce, rel=1e-4)


def test_training_stops_once_too_many_validations_were_no_better_and_the_best_weights_are_kept(tmp_path):
    """With this seed and learning rate the third and the fourth of six validations are no better than the second, and the fifth is."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = {}
    for stopping_step in (0, 1, 2):
        student, folder = model(), tmp_path / str(stopping_step)
        best = fit(student, folder, replace(HOW, epochs=6, learning_rate=0.03, warmup_steps=0, seed=10, stopping_step=stopping_step))
        losses[stopping_step] = [event.value for event in EventAccumulator(str(folder / "tensorboard" / "1-test")).Reload().Scalars("eval/loss")]
        assert best == pytest.approx(min(losses[stopping_step])) and best == pytest.approx(reference_loss(student, rows(8, 1)), rel=1e-4)
    every = losses[2]
    assert len(every) == 6 and every[1] < min(every[2:4]) and every[4] < every[1]
    assert losses[0] == every[:3] and losses[1] == every[:4]


def test_the_teacher_does_not_change_and_no_epochs_change_nothing(tmp_path):
    student, teacher = model(), model(7)
    fit(student, tmp_path, distillation=Distillation(teacher, 0.8, "js", 1.0))
    assert all(torch.equal(one, other) for one, other in zip(teacher.parameters(), model(7).parameters(), strict=True))
    untouched = model()
    assert fit(untouched, tmp_path, how=replace(HOW, epochs=0)) is None
    assert all(torch.equal(one, other) for one, other in zip(untouched.parameters(), model().parameters(), strict=True))


def test_losses_and_learning_rate_are_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(model(), tmp_path, data=rows(60), distillation=Distillation(model(7), 0.8, "forward_kl", 1.0))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "1-test")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/kd", "train/ce", "train/learning_rate", "eval/loss", "eval/kd", "eval/ce"} <= tags
    kd, ce, loss = (events.Scalars(f"train/{name}")[0].value for name in ("kd", "ce", "loss"))
    assert loss == pytest.approx(0.8 * kd + 0.2 * ce, rel=1e-4)


def test_precision_follows_a_rule_not_a_clock():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert use_bfloat16("bfloat16", 1, cpu) and not use_bfloat16("float32", 10**12, cuda)
    assert use_bfloat16("auto", 1, cuda) and not use_bfloat16("auto", 10**6, cpu)
    assert use_bfloat16("auto", 10**9, cpu) == torch.cpu._is_avx512_bf16_supported()


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_micro_batches_and_checkpointed_activations_change_nothing(softmax, tmp_path):
    """Rows of many lengths, one to a micro-batch and all in one, after two epochs with a teacher."""
    trained, ways = {}, {"whole": {"micro_batch_tokens": 10**6}, "alone": {"micro_batch_tokens": 1}, "again": {"gradient_checkpointing": True}}
    for name, changes in ways.items():
        student = model()
        distillation = Distillation(model(7), 0.8, "forward_kl", 1.0)
        loss = fit(student, tmp_path / name, replace(HOW, **changes), softmax=softmax, distillation=distillation)
        trained[name] = loss, dict(student.named_parameters())
    whole = trained.pop("whole")
    moved = distance(whole[1], dict(model().named_parameters()))
    for loss, weights in trained.values():
        assert loss == pytest.approx(whole[0], rel=1e-5) and distance(weights, whole[1]) < 1e-4 * moved


def test_a_batch_goes_through_the_model_in_micro_batches_of_like_length(tmp_path, monkeypatch):
    seen = []
    student = model()
    student.base_model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    fit(student, tmp_path, replace(HOW, epochs=1, batch_size=24, micro_batch_tokens=200))
    widths = sorted((len(example.ids) for example in (rows(24)[(row,)] for row in range(24))), reverse=True)
    batch = seen[: next(end for end in range(len(seen) + 1) if sum(count for count, _ in seen[:end]) == 24)]
    assert len(batch) > 1 and all(count * width <= 200 for count, width in batch)
    assert [width for _, width in batch] == [widths[sum(count for count, _ in batch[:number])] for number in range(len(batch))]


def test_a_model_trained_in_bfloat16_is_called_in_float32_again(tmp_path):
    student = model()
    fit(student, tmp_path, replace(HOW, precision="bfloat16"))
    ids = torch.arange(5)[None]
    with torch.no_grad():
        expected = student.get_output_embeddings()(student.base_model(ids).last_hidden_state)
        assert torch.equal(student(ids).logits, expected)


def test_attention_is_computed_as_asked_while_a_model_trains_and_then_as_before(tmp_path, monkeypatch):
    seen = {"sdpa": 0, "eager": 0}
    for name, own in (("sdpa", sdpa_attention_forward), ("eager", modeling_qwen2.eager_attention_forward)):

        def counted(*args, name=name, own=own, **kwargs):
            seen[name] += 1
            return own(*args, **kwargs)

        if name == "eager":
            monkeypatch.setattr(modeling_qwen2, "eager_attention_forward", counted)
        else:
            monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, counted)
    students = [model(), model()]
    for number, (student, implementation) in enumerate(zip(students, (None, "eager"), strict=True)):
        fit(student, tmp_path / str(number), replace(HOW, attn_implementation=implementation))
        assert student.config._attn_implementation == "sdpa"
        assert (seen["sdpa"] > 0, seen["eager"] > 0) == (implementation is None, implementation == "eager")
        seen.update(sdpa=0, eager=0)
    first, second = (dict(student.named_parameters()) for student in students)
    assert distance(first, second) < 1e-3 * distance(first, dict(model().named_parameters()))


def test_training_leaves_no_trace_in_the_model_but_its_weights(tmp_path):
    student = model()
    config, hooks = student.config.to_dict(), sum(len(module._forward_hooks) for module in student.modules())
    fit(student, tmp_path, replace(HOW, precision="bfloat16", gradient_checkpointing=True), distillation=Distillation(model(7), 0.8, "js", 1.0))
    saved = {"architectures", "dtype"}  # what saving a checkpoint notes
    assert {key for key, value in student.config.to_dict().items() if value != config[key]} <= saved
    assert "forward" not in vars(student) and not student.is_gradient_checkpointing
    assert sum(len(module._forward_hooks) for module in student.modules()) == hooks
    with torch.inference_mode():
        assert not student.get_input_embeddings()(torch.arange(3)).requires_grad
