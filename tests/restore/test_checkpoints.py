"""Training that is cut anywhere ends as if it had not been, and a loss that is not finite stops it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from restore.test_train import HOW, PROMPTS, fit, model, rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_prunerec.data.samples import Part
from recbole_prunerec.errors import UserError
from recbole_prunerec.restore import train as training
from recbole_prunerec.restore.train import Distillation
from recbole_prunerec.run_folder import RunFolder
from recbole_prunerec.text.packing import PackedRows

OFTEN = replace(HOW, checkpoint_minutes=1e-9)  # after every step
STEPS = 12  # two epochs of 24 rows in batches of 4


def dropping(seed: int = 0):
    """A model with dropout, so that the random state matters."""
    student = model(seed)
    student.config.attention_dropout = 0.2
    for layer in student.model.layers:
        layer.self_attn.attention_dropout = 0.2
    return student


def cut_after(step: int, monkeypatch) -> None:
    """Let training die when it starts the step after `step`."""
    original = training.AnswerTrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(training.AnswerTrainer, "training_step", dying)


def packed() -> PackedRows:
    generator = np.random.default_rng(5)
    sequences = [generator.integers(1, 9, size=9) for _ in range(12)]
    samples = [(user, sequence[max(0, end - 4) : end], sequence[end]) for user, sequence in enumerate(sequences) for end in range(1, 9)]
    histories = np.array([np.pad(history, (0, 4 - len(history))) for _, history, _ in samples])
    users, targets = (np.array([sample[place] for sample in samples]) for place in (0, 2))
    return PackedRows(PROMPTS, Part(users, histories, np.array([len(history) for _, history, _ in samples]), targets), 5, 3, seed=1)


def same(one, other) -> bool:
    return all(torch.equal(first, second) for first, second in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    student = dropping()
    return fit(student, tmp_path_factory.mktemp("whole"), distillation=Distillation(model(7), 0.8, "forward_kl", 1.0)), student


@pytest.mark.parametrize("step", range(1, STEPS))
def test_training_cut_after_any_step_ends_with_the_same_weights(whole, tmp_path, monkeypatch, step):
    teacher = Distillation(model(7), 0.8, "forward_kl", 1.0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        cut_after(step, patched)
        fit(dropping(), tmp_path, how=OFTEN, distillation=teacher)
    steps_run = []
    original = training.AnswerTrainer.training_step
    monkeypatch.setattr(
        training.AnswerTrainer, "training_step", lambda self, *a, **k: (steps_run.append(self.state.global_step), original(self, *a, **k))[1]
    )
    student = dropping()
    loss = fit(student, tmp_path, how=OFTEN, distillation=teacher)
    assert steps_run == list(range(step, STEPS))  # nothing is done twice
    assert loss == whole[0] and same(student, whole[1])


def test_an_epoch_is_saved_whatever_the_clock_says(whole, tmp_path, monkeypatch):
    teacher = Distillation(model(7), 0.8, "forward_kl", 1.0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        cut_after(9, patched)
        fit(dropping(), tmp_path, distillation=teacher)
    assert [path.name for path in (tmp_path / ".work" / "1-test").iterdir()] == ["checkpoint-6"]
    student = dropping()
    assert fit(student, tmp_path, distillation=teacher) == whole[0] and same(student, whole[1])


def test_packed_chunks_go_on_with_the_same_offsets(tmp_path, monkeypatch):
    how, straight, student = replace(OFTEN, epochs=3), model(), model()
    fit(straight, tmp_path / "whole", how=how, data=packed())
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        cut_after(13, patched)
        fit(model(), tmp_path / "cut", how=how, data=packed())
    fit(student, tmp_path / "cut", how=how, data=packed())
    assert same(student, straight)


def test_finished_training_is_not_run_again_and_an_early_stop_stays_one(tmp_path, monkeypatch):
    how = replace(OFTEN, epochs=6, learning_rate=0.3, warmup_steps=0, schedule="constant")
    first, second = model(), model()
    loss = fit(first, tmp_path, how=how)
    cut_after(-1, monkeypatch)
    monkeypatch.setattr(training.AnswerTrainer, "training_step", lambda *_: pytest.fail("trained again"))
    assert fit(second, tmp_path, how=how) == loss and same(first, second)


def test_only_the_newest_and_the_best_checkpoint_stay_and_all_are_listed(tmp_path, monkeypatch):
    original = training.AnswerTrainer._losses

    def rising(self, *args):
        """Every validation is worse than the one before."""
        losses = original(self, *args)
        return losses if self._student.training else losses + 100 * self.state.global_step

    monkeypatch.setattr(training.AnswerTrainer, "_losses", rising)
    fit(model(), tmp_path, how=replace(OFTEN, epochs=4, stopping_step=9))
    names = sorted(path.name for path in (tmp_path / ".work" / "1-test").iterdir())
    assert names == ["checkpoint-24", "checkpoint-6"]
    listed = {name.split("/")[2] for name in RunFolder(tmp_path)._files}
    assert listed == set(names)
    RunFolder(tmp_path).check()


def test_losses_on_tensorboard_are_those_of_one_run(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        cut_after(8, patched)
        fit(model(), tmp_path, data=rows(24))
    fit(model(), tmp_path, data=rows(24))
    steps = [event.step for event in EventAccumulator(str(tmp_path / "tensorboard" / "1-test")).Reload().Scalars("train/loss")]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_batch_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, value):
    original = training.AnswerTrainer._losses

    def spoilt(self, *args):
        losses = original(self, *args)
        return losses * value if self.state.global_step == 8 and self._student.training else losses

    with monkeypatch.context() as patched:
        patched.setattr(training.AnswerTrainer, "_losses", spoilt)
        with pytest.raises(UserError, match=rf"the loss of batch 3 of epoch 2 is {value}.*learning_rate"):
            fit(dropping(), tmp_path, how=OFTEN)
    RunFolder(tmp_path).check()
    assert (tmp_path / ".work" / "1-test" / "checkpoint-8").is_dir()
    student, straight = dropping(), dropping()
    assert fit(student, tmp_path, how=OFTEN) == fit(straight, tmp_path / "straight", how=OFTEN) and same(student, straight)


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path, monkeypatch):
    original = training.AnswerTrainer.training_step

    def spoil(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.state.global_step == 7:
            next(self._student.parameters()).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(training.AnswerTrainer, "training_step", spoil)
    with pytest.raises(UserError, match="weights are not finite after step 8"):
        fit(model(), tmp_path, how=replace(OFTEN, clip=0.0))
    RunFolder(tmp_path).check()
    assert "checkpoint-7" in {path.name for path in (tmp_path / ".work" / "1-test").iterdir()}
    assert not (tmp_path / ".work" / "1-test" / "checkpoint-8").exists()


def test_a_validation_loss_that_is_not_finite_is_said(tmp_path):
    student = model()
    with torch.no_grad():
        student.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"loss of batch 1 of epoch 1 is nan"):
        fit(student, tmp_path)
