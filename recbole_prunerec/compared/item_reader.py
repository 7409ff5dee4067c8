"""E4SRec's network: the first layers of a language model, which reads items as vectors between the words of an instruction and says a vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply

BEFORE = "### Instruction:\nGiven the user's purchase history, predict the next item to be purchased.\n\n### Input:\n"
AFTER = "\n\n### Response:\n"


def layers_within(sizes: Sizes, budget: float) -> int:
    """The most layers that leave at most the share `budget` of a model's non-embedding parameters; 1 where even one is more."""
    whole, final = sizes.non_embedding_parameters, sizes.hidden
    return max(1, int((budget * whole - final) * sizes.layers / (whole - final) + 1e-9))


class ItemReader(nn.Module):
    """The first `layers` of `model` between two linear maps, from and to the vectors of `table` (item, width), which is never trained.

    Nor are the words around the items, whose embeddings are all that is left of the vocabulary.
    """

    around: Tensor

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: Tensor, layers: int) -> None:
        super().__init__()
        cut: Any = apply(Plan.of("depth", "first", Sizes.of(model), layers=list(range(layers))), model)
        before, after = tokenizer(BEFORE).input_ids, tokenizer(AFTER, add_special_tokens=False).input_ids
        with torch.no_grad():
            self.register_buffer("around", cut.get_input_embeddings()(torch.tensor(before + after, device=cut.device)))
        self._before = len(before)
        self.decoder = cut.base_model
        self.decoder.set_input_embeddings(None)  # it reads vectors
        self.table = nn.Embedding.from_pretrained(table.clone(), freeze=True)
        hidden, width = cut.config.hidden_size, table.shape[1]
        self.project_in, self.project_out = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)

    def forward(self, histories: Tensor, lengths: Tensor) -> list[Tensor]:
        """Hidden states at the last position after each layer, the last layer's normalised: (row, hidden) each.

        `histories` (row, longest) are item ids, the oldest first, of which `lengths` (row,) are no padding. The words before the items, which see
        nothing but one another, are read once for all rows; gradients are the same.
        """
        rows, longest = histories.shape
        before, after = self.around[: self._before], self.around[self._before :]
        said = DynamicCache(config=self.decoder.config)
        self.decoder(inputs_embeds=before[None], past_key_values=said, use_cache=True)
        said.batch_repeat_interleave(rows)
        vectors = torch.cat([self.project_in(self.table(histories)), after.expand(rows, -1, -1)], 1)
        items = torch.arange(longest, device=histories.device) < lengths[:, None]
        seen = torch.cat([items.new_ones(rows, len(before)), items, items.new_ones(rows, len(after))], 1).long()
        places = (seen.cumsum(1) - 1)[:, len(before) :]
        asked = {"attention_mask": seen, "position_ids": places, "past_key_values": said, "use_cache": True}
        output = self.decoder(inputs_embeds=vectors, output_hidden_states=True, **asked)
        return [states[:, -1] for states in output.hidden_states[1:]]

    def scores(self, states: Tensor, project: nn.Module | None = None) -> Tensor:
        """Of every item but padding, for the hidden states of a layer (row, hidden). Shape (row, item - 1)."""
        return (project or self.project_out)(states) @ self.table.weight[1:].T
