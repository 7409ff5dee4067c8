"""Beam search over the catalogue's prefix tree, batched over users, with tree attention.

A prompt goes through the model once. Each step then feeds one new token a live beam as further positions of the *same* row, and a 4-D mask lets a
beam see its user's prompt, its own ancestors and itself: the prompt's keys and values are never copied or reordered beam by beam. Where a layer's
attention slides, a second mask also hides what lies further back than the window, by position in the text and not by place in the row. The model is
a stock transformers decoder with `sdpa` or `eager` attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from recbole_prunerec.backbone.family import family_of
from recbole_prunerec.errors import UserError
from recbole_prunerec.ranking.trie import Trie

# A *key* orders candidates by score and breaks ties by index, so that top-k has one right answer: the bits of |score| (scores are <= 0, and the
# bits of non-negative floats sort as integers) above 32 bits of index. Smaller is better.
_INDEX = (1 << 32) - 1
_NONE = (0x7F800000 << 32) | _INDEX  # score -inf, index -1


class Ranking(NamedTuple):
    """The best titles of each user, best first; equal scores by the lower title."""

    titles: Tensor  # (user, beams) int64, padded with -1
    scores: Tensor  # (user, beams) float32, sum of the answer tokens' log-probabilities, padded with -inf


@torch.inference_mode()
def beam_search(model: PreTrainedModel, trie: Trie, prompts: Sequence[np.ndarray], beams: int, pad_id: int = 0) -> Ranking:
    """The `beams` best titles of each prompt, in one batch, on the model's device.

    A prompt is a 1-D array of token ids whose next token is an answer's first. A title's score is the sum of log softmax over the whole vocabulary
    (float32 whatever the model's type), without length normalisation. At each step the best `beams` unfinished prefixes stay live; finished titles
    compete only with each other. A prefix that scores below the `beams`-th finished title is dropped, since scores only fall. Each user gets
    min(beams, titles) titles. Raises `UserError` for an empty prompt and for a model whose scores are not finite.
    """
    device = model.device
    trie = trie.to(device)
    ids, lengths = _pad(prompts, pad_id, device)
    users, prompt = ids.shape
    row = torch.arange(users, device=device)[:, None]
    cache = DynamicCache()  # knows no window: one that does would drop keys by their place in the row
    # No mask: under causal attention only padding sees the padding on the right, and `visible` hides it from the beams.
    hidden = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[row, lengths - 1]
    visible = (torch.arange(prompt, device=device) < lengths)[:, None]  # (user, live, slot of the cache)
    family = family_of(model.config)
    window = family.window(model.config)
    if window is not None and window >= prompt + trie.depth - 1:  # reaches from a title's last token but one to the prompt's first
        window = None
    position = torch.arange(prompt, device=device).expand(users, prompt)  # (user, slot), where there is a window
    pool = torch.full((users, beams), _NONE, device=device)  # keys of the finished titles
    score = torch.zeros(users, 1, device=device)  # (user, live)
    node = torch.zeros_like(row)  # (user, live)
    degree = trie.offsets[1].expand(users, 1)  # (user, live) children of each node; 0 where a beam is dead
    live, width = 1, int(trie.offsets[1])
    for step in range(trie.depth):
        logp = model.get_output_embeddings()(hidden).float().log_softmax(-1)
        child = torch.arange(width, device=device)
        edge = (trie.offsets[node][..., None] + child).clamp_(max=len(trie.tokens) - 1)  # (user, live, width)
        key = _key(score[..., None] + logp.gather(2, trie.tokens[edge].flatten(2)))
        title = trie.titles[trie.children[edge]]
        exists = child < degree[..., None]
        place = torch.arange(live * width, device=device).view(live, width)
        finished = torch.where(exists & (title >= 0), key | title, _NONE).flatten(1)
        going = torch.where(exists & (title < 0), key | place, _NONE).flatten(1)
        pool = torch.cat([pool, finished], 1).topk(beams, largest=False).values
        going = going.topk(min(beams, live * width), largest=False).values
        alive = going < (pool[:, -1:] | _INDEX)
        place = torch.where(alive, going & _INDEX, 0)
        edge, parent = edge.flatten(1).gather(1, place), place // width
        node = trie.children[edge]
        degree = torch.where(alive, trie.offsets[node + 1] - trie.offsets[node], 0)
        # The one wait for the device in a step. Keys are sorted, so that a user's dead beams come last.
        live, width = torch.stack([alive.sum(1).amax(), degree.amax()]).tolist()
        if not live:
            break
        edge, parent, node, degree, score = (x[:, :live] for x in (edge, parent, node, degree, _score(going)))
        itself = torch.eye(live, dtype=torch.bool, device=device).expand(users, live, live)
        visible = torch.cat([visible[row, parent], itself], 2)
        full = _additive(visible, hidden.dtype)
        mask: Tensor | dict[str, Tensor] = full
        if window is not None:
            position = torch.cat([position, (lengths + step).expand(users, live)], 1)
            near = visible & (position > lengths + step - window)[:, None]
            mask = family.masks(full, _additive(near, hidden.dtype))
        hidden = model.base_model(
            input_ids=trie.tokens[edge],
            position_ids=(lengths + step).expand(users, live),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    ranking = Ranking(pool.to(torch.int32).to(torch.int64), _score(pool))
    if not torch.isfinite(ranking.scores[:, : int((trie.titles >= 0).sum())]).all():
        raise UserError(f"the model ({hidden.dtype}) gives scores that are not finite, so titles cannot be ranked; use float32 or bfloat16 weights")
    return ranking


def rank(
    model: PreTrainedModel,
    trie: Trie,
    prompts: Sequence[np.ndarray],
    beams: int,
    batch_size: int,
    pad_id: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Ranking:
    """`beam_search` over any number of prompts, in batches of similar lengths, the longest first. Rows are in the order of `prompts`, on the CPU.

    `progress` is called after each batch with the number of its users.
    """
    trie = trie.to(model.device)
    titles, scores = torch.empty(len(prompts), beams, dtype=torch.int64), torch.empty(len(prompts), beams)
    order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    for start in range(0, len(prompts), batch_size):
        rows = order[start : start + batch_size]
        titles[rows], scores[rows] = (part.cpu() for part in beam_search(model, trie, [prompts[row] for row in rows], beams, pad_id))
        if progress:
            progress(len(rows))
    return Ranking(titles, scores)


def _pad(prompts: Sequence[np.ndarray], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (user, position), padded on the right, and lengths (user, 1)."""
    lengths = np.array([len(prompt) for prompt in prompts])
    if not lengths.all():
        raise UserError(f"{(lengths == 0).sum()} of {len(prompts)} prompts are empty; a prompt needs at least one token")
    ids = np.full((len(prompts), lengths.max()), pad_id)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device)[:, None]


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The 4-D mask (user, 1, live, slot) that both `sdpa` and `eager` add to attention logits: 0 where visible, else the type's minimum."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def _key(score: Tensor) -> Tensor:
    """The upper half of a key, for scores <= 0."""
    return score.abs().view(torch.int32).to(torch.int64) << 32


def _score(key: Tensor) -> Tensor:
    """The score that a key holds."""
    return (key >> 32).to(torch.int32).view(torch.float32).neg()
