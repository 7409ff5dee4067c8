"""Which families there are."""

import pytest
from tiny import FAMILIES
from transformers import GPT2Config

from recbole_prunerec.backbone.family import family_of
from recbole_prunerec.errors import UserError


def test_other_families_are_refused_by_name():
    with pytest.raises(UserError, match="'gpt2' is not supported; supported are qwen2, qwen3, llama, mistral"):
        family_of(GPT2Config())
    assert [family_of(make(num_hidden_layers=1).config).model_type for make in FAMILIES.values()] == list(FAMILIES)
