"""What `plan` answers: shapes that meet the budget, by the backbone's config or by a dataset's titles too, and tried out where that is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.files import folder_config
from recbole_prunerec.backbone.hub import hub_folder
from recbole_prunerec.data.samples import Samples
from recbole_prunerec.errors import UserError
from recbole_prunerec.estimate import count_tokens
from recbole_prunerec.planning.command import Question, size_problems
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.prune.search import Candidate, Space, parameters, unlike
from recbole_prunerec.prune.vocabulary import kept_tokens
from recbole_prunerec.report.proposed import BY_PROBE, BY_SHAPE, Facts, proposed
from recbole_prunerec.report.tables import heading
from recbole_prunerec.settings import Finetune, Step, Vocabulary
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.validation.preflight import check_attention, use_device

SHOWN, PROBED = 10, 4  # shapes, where no number is asked for
PROMPT, ANSWER = 100, 6  # tokens of ten titles, and of one, where no data tell

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A backbone, and what is known of its use."""

    question: Question
    backbone: Sizes
    shape: Shape
    kept: int | None  # tokens that a vocabulary step leaves; None: all
    vocabulary: str  # what is to be said of that
    tokens: int  # that ranking a user reads
    source: str  # of that number

    @property
    def budget(self) -> int:
        """In parameters."""
        return max(1, int(self.question.wanted.budget * parameters(self.backbone, self.question.wanted.count)))

    @property
    def space(self) -> Space:
        """Where shapes are looked for."""
        wanted = self.question.wanted
        return Space(replace(self.backbone, vocab=self.kept or self.backbone.vocab), self.shape.family, wanted.kv_policy, wanted.round_to)

    @property
    def before(self) -> tuple[Step, ...]:
        """The steps before anything is pruned."""
        trim: tuple[Step, ...] = (Vocabulary(do="vocabulary"),) if self.kept else ()
        return trim if self.question.settings.teacher else (*trim, Finetune(do="finetune"))


def proposal(question: Question) -> str:
    """The report for the screen. Raises `UserError` for what is wrong with backbone or data, or both together."""
    wanted, settings = question.wanted, question.settings
    if not question.titles:
        start = _without_titles(question)
        shapes, found = _chosen(start, wanted.shapes or SHOWN)
        return _report(start, shapes, found, BY_SHAPE)
    from recbole_prunerec.loading import load_data, load_prompts  # RecBole, too, takes seconds to import
    from recbole_prunerec.planning.probe import Probe
    from recbole_prunerec.quick_start import bring_data, start_log

    use_device(settings.device)
    check_attention(settings)
    start_log(None)
    bring_data(settings, question.yes)
    root = Path(settings.checkpoint_dir)
    data = load_data(settings, root, root / "cache")
    config, prompts = load_prompts(settings, data, None, weights=question.probe)
    start = _with_titles(question, config.to_dict(), prompts, data.samples)
    shapes, found = _chosen(start, wanted.shapes or (PROBED if question.probe else SHOWN))
    if not question.probe:
        return _report(start, shapes, found, BY_SHAPE)
    probe = Probe(settings, prompts, data.samples, start.before, [tuple(start.space.steps(shape.sizes)) for shape in shapes])
    cost = f"Probe: {probe.cost(start.backbone, start.shape, start.kept)}."
    if question.dry_run:
        return _report(start, shapes, found, f"{BY_SHAPE}\n{cost}\nA dry run: nothing was trained or written.")
    logger.info(cost)
    outcome = probe.run(question.fresh)
    ndcg, hit = (f"{metric}@{settings.topk[0]}" for metric in ("ndcg", "hit"))
    order = sorted(range(len(shapes)), key=lambda place: (-outcome.shapes[place][ndcg], place))
    text = BY_PROBE.format(
        metric=heading(ndcg),
        rows=probe.rows,
        epochs=settings.restore.epochs,
        teacher=f"{heading(ndcg)} {outcome.teacher[ndcg]:.4f}, {heading(hit)} {outcome.teacher[hit]:.4f}",
        folder=outcome.folder,
    )
    columns = {heading(metric): [outcome.shapes[place][metric] for place in order] for metric in (ndcg, hit)}
    return _report(start, [shapes[place] for place in order], found, text, [place + 1 for place in order], columns)


