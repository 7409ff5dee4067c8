"""From finished runs to one table: means and deviations over seeds, and paired tests against PruneRec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from recbole_prunerec.report.ranks import RESAMPLES, Ranks, interval, pooled, resampled_means, retention, retention_interval
from recbole_prunerec.report.results import Comparison, Parameters, Results, Row
from recbole_prunerec.report.significance import holm, two_sided
from recbole_prunerec.storage import read_json
from recbole_prunerec.study.aims import Aim, aims_of
from recbole_prunerec.study.runs import RESULTS, Run
from recbole_prunerec.study.systems import REFERENCE, TEACHER, System

RECIPE_MODELS = {"Pop": "Popularity"}  # rows whose ranks have another name


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spread(_Frozen):
    """Mean and sample standard deviation over seeds; a single one has none."""

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(mean=fmean(values), deviation=stdev(values) if len(values) > 1 else None)


class Line(_Frozen):
    """A system's row. What cannot be told is None; `note` says why, or what else a reader must know."""

    system: str
    group: str
    seeds: tuple[int, ...]  # whose runs are finished
    metrics: dict[str, Spread] = {}
    retention: Spread | None = None  # METHOD 5's share of the teacher, on the same rows
    retention_interval: tuple[float, float] | None = None  # 95 %, over the rows of all seeds together
    parameters: Parameters | None = None
    flops_per_user: float | None = None
    seconds_per_user: Spread | None = None
    peak_memory_bytes: Spread | None = None
    note: str | None = None


class Difference(Comparison):
    """`Comparison` over all seeds, with the p-value of the same bootstrap, and Holm's for all systems on this metric."""

    p: float
    adjusted: float


class Study(_Frozen):
    """The content of comparison.json."""

    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    aims: tuple[Aim, ...] = ()
    steps: tuple[Row, ...] = ()  # of the first seed: the teacher, and what every step left, before and after restoration
    runs: tuple[Run, ...]
    dataset: dict[str, Any]
    protocol: dict[str, Any]
    versions: dict[str, str]
    device: str
    command: str
    seeds: tuple[int, ...]
    preset: str
    worthless: bool


