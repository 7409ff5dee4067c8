"""A language model that recommends from a catalogue: in a run, and in the hand, from the folder of a step. It needs torch and transformers alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_prunerec.backbone.load import load_backbone
from recbole_prunerec.data.samples import Part
from recbole_prunerec.distributed import rank as process
from recbole_prunerec.distributed import share, total, unshared, world
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking.grounding import Grounding
from recbole_prunerec.ranking.search import Found, rank
from recbole_prunerec.ranking.seen import seen_last
from recbole_prunerec.ranking.serving import count_problem, history_problem, model_folder, ranking_options
from recbole_prunerec.ranking.trie import FILE, Trie
from recbole_prunerec.settings import Ranking, Settings
from recbole_prunerec.storage import read_json
from recbole_prunerec.text.catalogue import Catalogue, tidy
from recbole_prunerec.text.prompts import Prompts, made_of
from recbole_prunerec.text.wording import FILE as WORDING
from recbole_prunerec.text.wording import Softmax, Wording

BLOCK = 1024  # users that are recommended for at once
ORDERED = 256  # users whose whole order is made at once

logger = logging.getLogger(__name__)


class Recommendation(NamedTuple):
    """One recommended item; items that share a title have its log-probability, natural, each."""

    item: str
    title: str
    log_probability: float


class Recommended(NamedTuple):
    """What one user is recommended, the best first, and whether the search proved that nothing better is in the catalogue."""

    items: list[Recommendation]
    proven: bool


class Recommender:
    """Ranks items by the log-probability of their titles after the prompt of a history, found by a search over the prefix tree of titles."""

    def __init__(
        self, model: PreTrainedModel, prompts: Prompts, options: Ranking, softmax: Softmax = "vocabulary", show_progress: bool = False
    ) -> None:
        self.model, self.prompts, self.catalogue, self.trie = model.eval(), prompts, prompts.catalogue, prompts.trie.to(model.device)
        self._options, self._softmax, self._show_progress = options, softmax, show_progress
        self._proven, self._ordered = 0, 0

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "auto",
        show_progress: bool = False,
        dtype: str = "float32",
        revision: str | None = None,
        **options: Any,
    ) -> Recommender:
        """The recommender in the folder of a step, or in one like it on the Hugging Face hub. No code from it is run, and no pickle is read.

        `device` is cpu, cuda, cuda:1, or auto, a GPU where there is one; `dtype` float32 or bfloat16; `revision` a branch, a tag or a commit on the
        hub, None its main branch; `options` are keys of settings.Ranking. Raises `UserError` with all that is wrong with these, and where the folder
        lacks something, is damaged, or holds what does not belong together.
        """
        ranking = ranking_options(options, device, dtype)
        folder = model_folder(str(name), revision=revision)
        place = _place(device)
        backbone = load_backbone(str(folder), {}, (), 0, "model")
        prompts, wording = load_prompts(folder, backbone.tokenizer)
        model: Any = backbone.model
        return cls(model.to(device=place, dtype=getattr(torch, dtype)), prompts, ranking, wording.softmax, show_progress)

    @property
    def note(self) -> str | None:
        """What a reader must know of all ranks that `order` gave so far."""
        options, notes = self._options, []
        if options.assistant:
            notes.append(f"with {options.assistant}, weight {options.assistant_weight:g}")
        if options.search == "exact" and self._ordered:
            notes.append(f"proven for {100 * self._proven / self._ordered:.1f} % of rows")
        return "; ".join(notes) or None

    def order(self, histories: Sequence[Sequence[int]], assistant: np.ndarray | None = None, exclude_seen: bool = False) -> np.ndarray:
        """All items in recommended order for each history of item ids, oldest first. Shape (user, item).

        The items of found titles come first, by log-probability, then training popularity, then id; the others by that of the longest beginning of
        their title that was scored. `assistant` (user, item), index 0 being padding, are D3's probabilities. With `exclude_seen` a history's items
        come last, and titles that no other item has are not searched for. Several processes share the users out.
        """
        order = np.empty((len(histories), len(self.catalogue) - 1), dtype=np.int32)
        together = ORDERED * world()
        with self._bar(len(share(histories))) as bar:
            for start in range(0, len(histories), together):
                own = slice(start + process(), start + together, world())
                found, proven = self._order(histories[own], None if assistant is None else assistant[own], exclude_seen, bar)
                order[start : start + together] = unshared(torch.from_numpy(found)).numpy()
                self._proven += int(total(proven))
        self._ordered += len(histories)
        return order

    def _order(self, histories: Sequence[Sequence[int]], assistant: np.ndarray | None, exclude_seen: bool, bar: tqdm) -> tuple[np.ndarray, Tensor]:
        """The `order` of users at once, and for how many it is proven."""
        if not histories:
            return np.empty((0, len(self.catalogue) - 1), dtype=np.int32), torch.tensor(0)
        helped = None if assistant is None else self.catalogue.of_titles(assistant)
        excluded = list(map(self._all_seen, histories)) if exclude_seen else None
        found = self._rank(list(map(self.prompts.prompt, histories)), self._options.beams, bar, assistant=helped, bounds=True, excluded=excluded)
        bounds: Any = found.bounds
        order = self.catalogue.order(found.titles.numpy(), found.scores.numpy(), bounds.numpy())
        return (seen_last(order, histories) if exclude_seen else order).astype(np.int32), found.proven.sum()

    def _all_seen(self, history: Sequence[int]) -> list[int]:
        """The titles whose items are all in a history."""
        seen, titles = set(history), {int(self.catalogue.title_of[item]) for item in history}
        return sorted(title for title in titles if seen.issuperset(self.catalogue.items_of(title)))

    def recommend(self, histories: Iterable[Sequence[str]], k: int = 20, exclude_seen: bool = True) -> list[list[Recommendation]]:
        """The `k` best items for each history of titles, oldest first, which need not be in the catalogue; `stream` has the details."""
        return [recommended.items for recommended in self.stream(histories, k, exclude_seen)]

    def stream(self, histories: Iterable[Sequence[str]], k: int = 20, exclude_seen: bool = True, total: int | None = None) -> Iterator[Recommended]:
        """The `k` best items for each of any number of histories of titles, `total` if that is known, in bounded memory.

        With `exclude_seen` items whose title is in the history are left out; fewer than `k` come where there are no more. Items that share a title
        stand side by side, the most popular first. Of an empty history the model sees the template alone. Raises `UserError` for a `k` below 1, and,
        when its turn comes, for what is no list of titles.
        """
        if problem := count_problem(k):
            raise UserError(problem)
        if isinstance(histories, Sequence):
            total = len(histories)
        return self._stream(iter(histories), min(k, self.trie.count), k, exclude_seen, total)

    def _stream(self, histories: Iterator[Sequence[str]], titles: int, k: int, exclude_seen: bool, total: int | None) -> Iterator[Recommended]:
        done = 0
        with self._bar(total) as bar:
            while block := list(islice(histories, BLOCK)):
                problems = [f"histories[{done + row}]: {problem}" for row, history in enumerate(block) if (problem := history_problem(history))]
                if problems:
                    raise UserError("\n".join(problems))
                seen = [{self.catalogue.position.get(tidy(title), -1) for title in history} - {-1} for history in block] if exclude_seen else None
                excluded = None if seen is None else [sorted(positions) for positions in seen]
                found = self._rank(list(map(self.prompts.prompt_of, block)), titles, bar, excluded=excluded)
                for row in zip(found.titles.tolist(), self._log_probabilities(found).tolist(), found.proven.tolist(), strict=True):
                    yield self._recommended(*row, k)
                done += len(block)

    def _rank(self, prompts: list[np.ndarray], k: int, bar: tqdm, **more: Any) -> Found:
        return rank(self.model, self.trie, prompts, self._options, k, softmax=self._softmax, progress=bar.update, **more)

    def _bar(self, total: int | None) -> tqdm:
        return tqdm(total=total, desc="ranking", unit="user", disable=not self._show_progress, leave=False)

    def _log_probabilities(self, found: Found) -> Tensor:
        """What the titles' scores were before the length penalty. Shape (user, k)."""
        if not self._options.length_penalty:
            return found.scores
        lengths = torch.empty(self.trie.count).index_copy_(0, self.trie.order.cpu().long(), self.trie.lengths.cpu().float())
        return found.scores * lengths[found.titles] ** self._options.length_penalty

    def _recommended(self, titles: list[int], scores: list[float], proven: bool, k: int) -> Recommended:
        """The first `k` items of titles by index, padded with -1."""
        catalogue = self.catalogue
        items = [
            Recommendation(catalogue.tokens[item], catalogue.titles[item], score)
            for title, score in zip(titles, scores, strict=True)
            if title >= 0
            for item in catalogue.items_of(title)
        ]
        return Recommended(items[:k], proven)

    def prefix_allowed_tokens_fn(self, prompt_length: int) -> Callable[[int, Tensor], list[int]]:
        """For transformers' `generate(..., prefix_allowed_tokens_fn=...)` after prompts of `prompt_length` tokens, padding included.

        It then writes titles of the catalogue alone; after one, padding.
        """

        def allowed(_: int, ids: Tensor) -> list[int]:
            node, trie = 0, self.prompts.trie  # on the CPU
            for token in ids[prompt_length:].tolist():
                tokens, nodes = trie.children(node)
                place = int(torch.searchsorted(tokens, token))
                if place == len(tokens) or tokens[place] != token:
                    return [self.prompts.pad_id]
                node = int(nodes[place])
            return trie.children(node)[0].tolist() or [self.prompts.pad_id]

        return allowed


