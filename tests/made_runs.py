"""Finished runs made by hand, for what is done with them: a few test rows of three users."""

from pathlib import Path

import numpy as np

from recbole_prunerec.report.ranks import Ranks, means
from recbole_prunerec.report.results import Parameters, Results, Row
from recbole_prunerec.storage import write_json, write_text
from recbole_prunerec.study.runs import Run

USERS = ("a", "a", "b", "b", "c", "c")
TOPK = (1, 2)


def made_run(root: Path, system: str, seed: int, ranks, *, name: str | None = None, shown: str | None = None, **row) -> Run:
    """A run whose table has one row, with `ranks` of its six test rows under `name`. `row` are further values of the row."""
    folder = root / f"{system}-{seed}"
    kept = Ranks(np.arange(6) + 10 * seed, np.array(USERS), np.array([f"i{place}" for place in range(6)]), np.array(ranks))
    values = {"seconds_per_user": 0.001, "peak_memory_bytes": 2**20, "parameters": Parameters(non_embedding=10, total=30), "flops_per_user": 5e6}
    line = Row(system=shown or system, test_rows=6, metrics=means(kept, TOPK), **{**values, **row})
    protocol = {"topk": list(TOPK), "valid_metric": "NDCG@2", "split": "global_time", "softmax": system}
    facts = {"name": "made", "users": 3, "items": 9}
    results = Results(
        rows=(line,), dataset=facts, protocol=protocol, versions={"torch": "2"}, device="a CPU", command="python x", seed=seed, preset="tiny"
    )
    write_json(folder / "results.json", results)
    write_text(folder / "ranks" / f"{name or system}.csv", kept.to_csv())
    return Run(system=system, seed=seed, command=f"python run_recbole.py --seed={seed}", folder=str(folder))
