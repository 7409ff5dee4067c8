"""Which key/value heads should stay? The four policies at equal parameters, each after restoration. `python benchmarks/kv_policies.py --help`

docs/benchmarks.md says what is measured and how, and has the tables, which `--write` makes anew together with results/kv_policies.json.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from material import catalogue_of, load_samples
from reporting import Figure, Row, command_line, count, publish
from transformers.utils import logging as transformers_logging

from recbole_prunerec import pipeline
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import load_backbone
from recbole_prunerec.data.samples import Samples
from recbole_prunerec.estimate import sizes_by_step
from recbole_prunerec.exits import guarded
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.prune.shapes import KvPolicy
from recbole_prunerec.report.cost import Stopwatch
from recbole_prunerec.report.ranks import Ranks, align, hit, ndcg, paired_interval, retention
from recbole_prunerec.settings import Depth, Finetune, Mlp, Settings, Step, Vocabulary, Width
from recbole_prunerec.shipped import properties

POLICIES: tuple[KvPolicy, ...] = ("group", "expand", "balanced", "merge")
USUAL = POLICIES[0]  # what the others are compared with
TOPK = (10, 20)
COMMON = ["--test_rows=1000", "--step_test_rows=16", "--show_progress=false"]
# SmolLM2's recipe in as many minutes as two cores have; what training_rows keeps is packed.
BRIEF = [
    "--softmax=catalogue", "--epochs=1", "--training_rows=6000", "--train_batch_size=16", "--valid_rows=128", "--calibration_samples=8",
    "--restore.epochs=2",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a policy left of one teacher: its ranks and the teacher's, and the sizes and settings that led there."""

    ranks: Ranks
    teacher: Ranks
    sizes: Sizes
    intermediate: int


def main(argv: Sequence[str]) -> None:
    """Measure what `argv` asks for and show it."""
    parser = command_line("kv_policies", "The four key/value policies at equal parameters, restored: on tiny, and on a backbone.")
    parser.add_argument("--seeds", type=count, default=2, help="teachers of the backbone tiny, from --seed on (2); a backbone beside it has one")
    parser.add_argument("--folder", type=Path, default=Path("saved/kv_policies"), help="of the runs, where the same command goes on (%(default)s)")
    options = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    rows: list[Row] = []
    figures: list[Figure] = []
    with Stopwatch() as watch:
        for name, label, seeds in [
            ("tiny", "tiny", options.seeds),
            *([(options.backbone, Path(options.backbone).name, 1)] if options.backbone else []),
        ]:
            found = [_of_teacher(name, options.seed + number, options.folder / f"{label}-{options.seed + number}") for number in range(seeds)]
            more, figure = _table(label, found)
            rows += more
            figures += figure
    publish("kv_policies", figures, options, argv, watch.seconds, rows)


def _of_teacher(name: str, seed: int, folder: Path) -> dict[KvPolicy, Outcome]:
    """One teacher, and what every policy leaves of it. The validation part is ranked: the presets' policy follows from this."""
    arguments = [*COMMON, f"--seed={seed}", f"--preset={'tiny' if name == 'tiny' else 'smollm2'}", f"--backbone={name}"]
    settings = load_arguments([*arguments, *([] if name == "tiny" else BRIEF)]).settings
    samples = _validated(load_samples(seed, folder), settings)
    loaded = load_backbone(name, properties("backbone", "tiny"), catalogue_of(samples).distinct, seed)
    first = [step for step in settings.steps if isinstance(step, Vocabulary | Finetune)]
    pipeline.run(loaded.model, loaded.tokenizer, samples, _with(settings, first), folder / "teacher", folder / "cache")
    path = folder / "teacher" / f"{len(first)}-finetune"
    theirs = Ranks.read(folder / "teacher" / "ranks" / f"{len(first)}-finetune.csv")
    teacher = load_backbone(str(path), {}, (), seed)
    sizes, shape = Sizes.of(teacher.model), Shape.of_config(teacher.model.config.to_dict())
    outcomes: dict[KvPolicy, Outcome] = {}
    for policy in POLICIES:
        steps = equal_steps(settings.steps[len(first) :], policy, sizes, shape)
        records = pipeline.run(teacher.model, teacher.tokenizer, samples, _with(settings, steps), folder / policy, folder / "cache")
        ranks = Ranks.read(folder / policy / "ranks" / f"{len(steps)}-depth.csv")
        outcomes[policy] = Outcome(ranks, theirs, records[-1].sizes, steps[1].intermediate)
    return outcomes


