"""What the project is after, and whether a comparison reached it: each aim with what was measured, and its verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from recbole_prunerec.report.ranks import RESAMPLES, Ranks, interval, means, metric_names, pooled, resampled_means, retention_interval
from recbole_prunerec.report.results import Row
from recbole_prunerec.report.tables import heading, percent
from recbole_prunerec.study.systems import REFERENCE, TEACHER

BY_IDS = ("SASRec", "GRU4Rec", "Caser", "SASRec-BCE", "GRU4Rec-BCE", "Caser-BCE")
SHARE = 0.05  # of the parameters, at most
KEPT = (0.88, 0.95)  # of the teacher's quality, at least: the paper's figure, and ours
FASTER = 10  # times the teacher, at least
HOLDS, MISSED, OPEN = "holds", "missed", "not told apart"


class Aim(BaseModel):
    """One aim. `measured` is what its verdict follows from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    measured: str
    verdict: str


class Ranked(Protocol):
    """A finished run's row and ranks."""

    @property
    def row(self) -> Row:
        """What was measured."""

    @property
    def ranks(self) -> Ranks:
        """Of every test row."""


Runs = Mapping[int, Ranked]  # of a system, by seed


def aims_of(systems: Mapping[str, Runs], topk: Sequence[int], wanted: str) -> tuple[Aim, ...]:
    """The aims whose systems are there, over the seeds that both of a pair have; differences are in the metric `wanted`, or NDCG at the first K."""
    metric = wanted if wanted in metric_names(topk) else f"ndcg@{topk[0]}"
    ids = [name for name in BY_IDS if name in systems]
    best = max(ids, key=lambda name: _mean(systems[name], topk, metric), default=None)
    named = [(TEACHER, best), ("D3", best), (REFERENCE, best), (REFERENCE, "scratch")]
    found = [
        _above(one, other, systems, topk, metric)
        for one, other in named
        if other is not None and {one, other} <= set(systems) and _pairs(systems[one], systems[other])
    ]
    if {REFERENCE, TEACHER} <= set(systems) and _pairs(systems[REFERENCE], systems[TEACHER]):
        found += _small(systems[REFERENCE]) + _kept(systems, topk) + _fast(systems)
    return tuple(found)


def _pairs(one: Runs, other: Runs) -> list[tuple[Ranks, Ranks]]:
    """The ranks of the seeds that both have."""
    return [(run.ranks, other[seed].ranks) for seed, run in one.items() if seed in other]


def _mean(runs: Runs, topk: Sequence[int], metric: str) -> float:
    return fmean(means(run.ranks, topk)[metric] for run in runs.values())


def _above(one: str, other: str, systems: Mapping[str, Runs], topk: Sequence[int], metric: str) -> Aim:
    """Whether `one` is better than `other`: its difference's interval is above 0."""
    first = next(seed for seed in systems[one] if seed in systems[other])
    users, ours, theirs = pooled(_pairs(systems[one], systems[other]), topk)
    difference = ours[metric] - theirs[metric]
    low, high = interval(resampled_means(difference[None], users, RESAMPLES, first)[:, 0])
    verdict = HOLDS if low > 0 else MISSED if high < 0 else OPEN
    against = f"{other}, the best over item ids" if other in BY_IDS else f"{other}, the same shape from weights drawn anew"
    return Aim(name=f"{one} is above {against}", measured=f"{heading(metric)} {difference.mean():+.4f} ({low:+.4f} to {high:+.4f})", verdict=verdict)


def _small(ours: Runs) -> list[Aim]:
    parameters = next(iter(ours.values())).row.parameters
    shares = {"of all parameters": parameters.share_total, "of those that are no embedding": parameters.share_non_embedding}
    return [
        Aim(name=f"{REFERENCE} has at most {percent(SHARE)} {what}", measured=percent(share), verdict=HOLDS if share <= SHARE else MISSED)
        for what, share in shares.items()
        if share is not None
    ]


def _kept(systems: Mapping[str, Runs], topk: Sequence[int]) -> list[Aim]:
    ends = retention_interval(_pairs(systems[REFERENCE], systems[TEACHER]), topk)
    if ends is None:
        return []
    return [
        Aim(
            name=f"It keeps at least {percent(least)} of the teacher's quality; the lower end counts",
            measured=f"{percent(ends[0])} to {percent(ends[1])}",
            verdict=HOLDS if ends[0] >= least else f"{MISSED} by {100 * (least - ends[0]):.1f} points",
        )
        for least in KEPT
    ]


def _fast(systems: Mapping[str, Runs]) -> list[Aim]:
    ours, teacher = (fmean(run.row.seconds_per_user for run in systems[name].values()) for name in (REFERENCE, TEACHER))
    times = teacher / ours
    return [Aim(name=f"It ranks a user at least {FASTER} times faster", measured=f"{times:.1f} times", verdict=HOLDS if times >= FASTER else MISSED)]
