"""What a tokenizer can make of titles that a prefix tree cannot hold: answers that are empty, too long, equal, or the beginning of another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from recbole_prunerec.validation.sentences import listed, short


def answer_problems(titles: Sequence[str], answers: Sequence[np.ndarray], closing: Sequence[int], longest: int | None) -> list[str]:
    """What is wrong with the `answers` of distinct `titles`: a line for each kind, with the number of titles and examples.

    `closing` are the token ids of an answer without a title, `longest` the most tokens that an answer may have. Sorting brings what begins with an
    answer right behind it, so neighbours tell all.
    """
    lengths = np.array([len(answer) for answer in answers])
    long = [] if longest is None else np.flatnonzero(lengths > longest).tolist()
    empty = [place for place in np.flatnonzero(lengths == len(closing)).tolist() if answers[place].tolist() == list(closing)]
    keys = [np.asarray(answer, np.int64).tobytes() for answer in answers]  # begins with another's where the ids do
    order = sorted(range(len(keys)), key=keys.__getitem__)
    nested = [(first, second) for first, second in pairwise(order) if keys[second].startswith(keys[first])]
    equal = [pair for pair in nested if keys[pair[0]] == keys[pair[1]]]
    begun = [pair for pair in nested if keys[pair[0]] != keys[pair[1]]]
    tokens = "in this backbone's tokens"
    kinds = (
        (
            [short(titles[place]) for place in empty],
            f"titles are nothing {tokens}",
            "change them in the .item file, or choose another backbone",
        ),
        (
            [f"{short(titles[place])} ({lengths[place]})" for place in long],
            f"titles have more than max_title_tokens={longest} tokens",
            "shorten them in the .item file, or raise max_title_tokens",
        ),
        (
            [f"{short(titles[first])} and {short(titles[second])}" for first, second in equal],
            f"titles equal another {tokens}",
            "write them alike or tell them apart in the .item file, or choose another backbone",
        ),
        (
            [f"{short(titles[first])} of {short(titles[second])}" for first, second in begun],
            f"titles, with their closing quote, are the beginning of another {tokens}",
            "change them in the .item file, or choose another template or backbone",
        ),
    )
    return [f"{len(found)} {what}, for example {listed(found)}; {todo}" for found, what, todo in kinds if found]
