"""What a family says about its attention, against what transformers' model does with it."""

import pytest
import torch
from tiny import FAMILIES, SLIDING, WINDOW, every_model, llama, mistral, qwen2, qwen3
from transformers import DynamicCache, GPT2Config

from recbole_prunerec.backbone.family import family_of
from recbole_prunerec.errors import UserError


def window_of(model):
    return family_of(model.config).window(model.config)


@every_model
def test_the_window_is_what_the_models_own_cache_keeps(make):
    model = make()
    kept = {layer.sliding_window if layer.is_sliding else None for layer in DynamicCache(config=model.config).layers}
    assert window_of(model) == (max(kept - {None}) if kept != {None} else None)
    assert (window_of(model) == WINDOW) == (make in SLIDING.values())


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 3, 20, None])
@pytest.mark.parametrize("make", [qwen2, qwen3, mistral])
def test_a_token_reaches_as_many_positions_as_the_window_says(make, window):
    changes = {} if window is None or make is mistral else {"max_window_layers": 0}
    model = make(window=window, num_hidden_layers=1, **changes)
    ids = torch.randint(1, 97, (1, 15), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 4] = 96 - ids[0, 4]
    moved = (model(ids).logits != model(other).logits).any(-1)[0].nonzero()[:, 0]
    assert moved.tolist() == list(range(4, 15))[: window_of(model)]


def test_a_window_that_no_layer_obeys_is_none():
    for make in (qwen2, qwen3):
        assert window_of(make(window=3, max_window_layers=3)) is None
        assert window_of(make(sliding_window=3)) is None  # without use_sliding_window
    model, ids = llama(sliding_window=3), torch.arange(1, 13)[None]
    with torch.no_grad():
        assert window_of(model) is None and torch.equal(model(ids).logits, llama()(ids).logits)


@pytest.mark.parametrize("make", SLIDING.values(), ids=SLIDING)
def test_masks_reach_the_layers_that_they_are_for(make):
    model, seen = make(), []
    full, near = (torch.zeros(1, 1, 7, 7, dtype=torch.float64) for _ in range(2))
    for block in model.model.layers:
        block.self_attn.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True)
    with torch.no_grad():
        model.base_model(input_ids=torch.arange(1, 8)[None], attention_mask=family_of(model.config).masks(full, near))
    slides = [layer.is_sliding for layer in DynamicCache(config=model.config).layers]
    assert len(seen) == 3 and all(mask is (near if sliding else full) for mask, sliding in zip(seen, slides, strict=True))


def test_other_families_are_refused_by_name():
    with pytest.raises(UserError, match="'gpt2' is not supported; supported are qwen2, qwen3, llama, mistral"):
        family_of(GPT2Config())
    assert [family_of(make(num_hidden_layers=1).config).model_type for make in FAMILIES.values()] == list(FAMILIES)
