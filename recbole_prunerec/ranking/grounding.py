"""BIGRec's grounding: the model writes a title freely, and items are ranked by how near their titles are to it.

The title is the best of four beams, without the prefix tree. Its embedding is compared with that of every title of the catalogue, and the distances
are weighed by popularity. The original embeds titles with the base model; here the ranked model stands alone, and embeds them itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.data.samples import Part, choose_rows
from recbole_prunerec.distributed import share, unshared
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking.search import batch_memory
from recbole_prunerec.ranking.seen import seen_last
from recbole_prunerec.settings import Ranking
from recbole_prunerec.text.catalogue import tidy
from recbole_prunerec.text.prompts import Prompts

BEAMS = 4
WEIGHTS = np.concatenate([np.arange(100) / 100, np.arange(1, 100)])  # the original's grid, and 0
VALID_ROWS = 500  # validation samples that choose the weight
CUTOFF = 10  # of the NDCG that chooses it

logger = logging.getLogger(__name__)


class Grounding:
    """Ranks items by the distance of their titles to the one that `model` writes after the prompt of a history.

    The popularity weight is the one in `options`, or else the best by NDCG@10 on at most 500 samples of `valid`, drawn by `seed`: one for all
    metrics, where the original has one for each, without the items of histories if these are to `exclude_seen`. `note` says which it is. Raises
    `UserError` where there is nothing to choose it on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Prompts,
        options: Ranking,
        valid: Part | None = None,
        seed: int = 0,
        show_progress: bool = False,
        exclude_seen: bool = False,
    ) -> None:
        self.model, self._prompts, self._stops, self._show_progress = model.eval(), prompts, prompts.terminators, show_progress
        catalogue = prompts.catalogue
        self._items = catalogue.by_popularity  # columns stand in this order, so that equal distances do
        self._titles, self._popularity = catalogue.title_of[self._items], np.array(catalogue.popularity)[self._items]
        self._memory = batch_memory(options, model.device)
        self._table = self._embed(catalogue.distinct)
        weight, how = options.popularity_weight, ""
        if weight is None:
            if valid is None:
                raise UserError("ranking.popularity_weight is chosen on validation samples, and there are none; give one, such as 1")
            rows = choose_rows(len(valid), VALID_ROWS, seed)
            targets = (self._items == valid.targets[rows, None]).argmax(1)
            histories = [valid.history(row).tolist() for row in rows]
            seen = np.array([np.isin(self._items, history) for history in histories]) if exclude_seen else None
            weight, how = best_weight(self._distances(histories), self._popularity, targets, seen), ", by validation"
        self._weight, self.note = weight, f"popularity weight {weight:g}{how}"
        logger.info("grounding: %s", self.note)

    def order(self, histories: Sequence[Sequence[int]], exclude_seen: bool = False) -> np.ndarray:
        """All items, the nearest first, for each history of item ids, oldest first; ties by training popularity, then id. Shape (user, item).

        With `exclude_seen` a history's items come last.
        """
        scores = weighed(self._distances(histories), self._popularity, self._weight)
        order = self._items[scores.argsort(1, kind="stable")]
        return seen_last(order, histories) if exclude_seen else order

    def _distances(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """Euclidean distance of each written title to that of every item, the most popular item first. Shape (user, item), float64.

        Several processes share the users out.
        """
        written = self.write(share(histories))
        known = self._prompts.catalogue.position
        others = sorted(set(written) - known.keys())
        place = known | {title: len(known) + index for index, title in enumerate(others)}
        own = torch.cat([self._table, self._embed(others)])[[place[title] for title in written]]
        # By differences: in matrix products small distances drown, and depend on what else is in the batch.
        distances = unshared(torch.cdist(own, self._table, compute_mode="donot_use_mm_for_euclid_dist").double().cpu()).numpy()
        if not np.isfinite(distances).all():
            raise UserError(f"the model ({self.model.dtype}) embeds titles as numbers that are not finite; use float32 or bfloat16 weights")
        return distances[:, self._titles]

    @torch.inference_mode()
    def write(self, histories: Sequence[Sequence[int]]) -> list[str]:
        """The title that the model writes for each history: the best of four beams, neither sampled nor normalised by length."""
        prompts = [self._prompts.prompt(history) for history in histories]
        longest, pad, ends = max(map(len, self._prompts.answers)), self._prompts.pad_id, self._stops
        how = GenerationConfig(num_beams=BEAMS, do_sample=False, length_penalty=0.0, max_new_tokens=longest, eos_token_id=ends, pad_token_id=pad)
        sizes, titles = Sizes.of(self.model), [""] * len(prompts)
        kept = 2 * 2 * sizes.layers * sizes.kv_heads * sizes.head_dim  # keys and values, and their copies while beams change places
        own, self.model.generation_config = self.model.generation_config, GenerationConfig()  # it would fill in what `how` leaves open
        try:
            with tqdm(total=len(prompts), desc="writing", unit="user", disable=not self._show_progress, leave=False) as bar:
                for rows in _batches(self.model, self._memory, [len(prompt) + longest for prompt in prompts], kept, BEAMS):
                    batch = [torch.from_numpy(prompts[row]) for row in rows]
                    ids = pad_sequence(batch, batch_first=True, padding_value=pad, padding_side="left").to(self.model.device)
                    seen = pad_sequence([torch.ones_like(prompt) for prompt in batch], batch_first=True, padding_side="left").to(self.model.device)
                    output: Any = self.model.generate(ids, attention_mask=seen, generation_config=how)
                    for row, answer in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
                        titles[row] = self._title(answer)
                    bar.update(len(rows))
        finally:
            self.model.generation_config = own
        return titles

    def _title(self, answer: list[int]) -> str:
        """The title that an answer's ids spell, up to the first terminator and without the closing."""
        end = next((place for place, token in enumerate(answer, 1) if token in self._stops), len(answer))
        text: Any = self._prompts.tokenizer.decode(answer[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return tidy(text.removesuffix(self._prompts.template.closing))

    def _embed(self, titles: Sequence[str]) -> Tensor:
        return embed_titles(self.model, self._prompts, titles, self._memory)


@torch.inference_mode()
def embed_titles(model: PreTrainedModel, prompts: Prompts, titles: Sequence[str], memory: int) -> Tensor:
    """The last layer's hidden state at each title's last token; the title, or a quote where it is blank, is all that the model reads.

    `memory` are the bytes that a batch may take. Shape (title, hidden), in float32 or better.
    """
    ids = [torch.tensor(prompts.tokenizer(title or '"').input_ids) for title in titles]
    table = torch.empty(len(titles), model.config.hidden_size, dtype=torch.promote_types(model.dtype, torch.float32))
    for rows in _batches(model, memory, [len(title) for title in ids]):
        batch = [ids[row] for row in rows]
        padded = pad_sequence(batch, batch_first=True, padding_value=prompts.pad_id).to(model.device)
        hidden = model.base_model(input_ids=padded, use_cache=False).last_hidden_state  # no mask: padding on the right is not seen
        table[rows] = hidden[range(len(rows)), [len(title) - 1 for title in batch]].to(table)
    return table.to(model.device)


def _batches(model: PreTrainedModel, memory: int, lengths: Sequence[int], kept: int = 0, copies: int = 1) -> Iterator[np.ndarray]:
    """Rows, the longest first, in batches that fit into `memory` bytes. Each has `copies`, and `kept` values for every position."""
    sizes = Sizes.of(model)
    position = copies * model.dtype.itemsize * (kept + 4 * sizes.hidden + 3 * sizes.intermediate)  # bytes
    rows = np.argsort([-length for length in lengths], kind="stable")
    while len(rows):
        count = max(1, memory // (position * lengths[rows[0]]))
        yield rows[:count]
        rows = rows[count:]


def weighed(distances: np.ndarray, popularity: np.ndarray, weight: float) -> np.ndarray:
    """BIGRec's d (1 + c) ** -weight, the lower the better. Shape (user, item).

    d are the `distances` (user, item), min-max in each row, and c is the `popularity` (item,), min-max.
    """
    return _unit(distances) * (1 + _unit(popularity)) ** -weight


def best_weight(distances: np.ndarray, popularity: np.ndarray, targets: np.ndarray, seen: np.ndarray | None = None) -> float:
    """The weight with the highest mean NDCG@10, the lowest of equal ones.

    `distances` (user, item), `popularity` (item,), `targets` (user,) the column of each row's target. Equal scores rank by column. `seen`
    (user, item) are items that come last.
    """
    users, earlier = np.arange(len(targets)), np.arange(len(popularity)) < targets[:, None]
    gains = []
    for weight in WEIGHTS:
        scores = weighed(distances, popularity, weight)
        scores = scores if seen is None else np.where(seen, np.inf, scores)
        own = scores[users, targets, None]
        ranks = 1 + ((scores < own) | ((scores == own) & earlier)).sum(1)
        gains.append(np.where(ranks <= CUTOFF, 1 / np.log2(ranks + 1), 0).mean())
    return float(WEIGHTS[np.argmax(gains)])


def _unit(values: np.ndarray) -> np.ndarray:
    """Min-max along the last axis; 0 where all are equal."""
    values = values - values.min(-1, keepdims=True)
    highest = values.max(-1, keepdims=True)
    return values / np.where(highest > 0, highest, 1)