def _without_titles(question: Question) -> Start:
    """By the config alone."""
    config, wanted, beams = question.config, question.wanted, question.settings.ranking.beams
    if config is None:
        folder = hub_folder(question.name, question.key, weights=False, revision=question.settings.revision)
        config = _fitting(question, folder_config(question.got, folder, ()))
    sizes = Sizes.of_config(config, question.got)
    kept = None if wanted.vocab == sizes.vocab else wanted.vocab
    reckoned = f"{kept:,} of {sizes.vocab:,}" if kept else f"all {sizes.vocab:,}"
    vocabulary = f"tokens: {reckoned} are reckoned with; --dataset=... tells how many its titles need"
    source = f"reckoned as {PROMPT} for the prompt and {ANSWER} for each of {beams} beams; --dataset=... counts them"
    return Start(question, sizes, Shape.of_config(config), kept, vocabulary, PROMPT + ANSWER * beams, source)


def _with_titles(question: Question, config: Mapping[str, Any], prompts: Prompts, samples: Samples) -> Start:
    """By the titles of a dataset: the tokens that they need, and those that a user reads."""
    sizes = Sizes.of_config(_fitting(question, config), question.got)
    try:
        kept: int | None = len(kept_tokens(prompts))
        vocabulary = f"tokens: {kept:,} of {sizes.vocab:,} stay, which the titles of {question.settings.dataset} need"
    except UserError as reason:
        kept, vocabulary = None, f"tokens: all {sizes.vocab:,} stay: {reason}"
    tokens = count_tokens(question.settings, prompts, samples).user
    source = f"the mean of a prompt and {question.settings.ranking.beams} titles of {question.settings.dataset}"
    return Start(question, sizes, Shape.of_config(config), None if kept == sizes.vocab else kept, vocabulary, tokens, source)


def _fitting(question: Question, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config that could not be read before. Raises `UserError` where the options do not fit it."""
    problems = size_problems(question.wanted, config)
    if problems:
        raise UserError("\n".join(problems))
    return config


def _chosen(start: Start, most: int) -> tuple[list[Candidate], str]:
    """The best shapes that are unlike one another, or the nearest where none meets the budget, and what is to be said of it."""
    wanted, space = start.question.wanted, start.space
    found = space.within(start.budget, wanted.count)
    if found:
        return unlike(found, most), f"shapes that meet it: {len(found):,} (kv_policy={space.policy}, round_to={space.round_to})"
    nearest = space.smallest(start.budget, wanted.count)
    reason = f"shapes that meet it: none; the nearest has {parameters(nearest.sizes, wanted.count):,}"
    embedding = nearest.sizes.embedding_parameters if wanted.count == "total" else 0
    if embedding >= start.budget:
        reason += f"\nthe embedding of the smallest hidden size, {nearest.sizes.hidden}, takes {embedding:,} alone; "
        reason += f"{'' if start.kept else 'let tokens go, with --dataset=... or --vocab=..., or '}count non_embedding, or raise the budget"
    return [nearest], reason


def _report(
    start: Start,
    shapes: Sequence[Candidate],
    found: str,
    order: str,
    numbers: Sequence[int] | None = None,
    measured: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """The report on `shapes`, the best first; without `numbers` they count from 1."""
    question = start.question
    facts = Facts(
        key=question.key,
        name=question.name,
        backbone=start.backbone,
        vocabulary=start.vocabulary,
        budget=f"budget={question.wanted.budget:g}",
        counts=question.wanted.count,
        limit=start.budget,
        found=found,
        order=order,
        tokens=start.tokens,
        source=start.source,
        steps=[*start.before, *start.space.steps(shapes[0].sizes)],
        arguments={"model": "PruneRec", "backbone": question.settings.backbone, **question.given},
    )
    return proposed(facts, shapes, numbers or range(1, len(shapes) + 1), measured or {})
