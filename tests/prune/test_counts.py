"""METHOD section 6: the parameter counts of Qwen2-0.5B and of every shape in its table, against stock models on the meta device."""

from dataclasses import replace

import pytest
import torch
from tiny import every_model
from transformers import AutoModelForCausalLM, Qwen2Config

from recbole_prunerec.backbone.family import Sizes

QWEN = Sizes(hidden=896, layers=24, heads=14, kv_heads=2, head_dim=64, intermediate=4864, vocab=151936, tied=True, qkv_bias=True)


def stock(sizes):
    """(non-embedding, embedding) parameters of transformers' own model."""
    config = Qwen2Config(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.intermediate,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert Sizes.of(model) == sizes
    embedding = model.get_input_embeddings().weight.numel()
    return sum(parameter.numel() for parameter in model.parameters()) - embedding, embedding


def test_qwen2_half_a_billion():
    assert (QWEN.non_embedding_parameters, QWEN.embedding_parameters) == (357_898_112, 136_134_656) == stock(QWEN)
    assert QWEN.total_parameters == 494_032_768


@pytest.mark.parametrize(
    "heads, kv_heads, inner, percentages",
    [
        (7, 7, 896, ("49.24", "13.47", "8.98", "4.49")),
        (7, 1, 896, ("46.92", "11.16", "7.44", "3.72")),
        (14, 2, 896, ("50.00", "14.24", "9.49", "4.75")),
        (6, 2, 896, ("46.92", "11.16", "7.44", "3.72")),
        (7, 1, 486, ("46.92", "7.47", "4.98", "2.49")),
    ],
)
def test_table_of_shares(heads, kv_heads, inner, percentages):
    stages = [(4864, 24), (inner, 24), (inner, 16), (inner, 8)]
    for (intermediate, layers), percentage in zip(stages, percentages, strict=True):
        sizes = replace(QWEN, hidden=448, heads=heads, kv_heads=kv_heads, intermediate=intermediate, layers=layers)
        assert sizes.non_embedding_parameters == stock(sizes)[0]
        assert f"{100 * sizes.non_embedding_parameters / 357_898_112:.2f}" == percentage


@every_model
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"attention_bias": True, "mlp_bias": True}])
def test_counts_of_biases_and_heads_that_are_not_tied(make, changes):
    model = make(**changes)
    sizes, embeddings = Sizes.of(model), (model.model.embed_tokens.weight, model.lm_head.weight)
    assert sizes.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.embedding_parameters == sum(weight.numel() for weight in {id(weight): weight for weight in embeddings}.values())