def _validated(samples: Samples, settings: Settings) -> Samples:
    """Samples whose test part is the validation part, and whose training part has the rows that the settings ask for."""
    return replace(samples, train=samples.train.take(np.arange(len(samples.train))[: settings.training_rows]), test=samples.valid)


def _with(settings: Settings, steps: Sequence[Step]) -> Settings:
    return settings.model_copy(update={"steps": tuple(steps)})


def equal_steps(steps: Sequence[Step], policy: KvPolicy, sizes: Sizes, shape: Shape) -> tuple[Width, Mlp, Depth]:
    """Width, MLP and depth with this policy, and with the intermediate size at which the final model is nearest to what `steps` as they are leave."""
    width, mlp, depth = steps
    if not (isinstance(width, Width) and isinstance(mlp, Mlp) and isinstance(depth, Depth)):
        raise ValueError(f"expected width, mlp and depth, got {[step.do for step in steps]}")
    usual = sizes_by_step([width, mlp, depth], sizes, shape)[-1]
    shared = width.heads * shape.kv_heads // shape.heads if policy == "merge" else None
    width = width.model_copy(update={"kv_policy": policy, "kv_heads": shared})
    after = sizes_by_step([width, mlp, depth], sizes, shape)[-1]
    a_dimension = 3 * after.hidden * after.layers
    spare = round((usual.non_embedding_parameters - after.non_embedding_parameters) / a_dimension)
    return width, mlp.model_copy(update={"intermediate": mlp.intermediate + spare}), depth


def _table(label: str, found: Sequence[dict[KvPolicy, Outcome]]) -> tuple[list[Row], list[Figure]]:
    """A line for each policy over all teachers, and how far apart the policies are."""
    rows: list[Row] = []
    quality = {policy: float(np.mean([ndcg(outcomes[policy].ranks.ranks, 10).mean() for outcomes in found])) for policy in POLICIES}
    usual_size = found[0][USUAL].sizes.non_embedding_parameters
    for policy in POLICIES:
        outcomes = [each[policy] for each in found]
        sizes, kept = outcomes[0].sizes, [retention(outcome.ranks, outcome.teacher, TOPK) or 0.0 for outcome in outcomes]
        rows.append(
            {
                "Backbone": label,
                "Policy": policy,
                "heads/KV heads": f"{sizes.heads}/{sizes.kv_heads}",
                "intermediate": outcomes[0].intermediate,
                "parameters, times group's": f"{sizes.non_embedding_parameters / usual_size:.4f}",
                "NDCG@10": f"{quality[policy]:.4f}",
                "HR@10": f"{np.mean([hit(outcome.ranks.ranks, 10).mean() for outcome in outcomes]):.4f}",
                "retention": f"{np.mean(kept):.1%}",
                "NDCG@10 minus group's": "" if policy == USUAL else _difference([(each[policy].ranks, each[USUAL].ranks) for each in found]),
            }
        )
    teacher = float(np.mean([ndcg(outcomes[USUAL].teacher.ranks, 10).mean() for outcomes in found]))
    name = label.split("-")[0].lower()
    return rows, [
        Figure(f"{name}_teacher", f"{label}: the teacher's NDCG@10 on validation rows", teacher, "{:.4f}"),
        Figure(f"{name}_spread", f"{label}: best policy's NDCG@10 minus the worst's", max(quality.values()) - min(quality.values()), "{:.4f}"),
        Figure(f"{name}_behind", f"{label}: best policy's NDCG@10 minus that of {USUAL}", max(quality.values()) - quality[USUAL], "{:.4f}"),
    ]


def _difference(pairs: Sequence[tuple[Ranks, Ranks]]) -> str:
    """Of the first's NDCG@10 from the second's, over the rows of all pairs, with its interval."""
    aligned = [align(*pair) for pair in pairs]
    ours, theirs = (np.concatenate([ndcg(pair[side].ranks, 10) for pair in aligned]) for side in (0, 1))
    mean, low, high = paired_interval(ours, theirs, np.concatenate([pair[0].users for pair in aligned]))
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sys.exit(guarded(lambda: main(sys.argv[1:]), "the same command goes on where it was cut"))
