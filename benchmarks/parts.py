"""The parts of the benchmark of ranking, each a function from `Work` to figures."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np
from material import Subject, Work, cut, in_bfloat16, synthetic_answers
from measuring import BEAMS, ROUNDS, K, ModelClock, bar, held, search, timed
from reference import Generate, alike, title_scores
from reporting import MEBIBYTE, Figure

from recbole_prunerec.ranking.search import Found
from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.report.cost import Stopwatch

BATCHES = (1, 4, 16)  # users at once in the reference; the best counts
SPEED, SPEED_CUT, SAME, SAME_TRAINED, EXACT, MILLION = 16, 100, 40, 1000, 200, 8  # users
FEWER = 100  # times as many titles as this part has for comparison


def speed(work: Work) -> list[Figure]:
    """Seconds and memory a user against `generate`, and seconds against the floor, for every model."""
    subject, queries = work.large, work.queries(work.large, SPEED)
    search(subject, queries[:1])  # what is done once is done
    ours, memory = timed(subject, queries)
    taken, peaks = {}, {}
    reference = generate_of(subject)
    for batch_size in BATCHES:
        with bar("generate", len(queries)) as progress, held() as peak, Stopwatch() as watch:
            found = reference.rank_all(queries, BEAMS, batch_size, progress.update)
        taken[batch_size], peaks[batch_size] = watch.seconds / len(queries), peak.bytes
        work.generated |= dict(enumerate(found))
    work.batch_size = best = min(taken, key=taken.__getitem__)
    figures = [
        Figure("speedup", f"times faster than `generate` at its best batch size, {best}", taken[best] / ours.seconds, least=6),
        Figure("seconds_per_user", "seconds a user", ours.seconds),
        *(Figure(f"reference_seconds_per_user_{size}", f"seconds a user of `generate`, batch size {size}", taken[size]) for size in BATCHES),
        Figure("reference_seconds_per_user", "seconds a user of `generate`, best batch size", taken[best]),
        Figure("over_floor", "times the floor", ours.over_floor, most=1.5),
        Figure("prompt_tokens", "prompt tokens a user", ours.prompt_tokens, "{:.0f}"),
        Figure("expanded", "expanded prefixes a user", ours.expanded, "{:.0f}"),
        Figure("prefill_tokens_per_second", "tokens a second of a batched prefill, the floor's", ours.rate, "{:,.0f}"),
        Figure("peak_memory_ratio", "peak memory, as a share of `generate`'s", memory / peaks[best], most=1),
        Figure("peak_memory_mib", "peak memory above what the model takes, MiB", memory / MEBIBYTE, "{:,.0f}"),
        Figure("reference_peak_memory_mib", "that of `generate`, MiB", peaks[best] / MEBIBYTE, "{:,.0f}"),
    ]
    bf16 = in_bfloat16(subject)
    search(bf16, queries[:1])
    half, _ = timed(bf16, queries)
    figures += [
        Figure("bf16_seconds_per_user", "bfloat16: seconds a user", half.seconds),
        Figure("bf16_over_floor", "bfloat16: times its own floor", half.over_floor),
        Figure("bf16_shared_titles", "bfloat16: share of its titles that float32 finds, too", shared_titles(half.found, ours.found), "{:.1%}"),
    ]
    for key, small, users, most in (("cut", cut(subject, work.seed), SPEED_CUT, 0.04), ("trained", work.trained, SAME_TRAINED, None)):
        result, _ = timed(small, work.queries(small, users))
        figures += [
            Figure(f"{key}_seconds_per_user", f"{small.name}: seconds a user", result.seconds, most=most),
            Figure(f"{key}_over_floor", f"{small.name}: times its own floor", result.over_floor),
        ]
    return figures


def same(work: Work) -> list[Figure]:
    """The share of users whose twenty titles are those of `generate`, in its order."""
    figures = []
    for prefix, subject, users, batch_size in (("", work.large, SAME, work.batch_size), ("trained_", work.trained, SAME_TRAINED, BATCHES[-1])):
        queries = work.queries(subject, users)
        known = {} if prefix else work.generated
        rest = [user for user in range(len(queries)) if user not in known]
        with bar("generate", len(rest)) as progress:
            found = generate_of(subject).rank_all([queries[user] for user in rest], BEAMS, batch_size, progress.update)
        expected = known | dict(zip(rest, found, strict=True))
        ours = search(subject, queries).titles.tolist()
        equal = [agree(subject, queries[user], ours[user], expected[user]) for user in range(len(queries))]
        what = f"{subject.name}: share of {len(queries)} users with the same top 20 as `generate`"
        figures.append(Figure(f"{prefix}identical_top20", what, float(np.mean(equal)), "{:.1%}", least=1))
    return figures


def exact(work: Work) -> list[Figure]:
    """The exact search against the scores of all titles, with the trained model."""
    subject = work.trained
    queries, answers = work.queries(subject, EXACT), subject.prompts.answers
    ratios = []
    for _ in range(ROUNDS):
        with Stopwatch() as watch:
            beam = search(subject, queries)
        with Stopwatch() as longer:
            found = search(subject, queries, search="exact", budget=subject.prompts.trie.nodes)
        ratios.append(longer.seconds / watch.seconds)
    equal = []
    with bar("all titles", len(queries)) as progress:
        for user, prompt in enumerate(queries):
            scores = title_scores(subject.model, prompt, answers)
            best = scores.argsort(descending=True, stable=True)[:K].tolist()
            equal.append(alike(found.titles[user].tolist(), best, scores.tolist().__getitem__))
            progress.update()
    missed = [not agree(subject, *row) for row in zip(queries, beam.titles.tolist(), found.titles.tolist(), strict=True)]
    expanded = float(found.expanded.double().mean())
    return [
        Figure("exact_identical", f"exact: share of {len(queries)} users with brute force's top 20", float(np.mean(equal)), "{:.1%}", least=1),
        Figure("exact_proven", "exact: share of users whose list is proven", float(found.proven.double().mean()), "{:.1%}"),
        Figure("exact_expanded", "exact: expanded prefixes a user", expanded, "{:.0f}"),
        Figure("exact_expanded_share", "exact: expanded prefixes, as a share of all nodes", expanded / subject.prompts.trie.nodes, "{:.1%}"),
        Figure("exact_time_ratio", "exact: time, times that of beam search", median(ratios), most=2),
        Figure("beam_differs", "beam search: share of users whose top 20 is not the exact one", float(np.mean(missed)), "{:.1%}"),
        Figure("beam_shared_titles", "beam search: share of its titles that are in the exact top 20", shared_titles(beam, found), "{:.1%}"),
    ]


def million(work: Work) -> list[Figure]:
    """A catalogue of a million titles: making its prefix tree, keeping it, and searching it."""
    answers = synthetic_answers(work.large.prompts.tokenizer, work.titles, work.seed)
    with held() as peak, Stopwatch() as built:
        trie = Trie.build(answers)
    path = work.folder / "trie.safetensors"
    trie.save(path, {})
    with Stopwatch() as loaded:
        trie, _ = Trie.load(path)
    few = Trie.build(answers[: max(work.titles // FEWER, 1)])
    subject, queries = work.large, work.queries(work.large, MILLION)
    taken: dict[str, list[float]] = {"many": [], "few": []}
    for key, tree in (("few", few), ("many", trie)) * ROUNDS:
        with Stopwatch() as watch:
            search(subject, queries, trie=tree)
        taken[key].append(watch.seconds / len(queries))
    own = []
    for _ in range(ROUNDS):
        with ModelClock(subject.model) as clock:
            search(subject, queries, trie=trie)
        own.append(clock.own_share)
    many = median(taken["many"])
    return [
        Figure("million_titles", "titles of the large catalogue", trie.count, "{:,.0f}"),
        Figure("million_nodes", "nodes of its prefix tree", trie.nodes, "{:,.0f}"),
        Figure("million_build_seconds", "building it, seconds", built.seconds, most=60),
        Figure("million_build_peak_mib", "building it, peak memory beside the titles' tokens, MiB", peak.bytes / MEBIBYTE, "{:,.0f}", most=2048),
        Figure("million_file_mib", "its file, MiB", path.stat().st_size / MEBIBYTE, "{:,.1f}"),
        Figure("million_load_seconds", "loading it, mapped into memory, seconds", loaded.seconds),
        Figure("million_seconds_per_user", "searching it, seconds a user", many),
        Figure("million_time_ratio", f"times the seconds with {few.count:,} titles", many / median(taken["few"]), most=2),
        Figure("constraint_share", "share of a decoding step that is not the model's", median(own), "{:.1%}", most=0.02),
    ]


PARTS = {"speed": speed, "same": same, "exact": exact, "million": million}


def generate_of(subject: Subject) -> Generate:
    """The reference for a subject."""
    prompts = subject.prompts
    return Generate(subject.model, prompts.answers, prompts.terminators, prompts.pad_id)


def agree(subject: Subject, prompt: np.ndarray, found: Sequence[int], expected: Sequence[int]) -> bool:
    """`alike`, where the two lists' titles are scored by teacher forcing."""
    return alike(found, expected, lambda title: float(title_scores(subject.model, prompt, [subject.prompts.answers[title]])))


def shared_titles(one: Found, other: Found) -> float:
    """The share of each user's titles in `one` that are in `other`, too."""
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(one.titles.tolist(), other.titles.tolist(), strict=True)]))
