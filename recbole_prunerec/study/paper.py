"""`python baselines/paper.py`: the paper's tables and figures by name, as CSV, pictures and in TensorBoard (METHOD 10)."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from recbole_prunerec.backbone.family import family_of
from recbole_prunerec.errors import UserError
from recbole_prunerec.report.plots import image
from recbole_prunerec.report.ranks import retention
from recbole_prunerec.report.results import Results
from recbole_prunerec.report.tables import heading, smoke
from recbole_prunerec.storage import read_json, write_bytes, write_text
from recbole_prunerec.study.activations import carried, input_norms, magnitudes, mask_weights
from recbole_prunerec.study.command import Question, with_teacher
from recbole_prunerec.study.drawn import Record, bars, lines, stages
from recbole_prunerec.study.gathered import gather
from recbole_prunerec.study.runs import RESULTS
from recbole_prunerec.study.subject import Subject
from recbole_prunerec.study.systems import REFERENCE, SYSTEMS, TEACHER
from recbole_prunerec.study.variants import Ablation, ablations
from recbole_prunerec.study.written import as_csv

PERCENTS = tuple(range(5, 101, 5))
MASKED = (0.1, 0.2, 0.3, 0.4, 0.5)  # shares of weights
MARKED = (10, 50)  # percent of the dimensions, in figures 2 and 3


class Drawn(NamedTuple):
    """What a figure is made of."""

    records: Sequence[Record]
    figure: Figure | None = None


def table1(paper: Subject) -> Drawn:
    """The dataset."""
    return Drawn([paper.data.dataset.statistics(paper.data.samples)])


def fig1a(paper: Subject) -> Drawn:
    """Share of the absolute MLP activation that the top K % of dimensions carry, per layer, before and after fine-tuning."""
    records = []
    for name, model in (("before", paper.backbone), ("after", paper.teacher)):
        shares = carried(magnitudes(model, paper.batches, family_of(model.config).down), PERCENTS)
        for layer, row in enumerate(shares.tolist()):
            records += [
                {"dimensions, %": k, "share of |activation|": share, "layer": layer, "fine-tuning": name, "line": f"layer {layer}, {name}"}
                for k, share in zip(PERCENTS, row, strict=True)
            ]
    ends = {0, paper.sizes.layers - 1}
    drawn = [record for record in records if record["layer"] in ends]
    return Drawn(records, lines("MLP activations, first and last layer", "dimensions, %", "share of |activation|", drawn, "line"))


def fig1b(paper: Subject) -> Drawn:
    """Retention after masking weights, by unstructured WANDA or at random, without restoration."""
    whole, norms, records = paper.ranks(paper.teacher), input_norms(paper.teacher, paper.batches), []
    for name in ("WANDA", "random"):
        for share in (0.0, *MASKED):
            model = copy.deepcopy(paper.teacher)
            mask_weights(model, norms if name == "WANDA" else None, share, paper.settings.seed)
            kept = retention(paper.ranks(model), whole, paper.settings.topk)
            if kept is None:
                raise UserError("the fine-tuned model hits nothing on these rows, so that nothing can be retained; rank more (--step_test_rows)")
            records.append({"masked weights, %": 100 * share, "retention": kept, "by": name})
    return Drawn(records, lines("Masked weights, unrestored", "masked weights, %", "retention", records, "by"))


def _sorted(paper: Subject, part: str, title: str) -> Drawn:
    """Sorted mean activations at the first, middle and last layer."""
    values = magnitudes(paper.teacher, paper.batches, part)
    layers = dict.fromkeys((0, paper.sizes.layers // 2, paper.sizes.layers - 1))
    records = [
        {"dimension, by rank": rank, "mean |activation|": value, "layer": f"layer {layer}"}
        for layer in layers
        for rank, value in enumerate(values[layer].sort(descending=True).values.tolist(), 1)
    ]
    marks = {f"top {percent} %": max(1, round(percent * values.shape[1] / 100)) for percent in MARKED}
    return Drawn(records, lines(title, "dimension, by rank", "mean |activation|", records, "layer", marks, marker=False))


def fig2(paper: Subject) -> Drawn:
    """Attention outputs."""
    return _sorted(paper, family_of(paper.teacher.config).o, "Attention outputs")


def fig3(paper: Subject) -> Drawn:
    """MLP intermediates."""
    return _sorted(paper, family_of(paper.teacher.config).down, "MLP intermediates")


def fig4(paper: Subject) -> Drawn:
    """Metrics and parameters after every step of the first seed's run, all on the same test rows."""
    run = next(run for run in paper.runs({REFERENCE: SYSTEMS[REFERENCE]}) if run.system == REFERENCE)
    results = read_json(Path(str(run.folder)) / RESULTS, Results)
    rows = [row for row in results.rows if row.step is not None and row.restored is not False]
    names = [heading(metric) for metric in rows[0].metrics]
    records = [
        {"step": row.step_name, "test rows": row.test_rows, **dict(zip(names, row.metrics.values(), strict=True))}
        | {"retention": row.retention, "non-embedding parameters": row.parameters.non_embedding, "all parameters": row.parameters.total}
        for row in rows
    ]
    fewer = " (fewer test rows between)" if len({row.test_rows for row in rows}) > 1 else ""
    return Drawn(records, stages(f"After every step{fewer}", records, names))


