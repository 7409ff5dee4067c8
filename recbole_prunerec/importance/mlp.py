"""MLP importance: how often a dimension is active where the answer starts (METHOD 3, eq. 9-10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.backbone.softmax import answer_mask
from recbole_prunerec.distributed import gathered
from recbole_prunerec.importance.hooks import evaluating, watching


class MlpImportance(NamedTuple):
    """Both (layer, intermediate), float64: the share of active samples, and the mean |H_last| that decides between equal shares."""

    share: Tensor
    magnitude: Tensor


def mlp_importance(model: PreTrainedModel, batches: Sequence[Batch], tau: float | None = None, quantile: float = 0.9) -> MlpImportance:
    """The share of samples in which |H_last[k]| > tau, where H_last is the up projection, before the gate, at the last prompt position.

    With `tau` None each layer takes the `quantile` of its |H_last| over the samples of all processes and all dimensions.
    """
    family, sizes = family_of(model.config), Sizes.of(model)
    names = [family.layer.format(layer) + family.up for layer in range(sizes.layers)]
    seen = {name: [torch.empty(0, sizes.intermediate, dtype=torch.float64)] for name in names}  # a process may have no sample
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            last = answer_mask(batch["labels"]).int().argmax(1)
            rows = torch.arange(len(last), device=last.device)

            def see(name: str, entering: Tensor, up: Tensor, rows: Tensor = rows, last: Tensor = last) -> None:
                seen[name].append(up[rows, last].abs().double().cpu())

            with watching(model, names, see):
                model.base_model(input_ids=batch["input_ids"], use_cache=False)
    shares, magnitudes = [], []
    for name in names:
        magnitude = gathered(torch.cat(seen[name]))
        threshold = float(np.quantile(magnitude.numpy(), quantile)) if tau is None else tau  # torch's quantile refuses over 16 million values
        shares.append((magnitude > threshold).double().mean(0))
        magnitudes.append(magnitude.mean(0))
    return MlpImportance(torch.stack(shares), torch.stack(magnitudes))
