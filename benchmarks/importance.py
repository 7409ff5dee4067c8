"""Importance scores: how much faster than full forward passes, and whether they are the same. `python benchmarks/importance.py --help`

docs/benchmarks.md says what is measured and how, and has the tables, which `--write` makes anew together with results/importance.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from material import Subject, catalogue_of, load_samples, load_subject
from measuring import held
from plain_importance import closed_tokens, head_scores, layer_rounds
from reporting import MEBIBYTE, Figure, Row, command_line, count, publish
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.softmax import softmax_of
from recbole_prunerec.data.samples import Samples, choose_rows
from recbole_prunerec.exits import guarded
from recbole_prunerec.importance.heads import head_importance
from recbole_prunerec.importance.hooks import Progress
from recbole_prunerec.importance.layers import layer_order
from recbole_prunerec.pipeline import CALIBRATION_TOKENS
from recbole_prunerec.report.cost import Stopwatch
from recbole_prunerec.text.packing import SampleRows, collate, micro_batches

APART = 5  # of two layers whose heads are scored, where one in so many is enough to time a reference, whose passes all cost the same
ROUNDS = 2  # of the greedy search
DIFFERENCE = 1e-5  # nats


class Compared(NamedTuple):
    """Our scores and the reference's. The reference's seconds are those of as many passes as ours stand for."""

    seconds: float
    reference: float
    ours: Tensor
    theirs: Tensor

    @property
    def difference(self) -> float:
        """The largest, in nats."""
        return float((self.ours - self.theirs).abs().max())

    @property
    def times(self) -> float:
        """How much faster ours are."""
        return self.reference / self.seconds

    def row(self, what: str, reference: str) -> Row:
        """A line of the table."""
        return {
            "Measured": what,
            "seconds": self.seconds,
            "Reference": reference,
            "its seconds": self.reference,
            "times faster": self.times,
            "largest score, nats": float(self.theirs.abs().max()),
            "largest difference": f"{self.difference:.1e}",
        }


def main(argv: Sequence[str]) -> None:
    """Measure what `argv` asks for and show it."""
    parser = command_line("importance", "How fast heads and layers are scored, and whether their scores are those of full forward passes.")
    parser.add_argument("--samples", type=count, default=4, help="calibration samples (4)")
    options = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    with TemporaryDirectory() as folder, Stopwatch() as watch:
        samples = load_samples(options.seed, Path(folder))
        figures, rows = measured(load_subject(options.backbone, catalogue_of(samples), options.seed), samples, options.samples, options.seed)
    publish("importance", figures, options, argv, watch.seconds, rows, over_sft=None)


def measured(subject: Subject, samples: Samples, number: int, seed: int) -> tuple[list[Figure], list[Row]]:
    """Head scores under both softmaxes and the search for layers, each beside its reference; `number` calibration samples."""
    model, prompts, sizes = subject.model, subject.prompts, Sizes.of(subject.model)
    rows = SampleRows(prompts, samples.train)
    examples = [rows[row] for row in choose_rows(len(rows), number, seed).tolist()]
    batches = [collate(few, prompts.pad_id) for few in micro_batches(examples, CALIBRATION_TOKENS)]
    some, every = range(0, sizes.layers, APART), range(sizes.layers)
    full, whole = softmax_of("vocabulary", prompts.trie, sizes.vocab), softmax_of("catalogue", prompts.trie, sizes.vocab)
    head_importance(model, batches[:1], full, progress=lambda layers: [])  # what is done once is done

    with held() as peak, Stopwatch() as watch:
        ours = head_importance(model, batches, full, progress=_bar("heads", sizes.layers))
    with held() as reference_peak, _passes(sizes.layers * sizes.heads * len(batches)) as passes, Stopwatch() as reference:
        theirs = head_scores(model, batches, every, progress=passes.update)
    batched = Compared(watch.seconds, reference.seconds, ours, theirs)

    singles = [collate([example], prompts.pad_id) for example in examples]
    with _passes(len(some) * sizes.heads * len(singles)) as passes, Stopwatch() as reference:
        theirs = head_scores(model, singles, some, progress=passes.update)
    single = Compared(watch.seconds, reference.seconds * sizes.layers / len(some), ours[some], theirs)

    with Stopwatch() as watch:
        ours = head_importance(model, batches, whole, progress=_bar("heads", sizes.layers))
    closed = [closed_tokens(batch, prompts.trie, sizes.vocab) for batch in batches]
    with _passes(len(some) * sizes.heads * len(batches)) as passes, Stopwatch() as reference:
        theirs = head_scores(model, batches, some, closed, passes.update)
    catalogue = Compared(watch.seconds, reference.seconds * sizes.layers / len(some), ours[some], theirs)

    rounds = min(ROUNDS, sizes.layers - 1)
    with Stopwatch() as watch:
        found = layer_order(model, batches, full, sizes.layers - rounds, progress=_bar("layers", rounds)).rounds
    with _passes(sum(range(sizes.layers - rounds + 1, sizes.layers + 1))) as passes, Stopwatch() as reference:
        expected = layer_rounds(model, batches, rounds, passes.update)
    layers = Compared(watch.seconds, reference.seconds, *(_values(nll) for nll in (found, expected)))

    difference = max(compared.difference for compared in (batched, single, catalogue, layers))
    figures = [
        Figure("speedup", "head scores: times faster than a full forward pass a head over batched samples", batched.times, least=2),
        Figure("speedup_single", "head scores: times faster than a full forward pass a head and sample", single.times, least=4),
        Figure("catalogue_speedup", "head scores, catalogue softmax: times faster than batched", catalogue.times, least=2),
        Figure("layer_speedup", f"greedy layer search, {rounds} rounds: times faster than a full forward pass a layer", layers.times, least=1.7),
        Figure("memory_ratio", "head scores: peak memory, as a share of the batched reference's", peak.bytes / max(reference_peak.bytes, 1)),
        Figure("peak_memory_mib", "head scores: peak memory above what the model takes, MiB", peak.bytes / MEBIBYTE, "{:,.0f}"),
        Figure("max_abs_difference", "largest difference of any score, nats", difference, "{:.1e}", most=DIFFERENCE),
        Figure("samples", "calibration samples", len(examples), "{:.0f}"),
        Figure("tokens", "their tokens", sum(len(example.ids) for example in examples), "{:,.0f}"),
    ]
    table = [
        batched.row("head scores, vocabulary", "a pass a head, batched"),
        single.row("head scores, vocabulary", "a pass a head and sample"),
        catalogue.row("head scores, catalogue", "a pass a head, batched"),
        layers.row(f"layer search, {rounds} rounds", "a pass a layer, batched"),
    ]
    return figures, table


def _values(rounds: Sequence[dict[int, float]]) -> Tensor:
    """What all rounds measured, layer by layer."""
    return torch.tensor([value for nll in rounds for value in nll.values()], dtype=torch.float64)


def _bar(what: str, total: int) -> Progress:
    return partial(tqdm, desc=what, total=total, unit="step", leave=False)


def _passes(total: int) -> tqdm:
    return tqdm(desc="reference", total=total, unit="pass", leave=False)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), "the same command starts again"))
