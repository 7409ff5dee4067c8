"""SparseGPT (Frantar and Alistarh, arXiv 2301.00774), structured: what a matrix's output loses with some input columns, and the least-squares update
of those that stay. For a matrix W with inputs X, H = X X^T, damped by a hundredth of its mean diagonal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.importance.inputs import over_layers, weight_of
from recbole_prunerec.importance.scores import Scores

DAMPING = 0.01  # of the mean diagonal of H


def width_scores(model: PreTrainedModel, batches: Sequence[Batch], *_: Any) -> Scores:
    """Heads, as the columns of o_proj."""
    part = family_of(model.config).o
    return Scores(heads=_errors(model, batches, part, Sizes.of(model).head_dim), update=_updater(model, batches, part, Sizes.of(model).head_dim))


def mlp_scores(model: PreTrainedModel, batches: Sequence[Batch], *_: Any) -> Scores:
    """MLP dimensions, as the columns of down_proj."""
    part = family_of(model.config).down
    return Scores(mlp=_errors(model, batches, part, 1), update=_updater(model, batches, part, 1))


def _errors(model: PreTrainedModel, batches: Sequence[Batch], part: str, size: int) -> Tensor:
    """`block_errors` of every layer. Shape (layer, block)."""
    return torch.stack(
        over_layers(model, batches, {part: _gram}, lambda layer, sums: block_errors(weight_of(model, part, layer), damped(sums[part]), size).cpu())
    )


def _updater(model: PreTrainedModel, batches: Sequence[Batch], part: str, size: int) -> Callable[[Sequence[Sequence[int]]], dict[str, Tensor]]:
    """From the blocks that stay in each layer to new matrices. The samples go through the model again, since all H at once are large."""

    def update(kept: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        family = family_of(model.config)

        def refit(layer: int, sums: Mapping[str, Tensor]) -> Tensor:
            columns = (torch.tensor(sorted(kept[layer]))[:, None] * size + torch.arange(size)).flatten().to(model.device)
            return least_squares(weight_of(model, part, layer), damped(sums[part]), columns).to(model.dtype)

        return {f"{family.layer.format(layer)}{part}.weight": new for layer, new in enumerate(over_layers(model, batches, {part: _gram}, refit))}

    return update


def _gram(entering: Tensor, mask: Tensor) -> Tensor:
    tokens = entering[mask]
    return tokens.T @ tokens


def damped(gram: Tensor) -> Tensor:
    """H with its damping, which makes it invertible; the identity where nothing ever enters."""
    mean = gram.diagonal().mean()
    return gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * (DAMPING * mean if mean > 0 else 1.0)


def block_errors(weight: Tensor, hessian: Tensor, size: int) -> Tensor:
    """What the output loses at least without each block B of `size` columns: trace(W_B [H^-1]_BB^-1 W_B^T). Shape (input / size,)."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    blocks = inverse.unflatten(0, (-1, size)).unflatten(2, (-1, size)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.unflatten(1, (-1, size)).permute(1, 2, 0)  # (block, column, row)
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))


def least_squares(weight: Tensor, hessian: Tensor, columns: Tensor) -> Tensor:
    """The matrix nearest in output to `weight` (output, input) of those that are zero outside `columns`: there it is W H_:,K [H_KK]^-1, which equals
    W_K - W_B [H^-1]_BB^-1 [H^-1]_BK with B all other columns."""
    new = torch.zeros_like(weight)
    wanted = weight @ hessian[:, columns]
    new[:, columns] = torch.cholesky_solve(wanted.T, torch.linalg.cholesky(hessian[columns][:, columns])).T
    return new
