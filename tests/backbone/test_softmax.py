"""Softmaxes part by part, their positions and gradients, against full logits of every position, masked by hand."""

import numpy as np
import pytest
import torch
from naive import answer_logits, closed
from tiny import every_family, qwen2
from torch.nn.functional import cross_entropy

from recbole_prunerec.backbone import softmax as module
from recbole_prunerec.backbone.forward import answer_count, answer_states, headless, mean_by_row
from recbole_prunerec.backbone.softmax import Catalogue, Vocabulary, answer_mask, part_logits, softmax_of, summed_loss
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.restore.losses import LOSSES
from recbole_prunerec.text.packing import collate
from recbole_prunerec.text.prompts import Example

VOCAB = 97
END = 96


def titles(seed: int = 0, count: int = 40) -> list[list[int]]:
    """Distinct titles over few tokens, so that many begin alike; each ends with `END`."""
    generator = np.random.default_rng(seed)
    found = {tuple(generator.integers(1, 7, size=generator.integers(1, 6)).tolist()) for _ in range(count)}
    return [[*title, END] for title in sorted(found)]


TITLES = titles()
TRIE = Trie.build(TITLES)


def rows(count: int = 6, seed: int = 0) -> list[Example]:
    """Chunks: a header, then titles, each after an opening token; all but the first are answers, and now and then another is not."""
    generator = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        ids, labels = [90, 91], [-100, -100]
        for place in range(generator.integers(2, 6)):
            answer = TITLES[generator.integers(len(TITLES))]
            ids += [92, *answer]
            labels += [-100, *(answer if place and generator.random() < 0.8 else [-100] * len(answer))]
        examples.append(Example(np.array(ids), np.array(labels)))
    return examples


BATCH = collate(rows(), 0)
SOFTMAXES = {"vocabulary": (Vocabulary(VOCAB), None), "catalogue": (Catalogue(TRIE), TRIE)}
both = pytest.mark.parametrize("softmax, trie", SOFTMAXES.values(), ids=SOFTMAXES)
small_parts = pytest.mark.parametrize("at_once", [1, 64, 500, 2**24], ids=lambda count: f"{count} at once")


def assembled(softmax, batch, hidden, weight) -> torch.Tensor:
    """(answer, vocab) log-probabilities at all answer positions, put together from parts; 0 for the only token at positions without a choice."""
    labels = batch["labels"]
    every, chosen = answer_mask(labels), softmax.positions(labels)
    out = torch.full((int(chosen.sum()), VOCAB), -torch.inf, dtype=torch.float64)
    seen = torch.zeros(len(out), dtype=torch.int64)
    following = labels[:, 1:][chosen[:, :-1]]
    for part in softmax.parts(labels, hidden.shape[1]):
        logits = part_logits(part, hidden, weight)
        seen[part.places] += 1
        for row, place in enumerate(part.places.tolist()):
            tokens = torch.arange(VOCAB) if part.tokens is None else part.tokens if part.tokens.dim() == 1 else part.tokens[row]
            out[place, tokens[tokens >= 0]] = torch.log_softmax(logits[row].double(), -1)[tokens >= 0]
            assert tokens[part.targets[row]] == following[place]
    assert seen.eq(1).all()
    whole = torch.full((int(every.sum()), VOCAB), -torch.inf, dtype=torch.float64)
    whole[chosen[every]] = out
    alone = (~chosen[every]).nonzero()[:, 0]
    whole[alone, labels[:, 1:][every[:, :-1]][alone]] = 0.0
    return whole


