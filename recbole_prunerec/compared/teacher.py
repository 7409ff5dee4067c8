"""What a fine-tuned language model tells DLLM2Rec: for training histories the items that it ranks first, and an embedding of every title.

All of it is computed once and kept in files under a hash of what it depends on, the lists some hundred at a time, so that a run that was cut goes on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from recbole_prunerec import __version__
from recbole_prunerec.backbone.family import model_hash
from recbole_prunerec.backbone.load import load_backbone
from recbole_prunerec.checked import read_checked, write_checked
from recbole_prunerec.data.samples import Part, choose_rows
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking.grounding import embed_titles
from recbole_prunerec.ranking.recommender import load_prompts
from recbole_prunerec.ranking.search import batch_memory, rank
from recbole_prunerec.settings import Ranking
from recbole_prunerec.storage import hash_of
from recbole_prunerec.text.catalogue import Catalogue

TOGETHER = 512  # lists in a file

logger = logging.getLogger(__name__)


class Lists(NamedTuple):
    """The items that a teacher ranks first, by history."""

    rows: Mapping[bytes, int]  # of a history's bytes, int64 and padded
    items: Tensor  # (row, place) int64, the best first; 0 behind the end of a list
    log_probabilities: Tensor  # (row, place) float32 of their titles; -inf behind the end

    def find(self, histories: np.ndarray) -> Tensor:
        """The row of each history (batch, longest), or -1. Shape (batch,)."""
        return torch.tensor([self.rows.get(history.tobytes(), -1) for history in histories.astype(np.int64, copy=False)])


class Teacher:
    """The fine-tuned model in `folder`, a step's, for a `catalogue`; files go into `cache`. Raises `UserError` where it is not of that catalogue."""

    def __init__(self, folder: Path, catalogue: Catalogue, device: torch.device, cache: Path, show_progress: bool) -> None:
        check_catalogue(folder, catalogue)
        backbone = load_backbone(str(folder), {}, (), 0, "teacher")
        model: PreTrainedModel = backbone.model
        self._model, self._options = model.to(device).eval(), Ranking()  # type: ignore[arg-type]  # its decorator hides self
        self._prompts, self._wording = load_prompts(folder, backbone.tokenizer)
        self._cache, self._show_progress = cache, show_progress
        self._hash = hash_of([model_hash(self._model), self._prompts.made_of, self._wording.model_dump(), __version__])

    def embeddings(self) -> Tensor:
        """Of every item's title, 0 for padding: the last hidden state at its last token. Shape (item, hidden), float32."""
        catalogue = self._prompts.catalogue

        def compute() -> dict[str, Tensor]:
            memory = batch_memory(self._options, self._model.device)
            return {"titles": embed_titles(self._model, self._prompts, catalogue.distinct, memory).float().cpu()}

        titles = _kept(self._cache / f"titles-{self._hash[:16]}.safetensors", compute)["titles"]
        return torch.cat([torch.zeros(1, titles.shape[1]), titles[catalogue.title_of[1:]]])

    def lists(self, train: Part, count: int, length: int, seed: int) -> Lists:
        """The `length` items that it ranks first for the histories of `count` samples of `train`, drawn by `seed`; of all where there are fewer."""
        drawn = train.histories[choose_rows(len(train), count, seed)].astype(np.int64, copy=False)
        histories = np.unique(drawn, axis=0)
        key = hash_of([self._hash, length, hashlib.sha256(histories.tobytes()).hexdigest()])
        folder, parts = self._cache / f"lists-{key[:16]}", []
        logger.info("teacher's lists for %s histories of %s training samples: %s", f"{len(histories):,}", f"{len(drawn):,}", folder)
        with tqdm(total=len(histories), desc="teacher's lists", unit="history", disable=not self._show_progress, leave=False) as bar:
            for start in range(0, len(histories), TOGETHER):
                some = histories[start : start + TOGETHER]
                parts.append(_kept(folder / f"{start:08d}.safetensors", lambda some=some: self._ranked(some, length, bar)))  # type: ignore[misc]
                bar.update(start + len(some) - bar.n)
        rows = {history.tobytes(): row for row, history in enumerate(histories)}
        return Lists(rows, *(torch.cat([part[name] for part in parts]) for name in ("items", "log_probabilities")))

    def _ranked(self, histories: np.ndarray, length: int, bar: tqdm) -> dict[str, Tensor]:
        """The lists of some histories."""
        prompts = [self._prompts.prompt(history[history > 0].tolist()) for history in histories]
        catalogue, trie = self._prompts.catalogue, self._prompts.trie
        beams = self._options.model_copy(update={"beams": max(length, self._options.beams)})
        found = rank(self._model, trie, prompts, beams, min(length, trie.count), softmax=self._wording.softmax, progress=bar.update)
        items = torch.zeros(len(histories), length, dtype=torch.int64)
        scores = torch.full((len(histories), length), -torch.inf)
        for row, (titles, values) in enumerate(zip(found.titles.tolist(), found.scores.tolist(), strict=True)):
            there = [(title, value) for title, value in zip(titles, values, strict=True) if title >= 0]
            pairs = [(item, value) for title, value in there for item in catalogue.items_of(title)][:length]
            for place, (item, value) in enumerate(pairs):
                items[row, place], scores[row, place] = item, value
        return {"items": items, "log_probabilities": scores}


def check_catalogue(folder: Path, catalogue: Catalogue) -> None:
    """Raises `UserError` where the model in `folder` was fine-tuned for other items or titles than `catalogue` has."""
    theirs = Catalogue.load(folder)
    if (theirs.tokens[1:], theirs.written[1:]) == (catalogue.tokens[1:], catalogue.written[1:]):
        return
    ours, known = (dict(zip(part.tokens[1:], part.written[1:], strict=True)) for part in (catalogue, theirs))
    same = sum(known.get(token) == title for token, title in ours.items())
    raise UserError(
        f"teacher={folder} was fine-tuned for another catalogue: it has {len(known):,} items, this dataset has {len(ours):,}, and {same:,} of them "
        "have the same name and title; give a model that was fine-tuned on this dataset with the same filters and short_titles"
    )


def _kept(path: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors as a file has them, or computed and written there."""
    found = read_checked(path)
    tensors = compute() if found is None else found[0]
    if found is None:
        write_checked(path, tensors)
    return tensors
