import re
import socket

import pytest
import torch
from huggingface_hub import ModelCard
from tiny import llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recbole_prunerec.report.card import CardFacts, model_card

FACTS = {
    "name": "PruneRec ml-100k 2-width",
    "step": 2,
    "step_name": "width",
    "sizes_before": {"hidden": 256, "layers": 4, "tied": True},
    "sizes_after": {"hidden": 64, "layers": 4, "tied": True},
    "dataset": "ml-100k",
    "protocol": {"split": "global_time", "filter": "a | b"},
    "metrics": {"hit@10": 0.11316, "ndcg@20": 0.0817},
    "test_rows": 9835,
    "prompt": ("one two", "three", '"'),
}


def facts(**changes):
    return CardFacts(**{**FACTS, **changes})


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the card asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_header_parses_back():
    data = ModelCard(model_card(facts(base_model="Qwen/Qwen2-0.5B"))).data
    assert (data.base_model, data.library_name, data.model_name) == ("Qwen/Qwen2-0.5B", "transformers", FACTS["name"])
    assert "recommendation" in data.tags
    found = {result.metric_type: (result.metric_name, result.metric_value, result.dataset_type, result.dataset_split) for result in data.eval_results}
    assert found == {"hit@10": ("HR@10", 0.11316, "ml-100k", "test"), "ndcg@20": ("NDCG@20", 0.0817, "ml-100k", "test")}


def test_an_unknown_base_is_left_out_and_no_metrics_is_allowed():
    data = ModelCard(model_card(facts(metrics={}))).data.to_dict()
    assert {"base_model", "license", "model-index"}.isdisjoint(data)


def test_body_has_sizes_protocol_metrics_and_notes():
    card = model_card(facts(notes=("smoke run",)))
    for line in (
        "| hidden | 256 | 64 |",
        "| HR@10 | 0.1132 |",
        "| NDCG@20 | 0.0817 |",
        "| split | global_time |",
        r"| filter | a \| b |",
        "> **Note**: smoke run",
    ):
        assert line in card.splitlines()
    assert "step 2 (width)" in card and "9,835 test rows" in card


def test_random_start_is_said_only_where_it_is_so():
    assert "started from random values" in model_card(facts(random_start=True))
    card = model_card(facts(base_model="Qwen/Qwen2-0.5B"))
    assert "random" not in card and "It started from Qwen/Qwen2-0.5B." in card


def test_the_usage_code_runs_on_a_saved_folder(tmp_path, monkeypatch):
    model = llama(dtype=torch.float32)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path)
    words = Tokenizer(
        models.WordLevel({"end": 0, "one": 1, "two": 2, "three": 3, '"': 4, **{f"t{index}": index for index in range(5, 97)}}, unk_token="end")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.save_pretrained(tmp_path)
    code = re.search(r"```python\n(.*?)```", model_card(facts()), re.S).group(1)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["ids"] == [1, 2, 3, 4]
    expected = model.generate(torch.tensor([[1, 2, 3, 4]]), max_new_tokens=64)[0, 4:]
    assert len(expected) and names["title"] == tokenizer.decode(expected)