def ranker(model: PreTrainedModel, prompts: Prompts, settings: Settings, valid: Part) -> Recommender | Grounding:
    """What ranks test rows with `model` as `settings` say; grounding chooses its popularity weight on `valid` samples."""
    if settings.ranking.search == "grounding":
        return Grounding(model, prompts, settings.ranking, valid, settings.seed, settings.show_progress, settings.exclude_seen)
    return Recommender(model, prompts, settings.ranking, settings.softmax, settings.show_progress)


def load_prompts(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, Wording]:
    """The prompts that `Prompts.save` wrote into `folder`, with their prefix tree, and their wording.

    A tree that is missing, or is not of the catalogue's titles, as after an update that was killed, is made again, here and at every load. Raises
    `UserError` where a file is damaged, or the tree was made with another tokenizer.
    """
    catalogue, wording = Catalogue.load(folder), read_json(folder / WORDING, Wording)
    trie, path, wrong = None, folder / FILE, "does not exist"
    if path.exists():
        trie, made = Trie.load(path)
        expected = made_of(tokenizer, catalogue, wording.template)
        if made.get("spelling") != expected["spelling"]:
            raise UserError(
                f"{path} was made with another tokenizer or template than {folder} has; copy the folder again, whole, or remove {FILE} if the "
                "tokenizer is the one that the model was trained with"
            )
        trie, wrong = (trie, "") if made == expected else (None, "is not of the catalogue's titles")
    if trie is None:
        logger.warning("%s %s; it is made again (update_catalogue(%r) keeps it)", path, wrong, str(folder))
    return Prompts(tokenizer, catalogue, wording.template, wording.max_prompt_tokens, trie=trie), wording


def _place(device: str) -> str:
    """`device`, or what auto stands for. Raises `UserError` where there is no such GPU."""
    count = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if count else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count:
        raise UserError(f"device={device}: there is no such GPU, torch sees {count}; choose device=auto")
    return device
