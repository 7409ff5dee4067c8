"""Per-row ranks of a system, and what follows from them: hit rate, NDCG, retention, and intervals by cluster bootstrap over users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_prunerec.errors import UserError
from recbole_prunerec.report.results import Comparison


@dataclass(frozen=True, eq=False)
class Ranks:
    """The target's rank for each test row of one system: four arrays `(row,)`.

    Raises `ValueError` for unequal lengths, repeated rows or ranks below 1.
    """

    rows: np.ndarray  # integer ids of the test rows, each once
    users: np.ndarray  # original user tokens, strings
    targets: np.ndarray  # original item tokens, strings
    ranks: np.ndarray  # from 1, in the full catalogue

    def __post_init__(self) -> None:
        if len({len(self.rows), len(self.users), len(self.targets), len(self.ranks)}) > 1:
            raise ValueError("rows, users, targets and ranks differ in length")
        if len(np.unique(self.rows)) != len(self.rows):
            raise ValueError("a row appears twice")
        if (self.ranks < 1).any():
            raise ValueError("a rank is below 1")

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> Ranks:
        """The rows at `index`, in that order."""
        return Ranks(self.rows[index], self.users[index], self.targets[index], self.ranks[index])

    def to_csv(self) -> str:
        """The content of a file of ranks: columns row, user, target, rank."""
        frame = pd.DataFrame({"row": self.rows, "user": self.users, "target": self.targets, "rank": self.ranks})
        return frame.to_csv(index=False, lineterminator="\n")

    @classmethod
    def read(cls, path: str | Path) -> Ranks:
        """Read a file of what `to_csv` gives. Raises `UserError` naming the file where it is missing or damaged."""
        types = {"row": np.int64, "user": str, "target": str, "rank": np.int64}
        try:
            frame = pd.read_csv(path, dtype=types, usecols=list(types), keep_default_na=False)
            return cls(frame["row"].to_numpy(), frame["user"].to_numpy(dtype=str), frame["target"].to_numpy(dtype=str), frame["rank"].to_numpy())
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; expected a file of ranks with the columns {', '.join(types)}") from None
        except ValueError as error:
            raise UserError(f"{path} is damaged; expected the columns {', '.join(types)}: {error}") from error


def hit(ranks: np.ndarray, k: int) -> np.ndarray:
    """HR@k of each row with its single target: 1 where the rank is at most k. Shape (row,)."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of each row with its single target: 1 / log2(rank + 1) where the rank is at most k, as the ideal DCG is 1. Shape (row,)."""
    return np.where(ranks <= k, 1 / np.log2(ranks + 1.0), 0.0)


METRICS = {"hit": hit, "ndcg": ndcg}
RESAMPLES = 10_000  # where a p-value has to be small enough for Holm's correction


def metric_names(topk: Sequence[int]) -> list[str]:
    """What `per_row` tells, by RecBole's names."""
    return [f"{name}@{k}" for name in METRICS for k in topk]


def per_row(ranks: np.ndarray, topk: Sequence[int]) -> dict[str, np.ndarray]:
    """Every metric at every K for each row, by RecBole's names: `{"hit@10": (row,), ..}`."""
    return {f"{name}@{k}": metric(ranks, k) for name, metric in METRICS.items() for k in topk}


def means(ranks: Ranks, topk: Sequence[int]) -> dict[str, float]:
    """Row means of `per_row`, for a table's row."""
    return {name: float(values.mean()) for name, values in per_row(ranks.ranks, topk).items()}


def align(first: Ranks, second: Ranks) -> tuple[Ranks, Ranks]:
    """Both systems on the rows that both ranked, in the same order. Raises `UserError` for no common row, or rows that are not the same samples."""
    _, left, right = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)
    if not len(left):
        raise UserError("the two systems have no test row in common; rank both on the same samples")
    first, second = first.take(left), second.take(right)
    if (first.users != second.users).any() or (first.targets != second.targets).any():
        raise UserError("the two systems' rows are not the same samples (users or targets differ); rank both with the same dataset and split")
    return first, second


def retention(system: Ranks, teacher: Ranks, topk: Sequence[int]) -> float | None:
    """METHOD 5: mean over HR and NDCG at `topk` of system / teacher on the rows that both ranked; None where a teacher's metric is 0."""
    system, teacher = align(system, teacher)
    ours, theirs = means(system, topk), means(teacher, topk)
    if not all(theirs.values()):
        return None
    return float(np.mean([ours[name] / theirs[name] for name in theirs]))


def pooled(pairs: Sequence[tuple[Ranks, Ranks]], topk: Sequence[int]) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The users (row,) of all rows that both systems of a pair ranked, and `per_row` of the first and of the second systems there."""
    aligned = [align(*pair) for pair in pairs]
    users = np.concatenate([first.users for first, _ in aligned])
    first, second = (per_row(np.concatenate([pair[side].ranks for pair in aligned]), topk) for side in (0, 1))
    return users, first, second


def resampled_means(values: np.ndarray, users: np.ndarray, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Row means of `values` (metric, row) in every resample of a cluster bootstrap over `users` (row,) (METHOD 1). Shape (resample, metric).

    Each resample draws as many users as there are, with replacement, and divides the sum over all their rows by the number of those rows.
    """
    _, cluster = np.unique(users, return_inverse=True)
    sums = np.stack([np.bincount(cluster, weights=each) for each in values])
    counts = np.bincount(cluster)
    generator = np.random.default_rng(seed)
    found = np.empty((resamples, len(values)))
    for index in range(resamples):
        drawn = generator.integers(len(counts), size=len(counts))
        found[index] = sums[:, drawn].sum(1) / counts[drawn].sum()
    return found


def interval(resampled: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values (resample,): (low, high)."""
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_interval(
    values_a: np.ndarray, values_b: np.ndarray, users: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Row mean of `values_a - values_b` with its percentile interval by `resampled_means`: (difference, low, high).

    The arrays are `(row,)` and aligned. With a single user nothing can vary and the interval has no width.
    """
    differences = np.asarray(values_a, dtype=np.float64) - values_b
    low, high = interval(resampled_means(differences[None], users, resamples, seed)[:, 0], confidence)
    return float(differences.mean()), low, high


def retention_interval(
    pairs: Sequence[tuple[Ranks, Ranks]], topk: Sequence[int], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """The percentile interval of `retention` by `resampled_means`, over the rows of all `pairs` of a system and its teacher together: (low, high).

    None where the teacher hits nothing in some resample.
    """
    users, ours, theirs = pooled(pairs, topk)
    resampled = resampled_means(np.stack([*ours.values(), *theirs.values()]), users, resamples, seed)
    system, teacher = np.split(resampled, 2, axis=1)
    return interval((system / teacher).mean(1), confidence) if teacher.all() else None


def compare(system: str, ranks: Ranks, against: str, other: Ranks, topk: Sequence[int], seed: int = 0, confidence: float = 0.95) -> list[Comparison]:
    """`system` minus `against` for every metric at every K, on the rows that both ranked, as results.json holds it."""
    ranks, other = align(ranks, other)
    ours, theirs = per_row(ranks.ranks, topk), per_row(other.ranks, topk)
    users, comparisons = len(np.unique(ranks.users)), []
    for metric in ours:
        difference, low, high = paired_interval(ours[metric], theirs[metric], ranks.users, confidence, seed=seed)
        comparisons.append(
            Comparison(
                system=system,
                against=against,
                metric=metric,
                difference=difference,
                low=low,
                high=high,
                confidence=confidence,
                users=users,
                rows=len(ranks),
            )
        )
    return comparisons
