"""The benchmark of training: that both sides do the same work, and what is made of their times."""

from dataclasses import replace

import pytest
import torch
import training
from material import Subject
from naive import answer_logits
from tiny import qwen2
from tiny_run import TOKENIZER, samples
from torch.nn.functional import cross_entropy
from training import SOFTMAXES, STEPS, Few, Timed, Work, cached, differences, distillation_steps, finetuning, ours, plain, students, trimming

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.data.samples import Samples
from recbole_prunerec.restore.losses import forward_kl
from recbole_prunerec.text.packing import EpochBatches, collate
from recbole_prunerec.text.prompts import Prompts

SAMPLES = samples()
PROMPTS = Prompts(TOKENIZER, SAMPLES.catalogue, "list", 512)
SIZES = {"hidden_size": 48, "intermediate_size": 60, "num_hidden_layers": 10, "num_attention_heads": 6, "num_key_value_heads": 3}


@pytest.fixture
def work(tmp_path):
    model = qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER), **SIZES)
    how = replace(training.HOW, batch_size=3)
    return Work(Subject("small", model, PROMPTS), SAMPLES, how, 1, 1, tmp_path)


def values(figures):
    return {figure.key: figure.value for figure in figures}


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_the_reference_has_the_loss_of_a_plain_computation(work, softmax):
    rows, student = work.rows(packed=True), students(work)["depth"]
    batch = collate([rows[key] for key in next(iter(EpochBatches(rows, 3, 1, work.how.seed)))], PROMPTS.pad_id)
    trie = PROMPTS.trie if softmax == "catalogue" else None
    with torch.no_grad():
        own, guide = (answer_logits(model, batch, trie) for model in (student, work.subject.model))
    ce, kd = cross_entropy(own.logits, own.targets), forward_kl(own.logits, guide.logits).mean()
    assert plain(work, student, rows, softmax, ours_order=True).loss == pytest.approx(ce.item(), rel=1e-4)
    found = plain(work, student, rows, softmax, work.subject.model, ours_order=True)
    assert found.loss == pytest.approx((0.8 * kd + 0.2 * ce).item(), rel=1e-4) and found.seconds > 0


def test_both_sides_have_the_same_loss(work):
    (figure,) = differences(work)
    assert figure.value < 1e-5
    cache, seconds = cached(work, work.rows(packed=True), "catalogue")
    assert seconds > 0 and list(cache.folder.glob("*.safetensors"))


def test_students_have_the_shapes_after_each_step(work):
    shapes = {name: Sizes.of(model) for name, model in students(work).items()}
    assert [(size.hidden, size.heads, size.kv_heads, size.intermediate, size.layers) for size in shapes.values()] == [
        (24, 2, 1, 60, 10), (24, 2, 1, 20, 10), (24, 2, 1, 20, 3),
    ]  # fmt: skip


def test_figures_relate_what_was_timed(work, monkeypatch):
    """Distillation takes 2, 3 and 4 s after width, mlp and depth, fine-tuning 2 s, the reference 40 s."""
    seconds = {"width": 2.0, "mlp": 3.0, "depth": 4.0}
    shapes = {Sizes.of(model): name for name, model in students(work).items()}

    def told(work, model, rows, softmax, teacher=None, cache=None):
        return Timed(2.0 if teacher is None else seconds[shapes[Sizes.of(model)]], 10, 0.0)

    monkeypatch.setattr(training, "ours", told)
    monkeypatch.setattr(training, "plain", lambda *_: Timed(40.0, 40, 0.0))
    monkeypatch.setattr(training, "cached", lambda work, rows, softmax: (None, 6.0))
    figures, table = distillation_steps(work)
    found = values(figures)
    assert (found["speedup"], found["memory_ratio"], found["over_sft"]) == (10.0, 0.25, 2.0)
    assert [(row["softmax"], row["student after"]) for row in table] == [(softmax, name) for softmax in SOFTMAXES for name in STEPS]
    assert table[1]["over_sft"] == 1.5 and table[0]["speedup"] == 20.0 and table[0]["filling the cache, s a batch"] == 3.0


def test_packed_rows_count_by_titles(work, monkeypatch):
    monkeypatch.setattr(training, "ours", lambda work, model, rows, softmax: Timed(5.0 if len(rows[rows.keys(0)[0]].ids) > 30 else 4.0, 1, 0.0))
    monkeypatch.setattr(training, "plain", lambda *_: Timed(8.0, 1, 0.0))
    found = values(finetuning(work))
    packed = work.rows(packed=True)
    titles = [
        sum(1 for before, after in zip([-100, *row.labels], row.labels, strict=False) if after >= 0 > before)
        for row in map(packed.__getitem__, packed.keys(0))
    ]
    assert found["titles_a_row"] == pytest.approx(sum(titles) / len(titles)) and found["titles_a_row"] > 2
    assert found["finetuning"] in (2.0, 1.6) and found["finetuning_packed"] == pytest.approx(found["titles_a_row"] * 8.0 / 5.0)


def test_trimming_compares_the_same_rows_with_fewer_tokens(tmp_path, monkeypatch):
    titles = Samples.of({f"u{user}": list("ABCDE") for user in range(4)}, dict(zip("ABCDE", ["aa", "ab", "ba", "bb", "b"], strict=True)), 4)
    model = qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER), **SIZES)
    subject = Subject("small", model, Prompts(TOKENIZER, titles.catalogue, "list", 512))
    seen = []

    def told(work, model, rows, softmax):
        texts = [work.subject.prompts.tokenizer.decode(rows[key].ids) for key in rows.keys(0)]
        seen.append((softmax, model.config.vocab_size, texts))
        return Timed(2.0 * model.config.vocab_size, model.config.vocab_size, 0.0)

    monkeypatch.setattr(training, "ours", told)
    found = values(trimming(Work(subject, titles, replace(training.HOW, batch_size=3), 1, 1, tmp_path)))
    assert found["tokens_kept"] < len(TOKENIZER) and [(softmax, size) for softmax, size, _ in seen] == [
        (softmax, size) for softmax in SOFTMAXES for size in (len(TOKENIZER), found["tokens_kept"])
    ]
    assert len({tuple(texts) for _, _, texts in seen}) == 1 and seen[0][2]
    share = found["tokens_kept"] / len(TOKENIZER)
    for softmax in SOFTMAXES:
        assert found[f"trimming_{softmax}"] == pytest.approx(1 / share) and found[f"trimming_{softmax}_memory"] == pytest.approx(share)


def test_ours_trains_on_the_rows_given_and_leaves_the_model(work):
    rows, model = work.rows(packed=True), students(work)["depth"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert isinstance(rows, Few) and len(rows) == 6
    assert ours(work, model, rows, "catalogue").seconds > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