def _ablation(name: str) -> Callable[[Subject], Drawn]:
    def drawn(paper: Subject) -> Drawn:
        ablation: Ablation = ablations(paper.sizes)[name]
        systems = ablation.systems()
        study = gather(paper.runs(systems), {**with_teacher(systems)}, paper.typed, ablation.reference)
        records: list[dict[str, Any]] = []
        for line in study.lines:
            if line.system in systems and line.parameters:
                way = line.system.removesuffix("-unrestored")
                metrics = {heading(metric): value.mean for metric, value in line.metrics.items()}
                restoration = "unrestored" if line.group == "unrestored" else "restored"
                about = {ablation.label: way, "restoration": restoration, **metrics, "deviation": line.metrics[paper.metric].deviation}
                kept = line.retention.mean if line.retention else None
                records.append({**about, "retention": kept, "non-embedding parameters": line.parameters.non_embedding, "note": line.note})
        teacher = next(line for line in study.lines if line.system == TEACHER)
        level = ("fine-tuned, not pruned", teacher.metrics[paper.metric].mean)
        return Drawn(records, bars(f"The {ablation.step} step alone", ablation.label, paper.metric, records, level))

    return drawn


FIGURES: dict[str, Callable[[Subject], Drawn]] = {
    "table1": table1,
    "fig1a": fig1a,
    "fig1b": fig1b,
    "fig2": fig2,
    "fig3": fig3,
    "fig4": fig4,
    **{name: _ablation(name) for name in ("table3", "fig5a", "fig5b", "fig5c")},
}


def draw(names: Sequence[str], question: Question, script: Path, argv: Sequence[str]) -> str:
    """Make the tables and figures called `names`. Returns what is printed."""
    paper, said = Subject(question, script, shlex.join(["python", "baselines/paper.py", *argv])), []
    for name in names:
        drawn = FIGURES[name](paper)
        warning = smoke(paper.settings.preset) if paper.settings.worthless else None
        write_text(question.out / f"{name}.csv", as_csv(list(drawn.records[0]), drawn.records, warning))
        if drawn.figure is not None:
            if warning:
                drawn.figure.suptitle(warning, fontsize="small")
            for kind in ("png", "svg"):
                write_bytes(question.out / f"{name}.{kind}", image(drawn.figure, kind))
            with SummaryWriter(str(question.out / "tensorboard" / name)) as writer:
                writer.add_figure(f"paper/{name}", drawn.figure)
        said.append(f"{question.out / name}.csv{'' if drawn.figure is None else ', .png, .svg'}\n")
    return "".join(said)
