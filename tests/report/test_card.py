import re
import socket

import pytest
import torch
from huggingface_hub import ModelCard
from served_folder import TOKENIZER, write_served
from tiny import llama
from tiny_run import SETTINGS, backbone, samples
from tiny_run import TOKENIZER as TRAINED
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recbole_prunerec import pipeline
from recbole_prunerec.backbone.origin import licence_of
from recbole_prunerec.ranking.recommender import Recommender, load_prompts
from recbole_prunerec.report.card import CardFacts, model_card
from recbole_prunerec.settings import Settings

PIECES = ["Chosen so far:\n", '"', 'Heat"\n', '"', 'Casino"\n', '"']
FACTS = {
    "name": "PruneRec ml-100k 2-width",
    "step": 2,
    "step_name": "width",
    "steps": (("finetune", {"epochs": 5}), ("width", {"heads": 2, "restore.kd_loss": "forward_kl"})),
    "sizes_before": {"hidden": 256, "layers": 4, "tied": True},
    "sizes_after": {"hidden": 64, "layers": 4, "tied": True},
    "dataset": "ml-100k",
    "items": 1682,
    "protocol": {"split": "global_time", "filter": "a | b"},
    "metrics": {"hit@10": 0.11316, "ndcg@20": 0.0817},
    "test_rows": 9835,
    "ranked": "test",
    "history": ("one two", "three"),
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


def test_metrics_of_validation_rows_are_called_so():
    card = model_card(facts(ranked="validation"))
    assert {result.dataset_split for result in ModelCard(card).data.eval_results} == {"validation"} and "9,835 validation rows" in card


def test_an_unknown_base_is_left_out_and_a_model_without_metrics_cannot_recommend_yet():
    card = model_card(facts(metrics={}, step_name="vocabulary"))
    assert {"base_model", "base_model_relation", "license", "license_name", "model-index"}.isdisjoint(ModelCard(card).data.to_dict())
    assert "is not fine-tuned and cannot do so yet" in card and "| hidden | 256 | 64 |" in card
    assert "## Evaluation" not in card and "## Use" not in card
    assert "cannot do so yet" not in model_card(facts())


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (None, {}),
        ("apache-2.0", {"license": "apache-2.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("mit, llama3.2", {"license": ["mit", "llama3.2"]}),
        ("Tongyi Qianwen (research)", {"license": "other", "license_name": "tongyi-qianwen-research"}),
        ("mit, house rules", {"license": "other", "license_name": "mit-house-rules"}),
        ("other", {"license": "other", "license_name": "other"}),
    ],
)
def test_the_licence_is_written_as_the_hub_takes_it_and_read_back_as_it_was(tmp_path, licence, expected):
    card = model_card(facts(base_model="some/model", licence=licence, revision="c" * 40))
    header = ModelCard(card).data.to_dict()
    assert {key: value for key, value in header.items() if key.startswith("license")} == expected
    assert (header["base_model"], header["base_model_relation"]) == ("some/model", "finetune")
    assert f"whose licence is {licence} and binds this one" in card if licence else "is not known here" in card
    (tmp_path / "README.md").write_text(card)
    known = expected.get("license_name", expected.get("license"))
    assert licence_of(tmp_path) == (", ".join(known) if isinstance(known, list) else known)


def test_where_it_comes_from_is_told_and_a_random_start_owes_nobody():
    card = model_card(facts(base_model="Qwen/Qwen2-0.5B", revision="c" * 40, licence="mit"))
    assert f"It started from [Qwen/Qwen2-0.5B](https://huggingface.co/Qwen/Qwen2-0.5B), commit {'c' * 40}, whose licence is mit" in card
    assert "It started from a local model, smollm2.gguf, whose licence is not known" in model_card(facts(base_name="smollm2.gguf"))
    assert "a local model, unnamed," in model_card(facts(base_name=""))
    card = model_card(facts(random_start=True, licence="mit"))
    assert "started from random values" in card and "licence" not in card and "license" not in ModelCard(card).data.to_dict()
    assert "random values" not in model_card(facts())


def test_body_has_sizes_protocol_metrics_and_notes():
    card = model_card(facts(notes=("smoke run",)))
    for line in (
        "| hidden | 256 | 64 |",
        "| HR@10 | 0.1132 |",
        "| NDCG@20 | 0.0817 |",
        "| split | global_time |",
        r"| filter | a \| b |",
        "> **Note**: smoke run",
        "| 1 finetune | epochs: 5 |",
        "| 2 width | heads: 2, restore.kd_loss: forward_kl |",
    ):
        assert line in card.splitlines()
    assert "step 2 (width)" in card and "9,835 test rows" in card and "titles of 1,682 items of ml-100k" in card


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


def test_the_catalogues_usage_code_runs_on_a_steps_folder(tmp_path, monkeypatch):
    write_served(tmp_path)
    plain, ours = re.findall(r"```python\n(.*?)```", model_card(facts(history=("Heat", "Casino"), prompt=tuple(PIECES))), re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(plain, names)
    prompts, _ = load_prompts(tmp_path, TOKENIZER)
    assert names["ids"] == prompts.prompt_of(["Heat", "Casino"]).tolist()
    exec(ours, names)
    assert names["items"] == Recommender.from_pretrained(tmp_path).recommend([["Heat", "Casino"]], k=10)[0] and len(names["items"]) == 7


def test_every_folder_of_a_run_says_what_was_done_to_it(tmp_path):
    steps = [{"do": "vocabulary"}, *(step.model_dump(exclude_none=True) for step in SETTINGS.steps[:2])]
    settings = Settings.model_validate({**SETTINGS.model_dump(), "steps": steps})
    model = backbone()
    model.config.name_or_path = "Qwen/Qwen2-0.5B"
    records = pipeline.run(model, TRAINED, samples(), settings, tmp_path)
    assert [record.name for record in records] == ["vocabulary", "finetune", "width"]
    cards = [(tmp_path / f"{record.number}-{record.name}" / "README.md").read_text() for record in records]
    for card, record in zip(cards, records, strict=True):
        data = ModelCard(card).data
        measured = record.final.metrics if record.final else {}
        assert {result.metric_type: result.metric_value for result in data.eval_results or []} == measured
        assert data.base_model == "Qwen/Qwen2-0.5B" and ("cannot do so yet" in card) == (record.name == "vocabulary")
        after = {name: size for name, _, size in re.findall(r"^\| ([\w ]+) \| (\w+) \| (\w+) \|$", card, re.MULTILINE)}
        assert after["parameters"] == str(record.sizes.total_parameters) and after["vocab"] == str(record.sizes.vocab)
        assert "titles of 8 items" in card
    table = [line for line in cards[2].splitlines() if re.match(r"\| \d ", line)]
    assert table[:2] == ["| 1 vocabulary | - |", "| 2 finetune | epochs: 2, learning_rate: 0.01 |"]
    for told in ("heads: 3, hidden: 24", "criterion: prunerec", "kv_policy: group", "calibration_samples: 4", "restore.kd_loss: forward_kl"):
        assert told in table[2]
    assert "| 3 width" not in cards[1] and "| 2 finetune" not in cards[0]
