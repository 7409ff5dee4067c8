"""What a model says after a few prompts, to compare with what the same model says once it has been written and read again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recbole_prunerec.text.prompts import Prompts

HISTORIES = (1, 4, 10)  # titles in each prompt


@dataclass(frozen=True)
class Probe:
    """Prompts of several lengths, padded on the right, and what a model says of them.

    `ids` and `mask` are (prompt, position), `logits` (prompt, position, vocab).
    """

    ids: Tensor
    mask: Tensor
    logits: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, prompts: Prompts) -> Probe:
        """Of the first titles of the catalogue, with the model on its device."""
        rows = [torch.from_numpy(prompts.prompt_of(prompts.catalogue.distinct[:count])) for count in HISTORIES]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=prompts.pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return cls(ids, mask, logits_of(model, ids, mask))

    @property
    def largest(self) -> float:
        """The largest absolute logit, padding left out."""
        return float(self.logits[self.mask.bool()].abs().max())

    def difference(self, logits: Tensor) -> float:
        """The largest absolute difference from other `logits`, padding left out; infinite where there is a NaN or another shape."""
        if logits.shape != self.logits.shape:
            return float("inf")
        return float((logits - self.logits)[self.mask.bool()].abs().nan_to_num(nan=float("inf")).max())


def logits_of(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """(prompt, position, vocab), on the CPU."""
    with torch.inference_mode():
        return model.eval()(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits.cpu()
