"""ShortGPT (Men et al., arXiv 2403.03853): the layers that turn the stream least go, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.distributed import total
from recbole_prunerec.importance.hooks import evaluating, watching
from recbole_prunerec.importance.inputs import position_count
from recbole_prunerec.importance.scores import Scores


def layer_scores(model: PreTrainedModel, batches: Sequence[Batch], *_: Any) -> Scores:
    """Block Influence: 1 - the mean over all tokens of the cosine of the stream before and after a layer."""
    names = [f"{family_of(model.config).layers}.{layer}" for layer in range(Sizes.of(model).layers)]
    sums = torch.zeros(len(names), dtype=torch.float64)
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            mask = batch["attention_mask"].bool()

            def see(name: str, entering: Tensor, leaving: Tensor, mask: Tensor = mask) -> None:
                sums[names.index(name)] += cosine_similarity(entering[mask].double(), leaving[mask].double(), dim=-1).sum().cpu()

            with watching(model, names, see):
                model.base_model(input_ids=batch["input_ids"], use_cache=False)
    return Scores(layers=1 - total(sums) / position_count(batches))
