"""Every shipped YAML: it loads, each key has its comment, and what it says about sizes is true."""

import re
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from recbole_prunerec.amazon.statistics import PAPER
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.estimate import sizes_by_step
from recbole_prunerec.prune.budget import Shape, shape_problems
from recbole_prunerec.settings import Rules, Settings
from recbole_prunerec.shipped import dataset_recipe, names, properties, read_yaml, recbole_defaults, recbole_models, recbole_urls, recipe

FOLDER = Path(str(files("recbole_prunerec.properties")))
FILES = sorted(FOLDER.rglob("*.yaml"))
QWEN2_CONFIG = {  # of Qwen/Qwen2-0.5B's config.json
    "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "intermediate_size": 4864, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2_HALF_BILLION = Sizes(hidden=896, layers=24, heads=14, kv_heads=2, head_dim=64, intermediate=4864, vocab=151936, tied=True, qkv_bias=True)


def after(sizes: Sizes, settings: Settings) -> Sizes:
    """The sizes after all steps, by the shapes that the planner checks."""
    shape = Shape("qwen2", sizes.hidden, sizes.layers, sizes.heads, sizes.kv_heads, sizes.intermediate)
    assert shape_problems(settings.steps, shape) == []
    for step in settings.steps[1:]:
        shape, _ = shape.after(step)
    return replace(sizes, **{key: value for key, value in asdict(shape).items() if key != "family"})


def test_all_yaml_is_found():
    assert {str(path.relative_to(FOLDER)) for path in FILES} >= {"protocol.yaml", "model/PruneRec.yaml", "backbone/tiny.yaml", "preset/tiny.yaml"}
    assert set(names("preset")) >= {"paper", "paper-16", "quick", "smollm2", "tiny"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_file_and_every_key_has_a_comment(path):
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    keys = [line for line in lines if re.match(r"\w+:", line)]
    assert [line for line in keys if not re.search(r" # \S", line)] == []  # what is indented belongs to its key
    assert len(keys) == len(read_yaml(path.read_text(encoding="utf-8"), str(path)))
    assert max(map(len, [first, *lines])) <= 150


@pytest.mark.parametrize("preset", names("preset"))
def test_a_preset_is_loaded_as_it_is_written(preset):
    content, chain = properties("preset", preset), [preset]
    while "extends" in content:
        chain.append(content.pop("extends"))
        content = {**properties("preset", chain[-1]), **content}
    settings = load_arguments([f"--preset={preset}"]).settings
    dumped = settings.model_dump(mode="json")
    assert settings.preset == preset
    for key, value in content.items():
        if key == "steps":
            assert [{name: got[name] for name in wanted} for got, wanted in zip(dumped["steps"], value, strict=True)] == value
        elif isinstance(value, dict):
            assert {name: dumped[key][name] for name in value} == value
        else:
            assert dumped[key] == value


@pytest.mark.parametrize("name", ["protocol", "model/PruneRec", *(f"dataset/{name}" for name in names("dataset"))])
def test_other_files_hold_known_keys_only(name):
    known = set(Settings.model_fields) | set(recbole_defaults(()))
    content = recipe(*reversed(name.split("/"))) if "/" in name else properties(name)
    assert set(content) <= known
    assert set(content.get("compare", [])) <= set(recbole_models())


def test_amazons_categories_have_the_papers_rules_by_their_release():
    """The window is of 2018; earlier and later releases end elsewhere. Every key of the rules is said, and no other dataset has any."""
    paper = {"faults": 0.05, "title_rules": "ours", "title_words": 20, "repeated": "keep", "core": 5}
    window = {"window_start": "2017-10", "window_end": "2018-11", "window_step": 12, "min_items": 10000}
    none = {"window_start": None, "window_end": None, "min_items": 0}
    expected = {"18": Rules(**paper, **window), "23": Rules(**paper, **none), "14": Rules(**paper, **none)}
    assert dataset_recipe("amazon-video-games-18") == {"title_field": "title", "rules": paper | window}
    releases = {
        name: next((year for year in ("18", "23") if name.endswith(f"-{year}")), "14") for name in recbole_urls() if name.startswith("amazon-")
    }
    assert releases.pop("amazon-m2") and len(releases) == 86  # a dataset of sessions
    for name, release in releases.items():
        settings = load_arguments([f"--dataset={name}"]).settings
        assert (settings.rules, settings.title_field) == (expected[release], "title")
    for name in {"ml-100k", "../preset/tiny", "amazon-games", "no such"} | set(recbole_urls()) - set(releases):
        assert "rules" not in dataset_recipe(name)
    assert load_arguments(["--dataset=amazon-books", "--rules=null"]).settings.rules is None
    assert load_arguments(["--dataset=amazon-books", "--rules.core=3"]).settings.rules == expected["14"].model_copy(update={"core": 3})


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_papers_datasets_say_its_table_1(name):
    _, items, *samples = (f"{count:,}" if isinstance(count, int) else count for count in PAPER[name])
    first = (FOLDER / "dataset" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert f"has {items} items, and {samples[0]}, {samples[1]} and {samples[2]} samples to train, validate and test." in first


def test_the_protocol_is_the_papers():
    settings = load_arguments([]).settings
    assert (settings.split, settings.longest_history, settings.metrics, settings.topk) == ("global_time", 10, ("Hit", "NDCG"), (10, 20))
    assert {settings.recbole[f"{side}_inter_num_interval"] for side in ("user", "item")} == {"[5,inf)"}


def test_tiny_keeps_what_it_says():
    config = properties("backbone", "tiny")
    shape = Shape.of_config(config)
    tiny = Sizes(
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=config["head_dim"],
        intermediate=shape.intermediate,
        vocab=config["vocab_size"],
        tied=config["tie_word_embeddings"],
        qkv_bias=True,
    )
    pruned = after(tiny, load_arguments([]).settings)
    assert (pruned.heads, pruned.kv_heads, pruned.hidden, pruned.intermediate, pruned.layers) == (2, 1, 64, 128, 2)
    counts = tiny.non_embedding_parameters, pruned.non_embedding_parameters
    text = (FOLDER / "preset" / "tiny.yaml").read_text(encoding="utf-8")
    assert "of {:,} non-embedding parameters, {:,} stay".format(*counts) in text
    assert f"{counts[1] / counts[0]:.1%}" == "9.4%"
    assert "9.4 % of its non-embedding parameters" in text


def test_paper_keeps_what_it_says():
    pruned = after(QWEN2_HALF_BILLION, load_arguments(["--preset=paper"]).settings)
    assert (pruned.heads, pruned.kv_heads, pruned.hidden, pruned.intermediate, pruned.layers) == (7, 7, 448, 896, 8)
    assert QWEN2_HALF_BILLION.non_embedding_parameters == 357_898_112
    assert f"{pruned.non_embedding_parameters / QWEN2_HALF_BILLION.non_embedding_parameters:.2%}" == "4.49%"
    assert "4.49 % of its non-embedding parameters" in (FOLDER / "preset" / "paper.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("preset", "shape", "kept", "share"),
    [("paper", (8, 448, 7, 7, 896), 16_074_688, "4.49 %"), ("paper-16", (16, 448, 7, 1, 486), 17_814_976, "4.98 %")],
)
def test_the_papers_presets_leave_what_method_6_says_of_qwen2_to_the_unit(preset, shape, kept, share):
    """Against transformers' own model of the shape, on the meta device."""
    settings = load_arguments([f"--preset={preset}"]).settings
    start = Sizes.of_config({**QWEN2_CONFIG, "model_type": "qwen2"})
    assert start == QWEN2_HALF_BILLION and (start.non_embedding_parameters, start.embedding_parameters) == (357_898_112, 136_134_656)
    last = sizes_by_step(settings.steps, start, Shape.of_config({**QWEN2_CONFIG, "model_type": "qwen2"}))[-1]
    assert (last.layers, last.hidden, last.heads, last.kv_heads, last.intermediate) == shape
    with torch.device("meta"):
        cut = {"num_hidden_layers": shape[0], "hidden_size": shape[1], "num_attention_heads": shape[2], "num_key_value_heads": shape[3]}
        model = AutoModelForCausalLM.from_config(Qwen2Config(**{**QWEN2_CONFIG, **cut, "intermediate_size": shape[4], "head_dim": 64}))
    counted = sum(weight.numel() for name, weight in model.named_parameters() if "embed_tokens" not in name)
    assert counted == last.non_embedding_parameters == kept
    assert f"{counted / 357_898_112:.2%}".replace("%", " %") == share
    text = (FOLDER / "preset" / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert share in text and settings.backbone == "Qwen/Qwen2-0.5B"


def test_smollm2_keeps_five_percent_of_all():
    """The share of all that was worked out by hand, with the tokens that amazon-games needs."""
    smollm2 = Sizes(hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152, tied=True)
    settings = load_arguments(["--preset=smollm2"]).settings
    shape = Shape("llama", smollm2.hidden, smollm2.layers, smollm2.heads, smollm2.kv_heads, smollm2.intermediate)
    assert shape_problems(settings.steps, shape) == []
    last = sizes_by_step(settings.steps, smollm2, shape, 9203)[-1]
    assert (last.layers, last.hidden, last.heads, last.kv_heads, last.intermediate, last.vocab) == (10, 192, 3, 3, 600, 9203)
    assert round(100 * last.non_embedding_parameters / smollm2.non_embedding_parameters, 2) == 4.65
    assert round(100 * last.total_parameters / smollm2.total_parameters, 2) == 4.98
