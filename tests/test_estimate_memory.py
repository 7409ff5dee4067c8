"""The estimate of memory against the tensors that live in real training steps."""

import weakref
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tiny import batch, llama, qwen2, qwen3
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.forward import answer_states
from recbole_prunerec.backbone.softmax import AT_ONCE, Catalogue, Vocabulary, part_logits, summed_loss
from recbole_prunerec.estimate import LOGITS, activation_bytes, training_memory
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.restore.losses import LOSSES, restoration_loss
from recbole_prunerec.settings import Settings


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


def held_by_a_step(model, teacher, rows, softmax, loss=None, cached=True) -> int:
    """Bytes at the peak of a training step of two micro-batches with AdamW, weights of model and teacher included, once there are moments."""
    states = None
    known = [*model.parameters(), *(teacher.parameters() if teacher else [])]
    with torch.no_grad():
        kept = answer_states(teacher, rows, softmax) if teacher and cached else torch.empty(0)

    def loss_of(part, logits):
        if teacher is None:
            value = torch.nn.functional.cross_entropy(logits, part.targets, reduction="sum") / 7
            return torch.stack([value, torch.zeros_like(value), value.detach()])
        with torch.no_grad():
            guide = part_logits(part, states, teacher.get_output_embeddings().weight.detach())
        return torch.stack(restoration_loss(logits, guide, part.targets, 0.8, loss, 1.0, 7))

    softmax.parts(rows["labels"], 1)  # so that it has what it keeps of the tree
    with Held([*known, kept]) as held:
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        for micro_batch in range(4):
            hidden = answer_states(model, rows, softmax)
            if teacher is not None:
                with torch.no_grad():
                    states = kept if cached else answer_states(teacher, rows, softmax)
            losses = summed_loss(hidden, model.get_output_embeddings().weight, softmax.parts(rows["labels"], hidden.shape[1]), loss_of)
            losses[0].backward()
            losses, hidden = losses.detach(), None
            if micro_batch % 2:
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


def estimated(model, rows, softmax, loss=None, **settings) -> int:
    """The last step's memory, of a model that is trained, or restored by a teacher of the same sizes."""
    sizes = Sizes.of(model)
    steps = [{"do": "finetune"}] if loss is None else [{"do": "finetune"}, {"do": "depth", "layers": 1}]
    restore = {"kd_loss": loss or "js", "cache": settings.pop("cache", True)}
    given = Settings.model_validate({"steps": steps, "restore": restore, **settings})
    return training_memory(given, sizes, [sizes] * len(steps), rows["labels"], softmax)[-1]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("name", "loss"), [*product(MODELS, [None, "forward_kl"]), *(("vocabulary", loss) for loss in list(LOSSES)[1:])])
def test_memory_is_what_training_holds(name, loss, cached):
    """Against the tensors that live in a real training step: never less, and not much more."""
    model, teacher = MODELS[name](0).train(), MODELS[name](1) if loss else None
    rows, softmax = batch(rows=8, prompt=(40, 41), answer=(6, 7)), Vocabulary(model.config.vocab_size)
    measured = held_by_a_step(model, teacher, rows, softmax, loss, cached)
    assert 0.97 * measured < estimated(model, rows, softmax, loss, cache=cached) < 1.25 * measured


@pytest.mark.parametrize("loss", [None, "js"])
def test_memory_of_a_loss_in_parts(loss, monkeypatch):
    """Ten positions at a time."""
    monkeypatch.setitem(AT_ONCE, "cpu", 40_000)
    model, teacher = MODELS["vocabulary"](0).train(), MODELS["vocabulary"](1) if loss else None
    rows, softmax = batch(rows=8, prompt=(40, 41), answer=(6, 7)), Vocabulary(4000)
    measured = held_by_a_step(model, teacher, rows, softmax, loss)
    assert 0.97 * measured < estimated(model, rows, softmax, loss) < 1.25 * measured
    monkeypatch.undo()
    assert estimated(model, rows, softmax, loss) > 1.2 * measured


@pytest.mark.parametrize("loss", [None, "forward_kl", "js"])
@pytest.mark.parametrize(("first", "count"), [(30, 300), (300, 5000), (8, 3000)])  # few and many children at the root, many below it
def test_memory_of_the_catalogue_softmax(first, count, loss):
    draw = np.random.default_rng(0).integers
    answers = np.unique(np.stack([draw(2, 2 + first, count), draw(2, 2 + first, count), draw(2, 4000, count), np.ones(count, int)], 1), axis=0)
    rows = answers[draw(len(answers), size=(8, 6))]
    ids = torch.from_numpy(np.concatenate([np.full((8, 6, 2), 5), rows], 2).reshape(8, -1))
    labels = torch.from_numpy(np.concatenate([np.full((8, 6, 2), -100), rows], 2).reshape(8, -1))
    model, teacher = MODELS["vocabulary"](0).train(), MODELS["vocabulary"](1) if loss else None
    rows, softmax = {"input_ids": ids, "labels": labels}, Catalogue(Trie.build(answers))
    measured = held_by_a_step(model, teacher, rows, softmax, loss)
    assert 0.97 * measured < estimated(model, rows, softmax, loss) < 1.25 * measured


@pytest.mark.parametrize("name", ["activations", "attention", "norms on heads"])
def test_memory_with_checkpointing(name):
    changes = {**WIDE, "num_hidden_layers": 8} if name == "activations" else {"num_hidden_layers": 8}
    model = {"activations": qwen2, "attention": llama, "norms on heads": qwen3}[name](0, torch.float32, **changes).train()
    rows, softmax = batch(rows=8, prompt=(40, 41), answer=(6, 7)), Vocabulary(model.config.vocab_size)
    whole = held_by_a_step(model, None, rows, softmax)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    measured = held_by_a_step(model, None, rows, softmax)
    assert measured < 0.7 * whole
    assert 0.97 * measured < estimated(model, rows, softmax, gradient_checkpointing=True) < 1.25 * measured


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
            states = answer_states(model, rows, Vocabulary(97)).sum()
        kept.append(sum(storage.nbytes() for storage in storages.values()))
        del states
    sizes = Sizes.of(model)
    few, more = (activation_bytes(replace(sizes, layers=layers), rows["input_ids"].numel()) for layers in (2, 4))
    assert more - few == pytest.approx(kept[1] - kept[0], rel=0.04)


def test_every_loss_has_its_logits():
    assert set(LOGITS) == {None, *LOSSES}
