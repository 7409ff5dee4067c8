"""Attention of many short continuations that share their prompts: a prompt's keys and values are computed once, and never copied.

The tokens of all users go through a stock transformers model as one row without padding; only attention, a small part of the work, sees users apart.
Each user has *slots*: first those of the prompt's tokens, then some for tokens that were fed after it, which are taken again when no text goes on
from them. A token sees its prompt, its own ancestors and itself, and where a layer's attention slides, of those only what lies within the window, by
position in the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from recbole_prunerec.backbone.forward import attending_by

NAME = "prefix_tree"  # among transformers' attention implementations
GROWTH = 1.25  # of the room for slots, where it is used up


class Slots:
    """Keys, values and ancestry of the tokens of a batch of users whose prompts have `lengths` (user,) tokens, `longest` at most.

    Inside `tree_attention`, `prefill` feeds the prompts, and then `feed` any tokens that follow. Where `beginning`, slots of one user, is given, the
    prompts' first tokens are those, and are not fed again. After a prompt come at most `deepest` tokens in one text; room for `room` is made at once.
    """

    def __init__(
        self, model: PreTrainedModel, lengths: Tensor, longest: int, deepest: int = 0, beginning: Slots | None = None, room: int = 0
    ) -> None:
        self._model, self._lengths, self.longest, self._beginning = model, lengths, longest, beginning
        self._capacity, self._calls, self._deepest = longest + room, 0, deepest
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values of each layer, (user, kv_head, slot, dim)
        self._parents = lengths.new_empty(len(lengths), 0)  # (user, slot after the prompt) the parent's, -1 for the prompt itself
        self._depths = torch.empty_like(self._parents)  # (user, slot after the prompt) tokens between the prompt and this one
        self.fed = torch.zeros_like(lengths)  # (user,) tokens after the prompt

    def prefill(self, tokens: Tensor, user: Tensor, place: Tensor, users: slice) -> Tensor:
        """Feed the prompts of `users`, but what `beginning` holds: `tokens` (token,), each at `place` in the prompt of `user`.

        Returns hidden states (token, dim).
        """
        start = self._beginning.longest if self._beginning else 0
        slots = torch.arange(self.longest, device=place.device)
        self._own, self._positions = slots[None, start:], slots[None]  # (1 or user, token of the user) and (1 or user, slot): places in the text
        self._visible = self._own[..., None] >= self._positions[:, None]  # padding is on the right, and nothing before it sees it
        return self._forward(tokens, place, user, place - start, place, users)

    def needed(self, parent: Tensor) -> Tensor:
        """Slots after the prompt that are `parent` (user, any; -1 for none), or come before it in its text. Shape (user, slot after the prompt)."""
        users, count = self._parents.shape
        needed = torch.zeros(users, count + 1, dtype=torch.bool, device=parent.device)  # the last column is that of -1
        user = torch.arange(users, device=parent.device)[:, None].expand_as(parent)
        for ancestor in self._lineage(user, parent):
            needed[user, ancestor] = True
        return needed[:, :-1]

    def feed(
        self, tokens: Tensor, user: Tensor, place: Tensor, width: int, parent: Tensor, needed: Tensor, most_needed: int
    ) -> tuple[Tensor, Tensor]:
        """Feed `tokens` (token,), each of which follows the prompt of `user` and then the token in slot `parent`: -1 where the prompt comes last.

        `place` numbers a user's tokens, from 0 to below `width`. They take slots that are not `needed` (user, slot after the prompt), of which a user
        needs at most `most_needed`. Returns hidden states (token, dim), and slots (token,) to name as parents.
        """
        users, before = self._parents.shape
        depth = torch.where(parent < 0, 0, self._depths[user, parent] + 1) if before else torch.zeros_like(parent)
        more = max(0, most_needed + width - before)
        self._parents, self._depths = pad(self._parents, (0, more)), pad(self._depths, (0, more))
        slot = pad(needed, (0, more)).sort(dim=1, stable=True).indices[user, place]
        self._parents[user, slot], self._depths[user, slot] = parent, depth
        self._calls += 1
        seen = torch.zeros(users, width, before + more + 1, dtype=torch.bool, device=place.device)  # the last column is that of -1
        for ancestor in self._lineage(user, slot):
            seen[user, place, ancestor] = True
        slots = torch.arange(self.longest, device=place.device).expand(users, -1)
        prompt = (slots < self._lengths[:, None])[:, None].expand(-1, width, -1)
        self._visible = torch.cat([prompt, seen[..., :-1]], 2)
        position = self._lengths[user] + depth
        self._own = position.new_zeros(users, width)
        self._own[user, place] = position
        self._positions = torch.cat([slots, self._lengths[:, None] + self._depths], 1)
        self.fed.index_add_(0, user, torch.ones_like(user))
        return self._forward(tokens, position, user, place, self.longest + slot, slice(0, users)), slot

    def _lineage(self, user: Tensor, slot: Tensor) -> Iterator[Tensor]:
        """`slot` of `user`, tensors of one shape, then its parent, and so on; -1 beyond the first token after the prompt."""
        for _ in range(min(self._calls, self._deepest)):
            yield slot
            slot = torch.where(slot < 0, -1, self._parents[user, slot])

    def _forward(self, tokens: Tensor, position: Tensor, user: Tensor, place: Tensor, slot: Tensor, users: slice) -> Tensor:
        """Hidden states (token, dim) of tokens of `users`."""
        self._user, self._slot, self._users = user, slot, users
        self._row = (user - users.start) * self._visible.shape[1] + place
        self._masks: dict[int | None, Tensor] = {}
        out = self._model.base_model(input_ids=tokens[None], position_ids=position[None], use_cache=False, slots=self)
        return out.last_hidden_state[0]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
        """Store the new keys and values (token, kv_head, dim) and attend with `query` (token, head, dim). Returns (token, head, dim)."""
        keys, values = self._store(layer, key, value)
        users, kv_heads, _, dim = keys.shape
        heads, width = query.shape[1], self._visible.shape[1]
        group = heads // kv_heads
        if window not in self._masks:
            self._masks[window] = self._mask(window, group, query.dtype)
        # The query heads of a key/value head stand side by side with the user's tokens, so that no key is copied for either.
        padded = query.new_zeros(users * width, heads, dim)
        padded[self._row] = query
        padded = padded.view(users, width, kv_heads, group, dim).permute(0, 2, 1, 3, 4).reshape(users, kv_heads, width * group, dim)
        out = scaled_dot_product_attention(padded, keys, values, attn_mask=self._masks[window], scale=scaling)
        return out.view(users, kv_heads, width, group, dim).permute(0, 2, 1, 3, 4).reshape(users * width, heads, dim)[self._row]

    def _store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values into their slots. Returns those in use of the users who are fed, (user, kv_head, slot, dim)."""
        used = self._visible.shape[2]
        old = self._stored.get(layer)
        if old is None or old[0].shape[2] < used:
            before = old or (self._beginning._stored[layer] if self._beginning else ())
            self._capacity = max(self._capacity, int(GROWTH * used) if old else used)
            new = [part.new_zeros(len(self._lengths), part.shape[1], self._capacity, part.shape[2]) for part in (key, value)]
            for larger, smaller in zip(new, before, strict=bool(before)):
                larger[:, :, : smaller.shape[2]] = smaller
            self._stored[layer] = (new[0], new[1])
        keys, values = self._stored[layer]
        keys[self._user, :, self._slot] = key
        values[self._user, :, self._slot] = value
        return keys[self._users, :, :used], values[self._users, :, :used]

    def _mask(self, window: int | None, group: int, dtype: torch.dtype) -> Tensor:
        """What is added to attention logits, (user or 1, 1, token of the user * group, slot): 0 where visible, else the type's minimum."""
        visible = self._visible
        if window is not None:
            visible = visible & (self._own[..., None] - self._positions[:, None] < window)
        users, width, slots = visible.shape
        visible = visible[:, :, None].expand(-1, -1, group, -1).reshape(users, 1, width * group, slots)
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    slots: Slots,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. `query` (1, head, token, dim), `key` and `value` (1, kv_head, token, dim) -> (1, token, head, dim)."""
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    return slots.attend(module.layer_idx, query, key, value, scaling, sliding_window)[None], None  # type: ignore[arg-type]


AttentionInterface.register(NAME, _attend)


def tree_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Inside, `model` is to be called through `Slots`; outside it attends as before."""
    return attending_by(model, NAME)
