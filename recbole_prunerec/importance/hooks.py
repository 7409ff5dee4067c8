"""Changes to a model that last for one `with` block: a suppressed head, a bypassed layer, a watched module, evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of

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


def _identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


@contextmanager
def bypassed(model: PreTrainedModel, layers: Iterable[int]) -> Iterator[None]:
    """Let the residual stream pass some decoder layers unchanged; they are not computed. Blocks may nest."""
    blocks = [model.get_submodule(family_of(model.config).layers)[index] for index in layers]  # type: ignore[index]
    outer = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = _identity
    try:
        yield
    finally:
        for block, forward in zip(blocks, outer, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


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