class Found(_Frozen):
    """The row of a finished run, and where its ranks are."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    row: Row
    ranks: Ranks
    results: Results
    note: str | None


def gather(runs: Sequence[Run], systems: Mapping[str, System], command: str, reference: str = REFERENCE) -> Study:
    """The table of `runs`, each of some of `systems` with each of some seeds, against `reference`; at least one is finished."""
    found = {(run.system, run.seed): read_run(run, systems[run.system]) for run in runs if run.folder}
    seeds = tuple(dict.fromkeys(run.seed for run in runs))
    names = [name for name in systems if name in {run.system for run in runs}]
    first = next(iter(found.values())).results
    done: dict[str, dict[int, Found]] = {}
    for (system, seed), each in found.items():
        done.setdefault(system, {})[seed] = each
    return Study(
        lines=tuple(_line(name, systems[name].group, [run for run in runs if run.system == name], found) for name in names),
        differences=tuple(_differences(reference, names, seeds, found)),
        aims=aims_of(done, first.protocol["topk"], str(first.protocol.get("valid_metric")).lower()),
        steps=tuple(
            row for system in (TEACHER, reference) if (system, seeds[0]) in found for row in found[system, seeds[0]].results.rows if row.step
        ),
        runs=tuple(runs),
        dataset=first.dataset,
        protocol=_shared([each.results.protocol for each in found.values()]),
        versions=first.versions,
        device=first.device,
        command=command,
        seeds=seeds,
        preset=first.preset,
        worthless=any(each.results.worthless for each in found.values()),
    )


def read_run(run: Run, system: System) -> Found:
    """What a finished run has of its system. Raises `UserError` where its files are missing or damaged."""
    folder = Path(str(run.folder))
    results = read_json(folder / RESULTS, Results)
    row = next(row for row in reversed(results.rows) if system.row in (None, row.system))
    if row.step is not None:
        name = f"{row.step}-{row.step_name}"
    else:  # a run without steps ranks what it was given, under the folder's name
        name = "PruneRec" if folder.name.startswith("evaluate-") else RECIPE_MODELS.get(row.system, row.system)
    steps = [each.note for each in results.rows if each.step is not None and each.restored is not False]
    notes = dict.fromkeys(part for note in (run.note, *steps, row.note) if note for part in note.split("; "))
    return Found(row=row, ranks=Ranks.read(folder / "ranks" / f"{name}.csv"), results=results, note="; ".join(notes) or None)


def _line(system: str, group: str, runs: Sequence[Run], found: Mapping[tuple[str, int], Found]) -> Line:
    done = {run.seed: found[system, run.seed] for run in runs if run.folder}
    failed = [f"seed {run.seed} failed: {run.failure}" if done else f"failed: {run.failure}" for run in runs if run.failure]
    notes = dict.fromkeys([each.note for each in done.values() if each.note] + list(dict.fromkeys(failed)))
    about: dict[str, Any] = {"system": system, "group": group, "seeds": tuple(done), "note": "; ".join(notes) or None}
    if not done:
        return Line(**about)
    rows = [each.row for each in done.values()]
    topk = next(iter(done.values())).results.protocol["topk"]
    pairs = [(each.ranks, found[TEACHER, seed].ranks) for seed, each in done.items() if (TEACHER, seed) in found]
    kept = [retention(*pair, topk) for pair in pairs]
    flops = [row.flops_per_user for row in rows if row.flops_per_user is not None]
    return Line(
        **about,
        metrics={name: Spread.of([row.metrics[name] for row in rows]) for name in rows[0].metrics},
        retention=Spread.of([value for value in kept if value is not None]) if kept and None not in kept else None,
        retention_interval=retention_interval(pairs, topk) if kept and None not in kept and system != TEACHER else None,
        parameters=rows[0].parameters,
        flops_per_user=fmean(flops) if flops else None,
        seconds_per_user=Spread.of([row.seconds_per_user for row in rows]),
        peak_memory_bytes=Spread.of([row.peak_memory_bytes for row in rows]),
    )


def _differences(reference: str, systems: Sequence[str], seeds: Sequence[int], found: Mapping[tuple[str, int], Found]) -> list[Difference]:
    """`reference` against every other system on the seeds that both have: the rows of all seeds together, users drawn with all of theirs."""
    made: list[dict[str, Any]] = []
    for other in (system for system in systems if system != reference):
        both = [seed for seed in seeds if (reference, seed) in found and (other, seed) in found]
        if both:
            made += _compared(reference, other, [(found[reference, seed], found[other, seed]) for seed in both], both[0])
    for metric in dict.fromkeys(each["metric"] for each in made):
        family = [each for each in made if each["metric"] == metric]
        for each, adjusted in zip(family, holm([each["p"] for each in family]), strict=True):
            each["adjusted"] = adjusted
    return [Difference(**each) for each in made]


def _compared(reference: str, other: str, pairs: Sequence[tuple[Found, Found]], seed: int) -> list[dict[str, Any]]:
    users, ours, theirs = pooled([(ours.ranks, theirs.ranks) for ours, theirs in pairs], pairs[0][0].results.protocol["topk"])
    differences = np.stack([ours[metric] - theirs[metric] for metric in ours])
    resampled = resampled_means(differences, users, RESAMPLES, seed)
    found = []
    for place, metric in enumerate(ours):
        low, high = interval(resampled[:, place])
        values = {"metric": metric, "difference": float(differences[place].mean()), "low": low, "high": high, "p": two_sided(resampled[:, place])}
        found.append({"system": reference, "against": other, "users": len(np.unique(users)), "rows": len(users), **values})
    return found


def _shared(protocols: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all runs have alike; the softmax and the search of some systems are their own."""
    return {key: value for key, value in protocols[0].items() if all(key in other and other[key] == value for other in protocols)}
