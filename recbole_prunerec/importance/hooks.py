"""Changes to a model that last for one `with` block: suppressed heads, bypassed and silent parts, given attention, watched modules, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of

Half = Literal["attention", "mlp"]  # of a layer
HALVES: tuple[Half, ...] = get_args(Half)
Progress = Callable[[Iterable[int]], Iterable[int]]  # wraps a loop to show how far it is, as tqdm does


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, then the mode that the model was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def suppressed(model: PreTrainedModel, layer: int, heads: Sequence[int], epsilon: float) -> Iterator[None]:
    """Scale the attention logits of some query heads of one layer by `epsilon` (eq. 3).

    The scale acts on the queries, after bias and any q_norm. Rotary embedding is linear, so this equals scaling the logits after it, whatever
    attention kernel runs. With `epsilon` 0 a head gives the running mean of its values over the visible keys.
    """
    family, sizes = family_of(model.config), Sizes.of(model)
    scale = torch.ones(sizes.heads, 1)
    scale[list(heads)] = epsilon

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], queries: Tensor) -> Tensor:
        by_head = queries.reshape(*queries.shape[:2], sizes.heads, sizes.head_dim)
        return (by_head * scale.to(queries)).view_as(queries)

    handle = family.module(model, family.q_norm if sizes.qk_norm else family.q, layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced(modules: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    outer = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module, before in zip(modules, outer, strict=True):
            if before is None:
                del module.forward
            else:
                module.forward = before


def _identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def bypassed(model: PreTrainedModel, layers: Iterable[int]) -> AbstractContextManager[None]:
    """Let the residual stream pass some decoder layers unchanged; they are not computed. Blocks may nest."""
    blocks = model.get_submodule(family_of(model.config).layers)
    return _replaced([blocks[index] for index in layers], _identity)  # type: ignore[index]


def attending(model: PreTrainedModel, layer: int, output: Tensor) -> AbstractContextManager[None]:
    """Let the attention of one layer add `output` (batch, position, hidden) to the stream; it is not computed."""
    family = family_of(model.config)
    attention = family.module(model, family.o.rpartition(".")[0], layer)
    return _replaced([attention], lambda *args, **kwargs: (output, None))


def silent(model: PreTrainedModel, half: Half, layers: Iterable[int]) -> AbstractContextManager[None]:
    """Let the attention or the MLP of some layers add nothing to the stream; it is not computed. Blocks may nest."""
    family = family_of(model.config)
    module = (family.o if half == "attention" else family.down).rpartition(".")[0]
    return _replaced([family.module(model, module, layer) for layer in layers], _no_attention if half == "attention" else _no_mlp)


def _no_attention(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return torch.zeros_like(hidden_states), None


def _no_mlp(hidden_states: Tensor) -> Tensor:
    return torch.zeros_like(hidden_states)


@contextmanager
def watching(model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call `see(name, input, output)` after each forward pass of the named modules."""

    def hook_for(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: see(name, inputs[0], output)

    handles = [model.get_submodule(name).register_forward_hook(hook_for(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
