"""Parts of a forward pass: the residual stream that enters a layer, one layer alone, or the layers from one on.

A *stream* is (batch, position, hidden). What a change of a layer does is measured from the stream that enters it, so that nothing below runs again.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.backbone.family import Sizes, family_of
from recbole_prunerec.backbone.forward import Batch
from recbole_prunerec.importance.hooks import bypassed, watching


def embedded(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The stream that enters the first layer."""
    return model.get_input_embeddings()(batch["input_ids"])


def after_layer(model: PreTrainedModel, layer: int, stream: Tensor) -> Tensor:
    """What leaves `layer` when `stream` enters it."""
    others = [index for index in range(Sizes.of(model).layers) if index != layer]
    leaving: list[Tensor] = []
    name = f"{family_of(model.config).layers}.{layer}"
    with bypassed(model, others), watching(model, [name], lambda _, entering, output: leaving.append(output)):
        model.base_model(inputs_embeds=stream, use_cache=False)
    return leaving[0]


def final_states(model: PreTrainedModel, layer: int, stream: Tensor) -> Tensor:
    """The final hidden states when `stream` enters `layer`, those below being left out. Shape (batch, position, hidden)."""
    with bypassed(model, range(layer)):
        return model.base_model(inputs_embeds=stream, use_cache=False).last_hidden_state
