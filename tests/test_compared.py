"""DLLM2Rec, E4SRec and SLMRec in whole runs on a small dataset."""

from pathlib import Path

import numpy as np
import pytest
import small_runs
import torch
from safetensors.torch import load_file
from small_data import write_small
from small_runs import ranks, rows
from torch import nn

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.loading import build, load_data
from recbole_prunerec.quick_start import run
from recbole_prunerec.trainer import PruneRecTrainer, RankedEvaluation

MODELS = ("SASRec", "GRU4Rec", "Caser")
RANKED = ["--dataset=small", "--test_rows=20", "--step_test_rows=10", "--topk=2,5", "--show_progress=false"]
FINETUNED = ["--steps=[{do: finetune}]", "--training_rows=64", "--epochs=1", "--valid_rows=8", "--ranking.beams=12", "--baselines.epochs=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("place")
    write_small(place / "dataset")
    return place


def ran(place: Path, name: str, *argv: str) -> Path:
    """The folder of a finished run whose folders lie in `name`."""
    return small_runs.ran(place, name, *RANKED, *argv)


@pytest.fixture(scope="module")
def together(place) -> Path:
    """Everything beside PruneRec's teacher, which teaches DLLM2Rec."""
    return ran(place, "together", *FINETUNED, "--compare=DLLM2Rec,SLMRec", "--baselines.SLMRec.student_layers=2", "--baselines.E4SRec.epochs=1")


# DLLM2Rec


def test_a_run_has_all_rows_in_the_order_of_the_table(together):
    assert list(rows(together)) == ["Pop", "DLLM2Rec", "SASRec", "E4SRec", "SLMRec", "BIGRec (teacher)"]
    notes = {system: row["note"] for system, row in rows(together).items()}
    assert notes["DLLM2Rec"] == "student SASRec, lists of 10 items for 64 of 64 training samples; not converged: 2 epochs"
    assert notes["E4SRec"] == "4 of 4 layers, 100.0 % of the language model; not converged: 1 epochs"
    assert notes["SLMRec"] == "2 of 4 layers, 50.0 % of the language model, taught by 4, loss slmrec; not converged: 2 epochs"


def test_the_runs_own_teacher_teaches_as_the_same_one_given_does(place, together):
    given = ran(place, "given", "--model=DLLM2Rec", f"--teacher={together / '1-finetune'}", "--training_rows=64", "--epochs=2")
    assert ranks(given, "DLLM2Rec").equals(ranks(together, "DLLM2Rec"))


def built(place: Path, name: str, *argv: str):
    """A model, and the first batch that it would train on."""
    settings = load_arguments([f"--data_path={place / 'dataset'}", *RANKED, f"--model={name}", "--training_rows=64", *argv]).settings
    data = load_data(settings, place / "unused", place / "cache")
    _, model, loaders = build(settings, data, name, place / "unused", place / "cache")
    return model, next(iter(loaders["train"]))


@pytest.mark.parametrize("student", MODELS)
def test_without_teaching_it_is_its_student(place, together, student):
    """With nothing of the teacher left it starts, and learns, as RecBole's student does with binary cross-entropy."""
    nothing = ["--distill_weight=0", "--dro_weight=0", "--embedding_weight=0", f"--student={student}"]
    taught, batch = built(place, "DLLM2Rec", f"--teacher={together / '1-finetune'}", *nothing)
    alone, same = built(place, student, "--loss_type=BCE", *(["--reg_weight=0"] if student == "Caser" else []))
    assert torch.equal(batch["neg_item_id"], same["neg_item_id"])
    gradients = []
    for model in (taught, alone):
        torch.manual_seed(0)
        loss = model.calculate_loss(batch)
        loss.backward()
        weights = (taught.student if model is taught else alone).named_parameters()
        gradients.append({key.replace("item_embedding.own", "item_embedding"): weight for key, weight in weights})
        gradients[-1].pop("item_embedding.project.weight", None)
    assert gradients[0].keys() == gradients[1].keys()
    for key, weight in gradients[0].items():
        assert torch.equal(weight, gradients[1][key])
        torch.testing.assert_close(weight.grad, gradients[1][key].grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("key", ["distill_weight", "dro_weight", "embedding_weight", "confidence_weight", "teacher_samples=10"])
def test_every_part_of_it_changes_what_is_learnt(place, together, key):
    losses = []
    for own in ([], [f"--{key}" if "=" in key else f"--{key}=0"]):
        model, batch = built(place, "DLLM2Rec", f"--teacher={together / '1-finetune'}", *own)
        torch.manual_seed(0)
        losses.append(model.calculate_loss(batch).item())
    assert losses[0] != losses[1] and np.isfinite(losses).all()


def test_its_loss_is_the_sum_of_its_parts(place, together):
    """calculate_loss against the formulas, from the student's scores and the teacher's lists."""
    from compared.test_list_losses import dro, sigmoid, weights

    argv = [f"--teacher={together / '1-finetune'}", "--teacher_samples=20", "--distill_weight=0.7", "--dro_weight=0.4"]
    model, batch = built(place, "DLLM2Rec", *argv)
    propensity = model._propensity.tolist()
    model.eval()  # no dropout
    fields = (batch["item_id_list"].numpy(), batch["item_id"].tolist(), batch["neg_item_id"].tolist())
    own, listed = [], []
    for (_, *scores), history, target, negative in zip(model.full_sort_predict(batch).tolist(), *fields, strict=True):

        def loss(item: int, scores=scores, negative=negative) -> float:
            pair = -np.log(sigmoid(scores[item - 1])) - np.log(1 - sigmoid(scores[negative - 1]))
            return pair + 0.4 * dro(scores, item - 1, propensity)

        own.append(loss(target))
        row = model._lists.rows.get(history.tobytes())
        if row is not None:
            items, said = model._lists.items[row].tolist(), model._lists.log_probabilities[row].tolist()
            first = 1 + np.argsort(scores)[::-1][:10]
            weighed = weights(said, [int(item in first) for item in items], 0.3, 0.5, 0.1)
            listed.append(sum(weight * loss(item) for weight, item in zip(weighed, items, strict=True)))
    assert 0 < len(listed) < len(own)
    assert model.calculate_loss(batch).item() == pytest.approx(np.mean(own) + 0.7 * np.mean(listed), rel=1e-5)


def test_a_cut_run_asks_its_teacher_once(place, monkeypatch):
    """The run is cut while DLLM2Rec trains, and goes on: no list is made again, and the table is that of a run that was not cut."""
    from recbole_prunerec.compared import teacher as module

    argv = [*FINETUNED, "--compare=DLLM2Rec", "--seed=3"]
    whole = ran(place, "whole", *argv)
    fit = RankedEvaluation.fit

    def cut(self, *given, **more):
        if self.config["model"] == "DLLM2Rec":
            raise KeyboardInterrupt
        return fit(self, *given, **more)

    with monkeypatch.context() as cutting:
        cutting.setattr(RankedEvaluation, "fit", cut)
        with pytest.raises(KeyboardInterrupt):
            ran(place, "cut", *argv)

    def again(*given, **more):
        raise AssertionError("made again")

    monkeypatch.setattr(module, "rank", again)
    monkeypatch.setattr(module, "embed_titles", again)
    monkeypatch.setattr(PruneRecTrainer, "measure", again)
    folder = ran(place, "cut", *argv)
    assert ranks(folder, "DLLM2Rec").equals(ranks(whole, "DLLM2Rec"))


def test_a_teacher_of_another_dataset_is_refused_before_anything_is_trained(place, together, monkeypatch):
    text = (place / "dataset" / "small" / "small.item").read_text()
    (place / "renamed" / "small").mkdir(parents=True)
    (place / "renamed" / "small" / "small.item").write_text(text.replace("Jaws", "Jaws 2"))
    (place / "renamed" / "small" / "small.inter").write_text((place / "dataset" / "small" / "small.inter").read_text())
    monkeypatch.setattr(RankedEvaluation, "fit", lambda *given, **more: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"for another catalogue: it has 12 items, this dataset has 12, and 11 of them have the same name and title"):
        argv = ["--model=SASRec,DLLM2Rec", f"--teacher={together / '1-finetune'}", f"--checkpoint_dir={place / 'other'}"]
        run(load_arguments([f"--data_path={place / 'renamed'}", *RANKED, *argv]))


def test_lists_are_no_longer_than_the_catalogue(place, together):
    with pytest.raises(UserError, match=r"list_length=13 is more than the 12 items that dataset=small has after filtering; choose at most 12"):
        ran(place, "long", "--model=DLLM2Rec", f"--teacher={together / '1-finetune'}", "--list_length=13")


# E4SRec and SLMRec


def test_item_vectors_are_the_runs_sasrec_and_stay_as_they_are(together):
    table = load_file(together / "rows" / "SASRec.safetensors")["item_embedding.weight"]
    assert torch.equal(load_file(together / "rows" / "E4SRec.safetensors")["reader.table.weight"], table)
    assert not (together / "rows" / "SLMRec.safetensors").exists()


@pytest.fixture(scope="module")
def pair(place, together):
    """SLMRec with the trained models of a run, and a batch: by loss."""

    def made(loss: str, *argv: str):
        where, small = f"--data_path={place / 'dataset'}", ("--training_rows=64", "--student_layers=2")
        settings = load_arguments([where, *RANKED, "--model=SLMRec", *small, f"--loss={loss}", *argv]).settings
        data = load_data(settings, together, place / "cache")
        _, model, loaders = build(settings, data, "SLMRec", together, place / "cache")
        return model, next(iter(loaders["train"]))

    return made


def test_slmrecs_loss_is_the_sum_of_its_parts(pair):
    """Two layers are two blocks, which end at layers 1 and 2, and at the teacher's 2 and 4."""
    model, batch = pair("slmrec", "--cosine_weight=0.7", "--norm_weight=0.2", "--supervision_weight=0.3")
    (teacher,) = model._teacher
    own, guide, targets = model.states(batch), teacher.states(batch), batch["item_id"] - 1
    table = model.reader.table.weight[1:]
    expected = nn.functional.cross_entropy(model.reader.project_out(own[1]) @ table.T, targets)
    for student, master in ((own[0], guide[1]), (own[1], guide[3])):
        cosine = (student * master).sum(1) / student.square().sum(1).sqrt() / master.square().sum(1).sqrt()
        expected += 0.7 * (1 - cosine).mean() + 0.2 * (student - master).square().sum(1).sqrt().mean()
    expected += 0.3 * nn.functional.cross_entropy(model.heads[0](own[0]) @ table.T, targets)
    loss = model.calculate_loss(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name != "reader.table.weight")
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_with_our_loss_it_follows_the_teachers_probabilities(pair):
    model, batch = pair("prunerec", "--restore.kd_weight=0.6")
    (teacher,) = model._teacher
    scores, guide = (part.full_sort_predict(batch)[:, 1:].log_softmax(1) for part in (model, teacher))
    kl = (guide.exp() * (guide - scores)).sum(1).mean()
    ce = -scores.gather(1, batch["item_id"][:, None] - 1).mean()
    assert model.calculate_loss(batch).item() == pytest.approx((0.6 * kl + 0.4 * ce).item(), rel=1e-5)
    assert not len(model.heads)


def test_slmrec_goes_on_with_the_rows_that_are_there(place, monkeypatch):
    argv = ["--model=SLMRec", "--training_rows=64", "--epochs=1"]
    whole = ran(place, "slmrec", *argv)
    assert list(rows(whole)) == ["SASRec", "E4SRec", "SLMRec"]
    fitted, fit = [], RankedEvaluation.fit

    def cut(self, *given, **more):
        fitted.append(self.config["model"])
        if fitted == ["SASRec", "E4SRec", "SLMRec"]:
            raise KeyboardInterrupt
        return fit(self, *given, **more)

    monkeypatch.setattr(RankedEvaluation, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        ran(place, "slmrec-cut", *argv)
    folder = ran(place, "slmrec-cut", *argv)
    assert fitted == ["SASRec", "E4SRec", "SLMRec", "SLMRec"]
    assert ranks(folder, "SLMRec").equals(ranks(whole, "SLMRec"))
