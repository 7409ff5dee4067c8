"""Clocks and meters of the benchmark of ranking, and what they are held to."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from material import Subject
from reference import seconds_per_token
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from tqdm import tqdm
from transformers import PreTrainedModel

from recbole_prunerec.ranking.search import Found, rank
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.report.cost import PeakMemory, Stopwatch
from recbole_prunerec.settings import Ranking

BEAMS = K = 20
ROUNDS = 3  # of what is timed and what it is compared with, in turn; medians are reported


class ModelClock(TorchFunctionMode):
    """Inside, the time that goes into a model: decoder, output head, and whatever is done to logits over the whole vocabulary but to pick some.

    Of a search whose users fit into one batch, `own_share` is then the share of the time after the prompts that is anything else.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._decoder, self._vocab = model.base_model, model.config.vocab_size
        self._inside = False
        self._models, self._start = 0.0, 0.0

    def _enter(self, *_: object) -> None:
        self._inside, self._began = True, time.perf_counter()

    def _leave(self, *_: object) -> None:
        self._inside = False
        if self._start:  # before, it is the prompts that went through
            self._models += time.perf_counter() - self._began

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside or not self._is_the_models(function, args):
            return function(*args, **kwargs)
        self._start = self._start or time.perf_counter()
        self._enter()
        result = function(*args, **kwargs)
        self._leave()
        return result

    def _is_the_models(self, function: Callable[..., Any], args: Any) -> bool:
        if function is linear:
            return True
        logits = bool(args) and isinstance(args[0], Tensor) and args[0].shape[-1:] == (self._vocab,)
        return logits and function not in (Tensor.__getitem__, Tensor.gather)

    def __enter__(self) -> ModelClock:
        self._hooks = [self._decoder.register_forward_pre_hook(self._enter), self._decoder.register_forward_hook(self._leave)]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.own_share = 1 - self._models / (time.perf_counter() - self._start)
        for hook in self._hooks:
            hook.remove()


class Held:
    """The most memory held in a block, above what was held before it."""

    bytes = 0


@contextmanager
def held() -> Iterator[Held]:
    """Measure `Held`, after what earlier work freed has gone back to the system."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    result = Held()
    with PeakMemory() as before:
        pass
    with PeakMemory() as peak:
        yield result
    result.bytes = peak.bytes - before.bytes


def bar(what: str, users: int) -> tqdm:
    """A progress bar over users."""
    return tqdm(total=users, desc=what, unit="user", leave=False)


def search(subject: Subject, queries: Sequence[np.ndarray], trie: Trie | None = None, **options: Any) -> Found:
    """Our ranking of `queries`."""
    with bar(options.get("search", "beam") + " search", len(queries)) as progress:
        return rank(subject.model, trie or subject.prompts.trie, queries, Ranking(beams=BEAMS, **options), K, progress=progress.update)


class Timed(NamedTuple):
    """What ranking takes a user, and the floor that it is measured by."""

    seconds: float
    over_floor: float
    prompt_tokens: float
    expanded: float
    rate: float  # tokens a second
    found: Found


def timed(subject: Subject, queries: Sequence[np.ndarray]) -> tuple[Timed, int]:
    """Search and batched prefill in turn, medians; and the most memory that the search held above what was held before, in bytes.

    The floor is prompt tokens plus expanded prefixes, at the best rate of the prefill.
    """
    took, ratios, rates = [], [], []
    with held() as peak:
        found = search(subject, queries)
    tokens, expanded = sum(map(len, queries)), int(found.expanded.sum())
    for _ in range(ROUNDS):
        with Stopwatch() as watch:
            search(subject, queries)
        took.append(watch.seconds)
        rates.append(1 / seconds_per_token(subject.model))
        ratios.append(watch.seconds * rates[-1] / (tokens + expanded))
    count = len(queries)
    return Timed(median(took) / count, median(ratios), tokens / count, expanded / count, median(rates), found), peak.bytes
