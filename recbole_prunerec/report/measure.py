"""Ranked evaluation without RecBole: what ranking test rows with a language model gives and costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from recbole_prunerec.data.samples import Part
from recbole_prunerec.distributed import alone
from recbole_prunerec.ranking.grounding import Grounding
from recbole_prunerec.ranking.recommender import Recommender
from recbole_prunerec.report.cost import PeakMemory, Stopwatch, count_flops
from recbole_prunerec.report.ranks import Ranks, means
from recbole_prunerec.report.results import Measured
from recbole_prunerec.text.catalogue import Catalogue

FLOPS_USERS = 16  # users whose ranking is counted
BLOCK, PLACES = 1024, 2**24  # users whose order of all items is held at once, and places in those, unless a few users have more


def measure(
    recommender: Recommender | Grounding, catalogue: Catalogue, test: Part, rows: np.ndarray, topk: Sequence[int], exclude_seen: bool = False
) -> tuple[Measured, Ranks]:
    """HR and NDCG at `topk` over the samples `rows` of `test`, what a user costs, and the rank of every row's target."""
    device = recommender.model.device
    ranks, block_size = np.empty(len(rows), dtype=np.int64), min(BLOCK, max(FLOPS_USERS, PLACES // len(catalogue)))
    with PeakMemory(device) as peak, Stopwatch(device) as watch:
        for start in range(0, len(rows), block_size):
            block = rows[start : start + block_size]
            order = recommender.order([test.history(row).tolist() for row in block], exclude_seen=exclude_seen)
            ranks[start : start + len(block)] = 1 + (order == test.targets[block, None]).argmax(1)
    note = recommender.note
    few = [test.history(row).tolist() for row in rows[:FLOPS_USERS]]
    with torch.no_grad(), alone():
        flops = count_flops(lambda: recommender.order(few, exclude_seen=exclude_seen))
    kept = Ranks(rows, test.users[rows].astype(str), np.array(catalogue.tokens)[test.targets[rows]], ranks)
    measured = Measured(
        test_rows=len(rows),
        metrics=means(kept, topk),
        flops_per_user=flops / len(few),
        seconds_per_user=watch.seconds / len(rows),
        peak_memory_bytes=peak.bytes,
        note=note,
    )
    return measured, kept
