"""Plain references for searches over titles: every prefix scored by a forward pass without a cache, lists of Python, one user at a time."""

from collections.abc import Sequence

import numpy as np
import torch

Prefix = tuple[int, ...]


def catalogue(count: int = 60, seed: int = 0) -> list[Prefix]:
    """Distinct titles of 1..6 tokens from few tokens, so that prefixes are shared; none is a prefix of another."""
    generator = np.random.default_rng(seed)
    titles: list[Prefix] = []
    while len(titles) < count:
        new = tuple(generator.integers(1, 9, generator.choice([1, 2, 3, 4, 5, 6], p=[0.01, 0.04, 0.2, 0.25, 0.25, 0.25])).tolist())
        if not any(new[: len(old)] == old[: len(new)] for old in titles):
            titles.append(new)
    return titles


def prompts(count: int = 5, low: int = 3, high: int = 15, seed: int = 1) -> list[np.ndarray]:
    """Random prompts of `low` to `high` - 1 tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 97, generator.integers(low, high)).astype(np.int32) for _ in range(count)]


def sharp(model):
    """`model` with its logits spread, so that a few tokens take most of the probability and narrow searches miss the best titles."""
    with torch.no_grad():
        model.model.norm.weight.mul_(3)
    return model


@torch.no_grad()
def prefix_scores(
    model,
    titles: Sequence[Prefix],
    prompt: np.ndarray,
    softmax: str = "vocabulary",
    probabilities: Sequence[float] | None = None,
    weight: float = 0,
) -> dict[Prefix, float]:
    """The score of every prefix of every title, the empty one's being 0. `probabilities` and `weight` are those of D3's assistant."""
    scores: dict[Prefix, float] = {(): 0.0}
    prefixes = {title[:length] for title in titles for length in range(len(title) + 1)}

    def mass(prefix: Prefix) -> float:
        return sum(p for title, p in zip(titles, probabilities, strict=True) if title[: len(prefix)] == prefix)

    for length in range(max(map(len, titles))):
        those = sorted({prefix[:-1] for prefix in prefixes if len(prefix) == length + 1})
        logits = model(torch.tensor([[*prompt.tolist(), *prefix] for prefix in those])).logits[:, -1].float()
        for prefix, row in zip(those, logits, strict=True):
            children = sorted(child for child in prefixes if child[:-1] == prefix and child)
            tokens = torch.tensor([child[-1] for child in children])
            logp = row.log_softmax(-1)[tokens] if softmax == "vocabulary" else row[tokens].log_softmax(-1)
            for child, step in zip(children, logp.tolist(), strict=True):
                if probabilities is not None:
                    step = (1 - weight) * step + weight * float(np.log(mass(child) / mass(prefix)))
                scores[child] = scores[prefix] + step
    return scores


def best_titles(titles: Sequence[Prefix], scores: dict[Prefix, float]) -> tuple[list[int], list[float]]:
    """All titles, best first, ties by index, and their scores: brute force."""
    order = sorted(range(len(titles)), key=lambda title: (-scores[titles[title]], title))
    return order, [scores[titles[title]] for title in order]


def plain_beam_search(titles: Sequence[Prefix], scores: dict[Prefix, float], beams: int, settled: bool = False) -> tuple[list[int], list[float]]:
    """Beam search by Hugging Face's rule; no prefix is dropped early, which must make no difference. Titles and scores, best first.

    Where `settled`, a title ends as soon as no other shares its prefix.
    """
    prefixes = {title[:length] for title in titles for length in range(len(title) + 1)}
    below = {prefix: [index for index, title in enumerate(titles) if title[: len(prefix)] == prefix] for prefix in prefixes}
    live: list[Prefix] = [()]
    done: list[tuple[float, int]] = []
    while live:
        # Python's sort is stable: ties go to the better parent, then the lower token
        candidates = [child for prefix in live for child in sorted(prefixes) if child and child[:-1] == prefix]
        candidates.sort(key=lambda prefix: -scores[prefix])
        ends = {prefix: prefix in titles or (settled and len(below[prefix]) == 1) for prefix in candidates}
        done += [(-scores[prefix], below[prefix][0]) for prefix in candidates[:beams] if ends[prefix]]
        live = [prefix for prefix in candidates if not ends[prefix]][:beams]
    done = sorted(done)[:beams]
    return [title for _, title in done], [-score for score, _ in done]
