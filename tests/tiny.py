"""Tiny random models and batches for the tests. Weights are drawn wide enough that every part of the model matters."""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def random_model(config, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model of `config` with every parameter random (norm weights around 1), in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
    return model.eval()


def slides_from_the_second_layer(window: int | None) -> dict:
    """Qwen's keys for attention that slides over `window` keys in all layers but the first; None for none that does."""
    return {} if window is None else {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}


def qwen2(seed: int = 0, dtype: torch.dtype = torch.float64, window: int | None = None, **changes) -> PreTrainedModel:
    """Qwen2: biases on q, k, v; head_dim 8, 6 heads on 2 key/value heads, tied."""
    sliding = slides_from_the_second_layer(window)
    return random_model(Qwen2Config(**{**SHAPE, "head_dim": 8, "tie_word_embeddings": True, **sliding, **changes}), seed, dtype)


def qwen3(seed: int = 0, dtype: torch.dtype = torch.float64, window: int | None = None, **changes) -> PreTrainedModel:
    """Qwen3: norms on queries and keys, no biases; head_dim 8, 6 heads on 2 key/value heads, tied."""
    sliding = slides_from_the_second_layer(window)
    return random_model(Qwen3Config(**{**SHAPE, "head_dim": 8, "tie_word_embeddings": True, **sliding, **changes}), seed, dtype)


def llama(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> PreTrainedModel:
    """Llama: no biases, head_dim 8, 6 heads on 2 key/value heads, untied."""
    return random_model(LlamaConfig(**{**SHAPE, "head_dim": 8, "tie_word_embeddings": False, **changes}), seed, dtype)


def mistral(seed: int = 0, dtype: torch.dtype = torch.float64, window: int | None = None, **changes) -> PreTrainedModel:
    """Mistral: no biases, head_dim 8, 6 heads on 2 key/value heads, untied; attention slides over `window` keys in all layers."""
    config = MistralConfig(**{**SHAPE, "head_dim": 8, "tie_word_embeddings": False, "sliding_window": window, **changes})
    return random_model(config, seed, dtype)


WINDOW = 4  # shorter than every prompt of `batch`
FAMILIES = {"qwen2": qwen2, "qwen3": qwen3, "llama": llama, "mistral": mistral}
SLIDING = {f"{make.__name__} sliding": partial(make, window=WINDOW) for make in (qwen2, qwen3, mistral)}
MODELS = {**FAMILIES, **SLIDING}
every_family = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def batch(
    rows: int = 4, prompt: tuple[int, int] = (5, 12), answer: tuple[int, int] = (2, 5), vocab: int = 97, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A right-padded batch of random prompts and answers, in the form of `backbone.forward`."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [(int(torch.randint(*prompt, (), generator=generator)), int(torch.randint(*answer, (), generator=generator))) for _ in range(rows)]
    width = max(map(sum, lengths))
    ids = torch.zeros(rows, width, dtype=torch.long)
    mask = torch.zeros(rows, width, dtype=torch.long)
    labels = torch.full((rows, width), -100)
    for row, (before, after) in enumerate(lengths):
        ids[row, : before + after] = torch.randint(1, vocab, (before + after,), generator=generator)
        mask[row, : before + after] = 1
        labels[row, before : before + after] = ids[row, before : before + after]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
