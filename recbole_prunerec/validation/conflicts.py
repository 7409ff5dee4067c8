"""What no single key can tell: settings that do not fit together. Every problem starts with its key.

A check that looks at a key with a problem of its own meets `Broken` there and says nothing; the other checks go on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from recbole_prunerec.errors import Broken

if TYPE_CHECKING:
    from recbole_prunerec.settings import Pruning, Settings

# The criteria that read an option of how to score.
MEASURED_BY = {
    **dict.fromkeys(("recursion", "kl_positions", "greedy", "head_epsilon", "tau", "quantile", "search"), ("prunerec",)),
    "hidden_score": ("prunerec", "sparsegpt", "flap"),  # the last two leave hidden dimensions to the first
    "taylor": ("llm_pruner",),
}
MEASURING = {
    "width": ("recursion", "kl_positions", "greedy", "head_epsilon", "hidden_score", "taylor"),
    "mlp": ("tau", "quantile", "taylor"),
    "depth": ("search",),
}

# The searches that read an option of ranking.
READ_BY = {
    "beams": ("beam", "exact"),
    "length_penalty": ("beam",),
    "budget": ("exact",),
    "assistant": ("beam", "exact"),
    "assistant_weight": ("beam", "exact"),
    "popularity_weight": ("grounding",),
}


def conflicts(settings: Settings) -> list[str]:
    """What in `settings` does not fit together."""
    problems: list[str] = []
    for check in CHECKS:
        with suppress(Broken):
            if "PruneRec" in settings.model:  # the others read none of this
                problems += check(settings)
    with suppress(Broken):
        problems += _rules_read_recboles_form(settings)
    return problems


def _rules_read_recboles_form(settings: Settings) -> list[str]:
    """What tells of other files than rules can filter, and write again."""
    if settings.rules is None:
        return []
    given = {"encoding": settings.encoding, **settings.recbole}
    usual: dict[str, tuple[object, ...]] = {"encoding": ("utf-8", "utf8"), "field_separator": ("\t",), "benchmark_filename": ()}
    return [
        f"{key}={given[key]!r}, but rules filter a single file of interactions, in utf-8, with tabs; leave {key} out, or choose rules=null"
        for key, values in usual.items()
        if key in given and given[key] not in values
    ]


def _teacher_comes_first(settings: Settings) -> list[str]:
    if not settings.steps:
        return ["steps is empty; give at least {do: finetune}, or a teacher and one pruning step"]
    kinds = [step.do for step in settings.steps]
    places = [number for number, kind in enumerate(kinds, 1) if kind == "finetune"]
    first = next((number for number, kind in enumerate(kinds, 1) if kind != "vocabulary"), None)
    if settings.teacher is None and places != [first]:
        return [f"steps must have one finetune, before all pruning, got it at {places or 'no place'}; or name a --teacher=<folder>"]
    if settings.teacher is not None and places:
        return [f"steps.{places[0]} is finetune, but teacher={settings.teacher} is fine-tuned already; leave one of the two out"]
    return []


def _steps_fit(settings: Settings) -> list[str]:
    problems: list[str] = []
    for number, step in enumerate(settings.steps, 1):
        for check in STEP_CHECKS:
            with suppress(Broken):
                if step.do != "finetune" and step.do != "vocabulary":
                    problems += [f"steps.{number}.{problem}" for problem in check(step)]
    return problems


def _drawn_weights_are_trained(settings: Settings) -> list[str]:
    """Weights that are drawn anew and left so know nothing."""
    problems = []
    for number, step in enumerate(settings.steps, 1):
        with suppress(Broken):
            if step.do != "finetune" and step.do != "vocabulary":
                own, run = step.restore, settings.restore
                start, epochs = own.start or run.start, run.epochs if own.epochs is None else own.epochs  # type: ignore[attr-defined]
                if start == "random" and epochs == 0:
                    problems.append(
                        f"steps.{number}.restore.start=random with restore.epochs=0 leaves a model that knows nothing; give it epochs, or start=cut"
                    )
    return problems


def _vocabulary_stands_once(settings: Settings) -> list[str]:
    places = [number for number, step in enumerate(settings.steps, 1) if step.do == "vocabulary"]
    return [f"steps.{places[1]} is vocabulary, and so is steps.{places[0]}, after which no token is left to go; leave it out"] if places[1:] else []


def _criterion_reads_what_is_given(step: Pruning) -> list[str]:
    given = [key for key in MEASURING.get(step.do, ()) if step.criterion not in MEASURED_BY[key] and getattr(step, key) != step.default(key)]
    return [f"{key} is read by criterion={', '.join(MEASURED_BY[key])} alone, got criterion={step.criterion}; leave it out" for key in given]


def _greedy_fits_scope(step: Pruning) -> list[str]:
    if step.do == "width" and step.greedy and step.scope == "global":
        return ["greedy=true chooses heads layer by layer, got scope=global, which chooses for all at once; choose scope=layer or greedy=false"]
    return []


def _beams_cover_topk(settings: Settings) -> list[str]:
    beams, longest = settings.ranking.beams, max(settings.topk, default=0)
    if settings.ranking.search == "grounding":
        return []
    return [f"ranking.beams={beams} is smaller than topk={longest}; choose ranking.beams={longest} or more"] if longest > beams else []


def _packing_fits_template(settings: Settings) -> list[str]:
    if settings.packing and settings.template == "bigrec":
        return ["packing=true needs template=list or lines, got template=bigrec; choose packing=false"]
    return []


def _search_reads_what_is_given(settings: Settings) -> list[str]:
    """An option that a search does not read would otherwise change nothing, silently."""
    ranking, problems = settings.ranking, []
    for key, searches in READ_BY.items():
        with suppress(Broken):
            if ranking.search not in searches and getattr(ranking, key) != ranking.default(key):
                readers = " and ".join(f"search={search}" for search in searches)
                problems.append(f"ranking.{key} is read by {readers} alone, got search={ranking.search}; leave it out")
    return problems


def _weighed_assistant_is_there(settings: Settings) -> list[str]:
    ranking = settings.ranking
    weight, helps = ranking.assistant_weight, ranking.search in READ_BY["assistant"]
    if helps and ranking.assistant is None and weight != ranking.default("assistant_weight"):
        return [f"ranking.assistant_weight={weight} weighs an assistant, and there is none; name one, such as ranking.assistant=SASRec"]
    return []


def _grounding_writes_freely(settings: Settings) -> list[str]:
    if settings.ranking.search == "grounding" and settings.softmax == "catalogue":
        return ["ranking.search=grounding writes titles freely, which softmax=catalogue does not teach; choose softmax=vocabulary or another search"]
    return []


def _tutor_speaks_of_titles(settings: Settings) -> list[str]:
    if settings.tutor.model is not None and settings.softmax != "catalogue":
        return [f"tutor.model={settings.tutor.model} speaks of what goes on with some title; choose softmax=catalogue, or no tutor"]
    return []


def _restoration_has_a_tutor(settings: Settings) -> list[str]:
    weights = [settings.restore.tutor_weight, *(step.restore.tutor_weight for step in settings.steps if hasattr(step, "restore"))]
    if settings.tutor.model is None and (weight := max(filter(None, weights), default=0)):
        return [f"restore.tutor_weight={weight} weighs a tutor, and there is none; name one, such as tutor.model=SASRec, with softmax=catalogue"]
    return []


def _chunkings_are_of_chunks(settings: Settings) -> list[str]:
    own = [step.restore for step in settings.steps if step.do != "finetune" and step.do != "vocabulary"]
    if own and not settings.packing and any(restore.chunkings for restore in (settings.restore, *own)):
        return ["restore.chunkings cuts histories into chunks, which packing=false does not; leave it out"]
    return []


def _flash_attention_has_its_precision(settings: Settings) -> list[str]:
    if settings.attn_implementation == "flash_attention_2" and settings.precision == "float32":
        return ["attn_implementation=flash_attention_2 knows no float32, got precision=float32; choose precision=bfloat16, or sdpa"]
    return []


def _flash_attention_has_a_gpu(settings: Settings) -> list[str]:
    if settings.attn_implementation == "flash_attention_2" and settings.device == "cpu":
        return ["attn_implementation=flash_attention_2 needs a GPU, got device=cpu; choose sdpa"]
    return []


CHECKS = (
    _teacher_comes_first,
    _vocabulary_stands_once,
    _drawn_weights_are_trained,
    _steps_fit,
    _beams_cover_topk,
    _packing_fits_template,
    _search_reads_what_is_given,
    _weighed_assistant_is_there,
    _grounding_writes_freely,
    _tutor_speaks_of_titles,
    _restoration_has_a_tutor,
    _chunkings_are_of_chunks,
    _flash_attention_has_its_precision,
    _flash_attention_has_a_gpu,
)
STEP_CHECKS = (_criterion_reads_what_is_given, _greedy_fits_scope)