@both
@small_parts
def test_parts_give_the_masked_full_softmax(softmax, trie, at_once, monkeypatch):
    monkeypatch.setitem(module.AT_ONCE, "cpu", at_once)
    model = qwen2()
    with torch.no_grad():
        expected = torch.log_softmax(answer_logits(model, BATCH, trie).logits, -1)
        found = assembled(softmax, BATCH, answer_states(model, BATCH, softmax), model.get_output_embeddings().weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_titles_probabilities_sum_to_one():
    """Each title, one a row after the same prompt, by the catalogue's softmax."""
    model = qwen2()
    batch = collate([Example(np.array([90, 91, 92, *title]), np.array([-100] * 3 + title)) for title in TITLES], 0)
    softmax = Catalogue(TRIE)
    with torch.no_grad():
        positions = softmax.positions(batch["labels"])
        hidden = answer_states(model, batch, softmax)
        scores = torch.zeros(len(hidden), dtype=torch.float64)
        for part in softmax.parts(batch["labels"], hidden.shape[1]):
            logits = part_logits(part, hidden, model.get_output_embeddings().weight)
            scores[part.places] = torch.log_softmax(logits, -1)[torch.arange(len(logits)), part.targets]
    titles = torch.zeros(len(TITLES), dtype=torch.float64).index_add_(0, positions.nonzero()[:, 0], scores)
    assert titles.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert len(set(titles.exp().tolist())) == len(TITLES)


def side_by_side(gap: bool) -> list[Example]:
    """Rows of answers that follow one another, without any token between them; or with one, which is no answer's."""
    draw = np.random.default_rng(1)
    examples = []
    for count in (1, 2, 4):
        answers = [TITLES[draw.integers(len(TITLES))] for _ in range(count)]
        ids = [90, *(token for answer in answers for token in ([92] * gap + answer))]
        labels = [-100, *(token for answer in answers for token in ([-100] * gap + answer))]
        examples.append(Example(np.array(ids), np.array(labels)))
    return examples


def test_answers_without_a_token_between_them_are_walked_each_from_the_root():
    softmax, apart, near = Catalogue(TRIE), *(collate(side_by_side(gap), 0)["labels"] for gap in (True, False))
    for row in range(len(near)):
        with_gap, without = (softmax.nodes(labels)[row] for labels in (apart, near))
        assert without[without >= 0].tolist() == with_gap[with_gap >= 0].tolist() and (without == 0).sum() == (1, 2, 4)[row]
    for name in ("tokens", "targets"):
        for one, other in zip(softmax.parts(apart, 48), softmax.parts(near, 48), strict=True):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_only_positions_with_a_choice_are_looked_at():
    softmax, labels = Catalogue(TRIE), BATCH["labels"]
    open_ = (closed(labels, TRIE, VOCAB) == 0).sum(-1)
    expected = answer_mask(labels) & (open_ > 1)
    assert torch.equal(softmax.positions(labels), expected) and 0 < expected.sum() < answer_mask(labels).sum()
    for part in softmax.parts(labels, 48):
        assert (part.tokens >= 0).sum(-1).min() > 1


@both
@small_parts
@pytest.mark.parametrize("kd_loss", LOSSES)
def test_the_summed_loss_and_its_gradients_are_those_of_the_plain_computation(softmax, trie, at_once, kd_loss, monkeypatch):
    monkeypatch.setitem(module.AT_ONCE, "cpu", at_once)
    student, teacher = qwen2(), qwen2(7)
    answers = answer_logits(student, BATCH, trie)
    guide = answer_logits(teacher, BATCH, trie).logits.detach()
    count = len(answers.targets)
    finite = LOSSES[kd_loss](answers.logits, guide, 2.0).sum() / count
    expected = 0.7 * finite + 0.3 * cross_entropy(answers.logits, answers.targets, reduction="sum") / count
    hidden, states = answer_states(student, BATCH, softmax), answer_states(teacher, BATCH, softmax).detach()
    teachers_head = teacher.get_output_embeddings().weight.detach()

    def loss(part, logits):
        kd = LOSSES[kd_loss](logits, part_logits(part, states, teachers_head), 2.0).sum() / count
        ce = cross_entropy(logits, part.targets, reduction="sum") / count
        return torch.stack([0.7 * kd + 0.3 * ce, kd.detach()])

    found = summed_loss(hidden, student.get_output_embeddings().weight, softmax.parts(BATCH["labels"], hidden.shape[1]), loss)
    torch.testing.assert_close(found, torch.stack([expected, finite]), rtol=1e-9, atol=1e-9)
    names, weights = zip(*student.named_parameters(), strict=True)
    mine, theirs = torch.autograd.grad(2 * found[0], weights), torch.autograd.grad(2 * expected, weights)
    for name, one, other in zip(names, mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9, msg=lambda message, name=name: f"{name}: {message}")


@both
def test_without_answers_the_loss_is_zero_and_has_a_gradient(softmax, trie):
    batch = collate([], 0)
    model = qwen2()
    hidden = answer_states(model, batch, softmax)
    found = summed_loss(hidden, model.get_output_embeddings().weight, softmax.parts(batch["labels"], 48), lambda part, logits: logits.sum()[None])
    gradients = torch.autograd.grad(found[0], list(model.parameters()))
    assert found.tolist() == [0.0] and all(gradient.abs().max() == 0 for gradient in gradients)


@both
def test_without_gradients_none_are_computed(softmax, trie, monkeypatch):
    monkeypatch.setattr(module, "_add_gradients", lambda *_: pytest.fail("a gradient that nobody asked for"))
    model = qwen2()
    with torch.no_grad():
        hidden = answer_states(model, BATCH, softmax)
        parts = softmax.parts(BATCH["labels"], hidden.shape[1])
        summed_loss(hidden, model.get_output_embeddings().weight, parts, lambda part, logits: logits.sum()[None])


def test_under_autocast_products_with_the_head_are_in_its_precision():
    """What a bfloat16 head gives is far from float32 and near the plain computation under the same autocast."""
    model = qwen2(dtype=torch.float32)
    losses = {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden = answer_states(model, BATCH, Vocabulary(VOCAB))
            plain = cross_entropy(model.get_output_embeddings()(hidden).float(), BATCH["labels"][:, 1:][answer_mask(BATCH["labels"])[:, :-1]])
            found = summed_loss(
                hidden, model.get_output_embeddings().weight, Vocabulary(VOCAB).parts(BATCH["labels"], 48),
                lambda part, logits: cross_entropy(logits, part.targets, reduction="sum")[None],
            ) / len(hidden)  # fmt: skip
        assert found.dtype == torch.float32
        losses[enabled] = found.item(), plain.item()
    assert losses[True][0] == pytest.approx(losses[True][1], rel=1e-5) and losses[True][0] != pytest.approx(losses[False][0], rel=1e-6)


def test_no_more_logits_exist_than_a_part_has(monkeypatch):
    monkeypatch.setitem(module.AT_ONCE, "cpu", 3 * VOCAB)
    sizes = []
    hidden = torch.randn(20, 8, requires_grad=True)
    labels = torch.cat([torch.full((1, 1), -100), torch.arange(20)[None]], 1)
    parts = Vocabulary(VOCAB).parts(labels, 8)

    def loss(part, logits):
        sizes.append(logits.numel())
        return logits.sum()[None]

    summed_loss(hidden, torch.randn(VOCAB, 8), parts, loss)
    assert sizes == [3 * VOCAB] * 6 + [2 * VOCAB]


@every_family
def test_a_headless_model_gives_its_final_hidden_states(make):
    model = make()
    with torch.no_grad():
        before = model(BATCH["input_ids"]).logits
        with headless(model):
            hidden = model(BATCH["input_ids"], use_cache=False).logits
        assert torch.equal(hidden, model.base_model(BATCH["input_ids"]).last_hidden_state)
        assert torch.equal(model(BATCH["input_ids"]).logits, before)


def test_means_run_over_all_answer_positions_of_a_row():
    labels = torch.tensor([[-100, 3, 4, 5], [-100, -100, 6, -100]])
    positions = torch.tensor([[True, False, True, False], [False, True, False, False]])
    assert mean_by_row(torch.tensor([1.0, 5.0, 7.0]), positions, labels).tolist() == [2.0, 7.0]
    assert answer_count(labels) == 4


def test_a_softmax_is_chosen_by_name():
    assert isinstance(softmax_of("vocabulary", TRIE, VOCAB), Vocabulary) and isinstance(softmax_of("catalogue", TRIE, VOCAB), Catalogue)
