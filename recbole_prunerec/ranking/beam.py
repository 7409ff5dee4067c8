"""Beam search over the prefix tree: the list that Hugging Face `generate` gives under the same constraint, without its cost."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_prunerec.ranking.expand import INDEX, NONE, Expansion, Rows


def beam_search(search: Expansion, beams: int, k: int, length_penalty: float = 0.0) -> Tensor:
    """Keys (user, k) of the `k` <= `beams` best titles that a beam of `beams` prefixes finds.

    At each step all children of the live prefixes compete: the best `beams` unfinished ones stay live, and titles that end among the best `beams` of
    all are found. A title's score is the sum of its tokens' log-probabilities, divided by tokens ** `length_penalty`. Without that penalty a prefix
    that scores below the k-th title found is dropped, since scores only fall.
    """
    found = torch.full((search.users, k), NONE, device=search.device)
    rows: Rows | None = search.root()
    while rows is not None:
        children = search.children(rows)
        best = children.best(beams)
        node, _, ends = children.at(best)
        found = search.merge(found, torch.where(ends, best, NONE), node, length_penalty)
        going = children.best(beams, ~children.ends)
        if not length_penalty:
            going = torch.where(going <= found[:, -1:] | INDEX, going, NONE)
        node, parent, _ = children.at(going)
        rows = search.expand(going, node, parent)
    return found
