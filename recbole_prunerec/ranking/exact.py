"""The provably best titles: best-first search over the prefix tree.

A prefix's score bounds the scores of all titles below it, so a prefix that scores below the k-th title found need never be expanded; when no other is
left, the list is proven.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_prunerec.ranking.expand import INDEX, NONE, Expansion, Rows, index_of, key_of, score_of


def exact_search(search: Expansion, width: int, k: int, budget: int) -> tuple[Tensor, Tensor]:
    """Keys (user, k) of the best titles, and whether each user's list is proven, (user,).

    The best `width` unexpanded prefixes of every user are expanded at once, until none could still lead into the list, or `budget` prefixes have
    been expanded; the list then holds the best of what was found.
    """
    found = torch.full((search.users, k), NONE, device=search.device)
    waiting = torch.empty(search.users, 0, dtype=torch.int64, device=search.device)  # keys of unexpanded prefixes, by score and node
    parents = waiting.clone()  # and the slots of their parents
    rows: Rows | None = search.root()
    while rows is not None:
        children = search.children(rows)
        ended = children.best(k, children.ends)
        found = search.merge(found, ended, children.at(ended)[0])
        going = children.best(budget + 1, ~children.ends)
        node, parent, _ = children.at(going)
        waiting = torch.cat([waiting, key_of(score_of(going), node)], 1)
        parents = torch.cat([parents, parent], 1)
        waiting = torch.where(waiting <= found[:, -1:] | INDEX, waiting, NONE)
        # More than the budget could never be expanded; one more, so that a list is not taken for proven.
        waiting, order = waiting.topk(min(budget + 1, int((waiting < NONE).sum(1).amax())), largest=False)
        parents = parents.gather(1, order)
        left = budget - search.slots.fed[:, None]
        ready = torch.where(torch.arange(min(width, waiting.shape[1]), device=search.device) < left, waiting[:, :width], NONE)
        waiting[:, :width] = torch.where(ready < NONE, NONE, waiting[:, :width])
        rows = search.expand(ready, index_of(ready).clamp(0), parents[:, :width], torch.where(waiting < NONE, parents, -1))
    return found, (waiting == NONE).all(1)
