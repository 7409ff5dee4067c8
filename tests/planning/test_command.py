"""`python -m recbole_prunerec plan`: what it answers to what is asked, mistakes included; and all that it shows are models that load anywhere."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf_file import write_gguf
from naive_importance import VOCABULARY
from planned import ask, refused, steps, table
from pydantic import TypeAdapter
from small_data import write_small
from test_main import run as shell
from tiny import FAMILIES, batch, qwen2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone import hub
from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.decide import DECISIONS
from recbole_prunerec.prune.search import Space, unlike
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.report.tables import si
from recbole_prunerec.settings import Step
from recbole_prunerec.text.tokenizer import train_tokenizer

SMOLLM2 = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOLLM2 |= {"num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True}
SMALL = ["--dataset=small", "--topk=2,5", "--ranking.beams=8", "--preset=tiny"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a small dataset and the config of SmolLM2-135M, without tokenizer and weights."""
    write_small(tmp_path / "dataset")
    write_config(tmp_path / "smollm2", SMOLLM2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_config(folder: Path, config: dict) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))


def test_smollm2_by_its_config(capsys):
    report = ask(capsys, "--backbone=smollm2", "--vocab=9203")
    assert report.startswith(
        "backbone=smollm2: 106,203,456 non-embedding parameters, 134,515,008 in all\n"
        "tokens: 9,203 of 49,152 are reckoned with; --dataset=... tells how many its titles need\n"
        "budget=0.05 of all parameters: 6,725,750\n"
        "shapes that meet it: 448 (kv_policy=group, round_to=16)\n"
    )
    rows = table(report)
    assert list(rows) == ["backbone", *map(str, range(1, 11))]
    # 59.2 G: 2 * 220 * 134,515,008; 523 MiB: 4 * (134,515,008 + 2 * 30 * 3 * 64 * 220)
    assert rows["backbone"] == ["30", "576", "9", "3", "1,536", "106 M (100.00 %)", "135 M (100.00 %)", "59.2 G", "523 MiB"]
    assert rows["1"][:8] == ["11", "192", "3", "1", "608", "4.94 M (4.65 %)", "6.71 M (4.98 %)", "0.07"]
    assert f'\npython run_recbole.py --model=PruneRec --backbone=smollm2 --steps="{report.split("steps: ")[1].splitlines()[0]}"\n' in report
    assert steps(report) == [
        {"do": "vocabulary"},
        {"do": "finetune"},
        {"do": "width", "heads": 3, "hidden": 192, "kv_policy": "group"},
        {"do": "mlp", "intermediate": 608},
        {"do": "depth", "layers": 11},
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_the_pages_examples_are_what_the_command_prints(number, here, capsys):
    qwen2 = {"num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    write_config(here / "qwen2", {**SMOLLM2, "model_type": "qwen2", **qwen2, "vocab_size": 151_936})
    lines = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8").splitlines()
    start = [place for place, line in enumerate(lines) if line.startswith("    $ python -m recbole_prunerec plan ")][number]
    end = next(place for place in range(start, len(lines)) if lines[place].startswith("    python run_recbole.py ")) + 1
    assert ask(capsys, *shlex.split(lines[start])[5:]).splitlines() == [line.removeprefix("    ") for line in lines[start + 1 : end]]


def test_what_is_shown_is_what_the_search_finds_with_the_options(capsys):
    report = ask(capsys, "--backbone=smollm2", "--budget=0.3", "--count=non_embedding", "--kv-policy=expand", "--round_to", "64", "--shapes=3")
    whole = Sizes(hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49_152, tied=True)
    found = Space(whole, "llama", "expand", 64).within(int(0.3 * whole.non_embedding_parameters), "non_embedding")
    assert "budget=0.3 of the non-embedding parameters: 31,861,036\n" in report
    assert f"shapes that meet it: {len(found):,} (kv_policy=expand, round_to=64)\n" in report
    shown = [each.sizes for each in unlike(found, 3)]
    sizes = [[str(s.layers), str(s.hidden), str(s.heads), str(s.kv_heads), f"{s.intermediate:,}"] for s in shown]
    assert [row[:5] for name, row in table(report).items() if name != "backbone"] == sizes
    operations = [row[8] for name, row in table(report).items() if name != "backbone"]
    assert operations == [si(2 * 220 * (each.non_embedding_parameters + 49_152 * each.hidden)) for each in shown]
    assert steps(report)[0] == {"do": "finetune"} and "tokens: all 49,152 are reckoned with" in report


def test_the_command_that_misfitting_steps_name(here, capsys):
    model = qwen2(vocab_size=300)
    model.save_pretrained(here / "model")
    train_tokenizer(["Film A"], 300).save_pretrained(here / "model")
    with pytest.raises(UserError) as caught:
        load_arguments(["--model=PruneRec", "--backbone=model", "--preset=tiny"])
    command = str(caught.value).splitlines()[-1].rpartition(": ")[2]
    python, module, package, name, *argv = shlex.split(command)
    assert (python, module, package, name) == ("python", "-m", "recbole_prunerec", "plan")
    report = ask(capsys, *argv)
    given = shlex.split(report.splitlines()[-1])[2:]
    settings = load_arguments([*given, "--preset=tiny"]).settings  # which fit now
    assert [step.do for step in settings.steps] == [step["do"] for step in steps(report)]


def test_titles_tell_the_tokens_and_what_a_user_reads(capsys, here):
    report = ask(capsys, *SMALL, "--budget=0.2", "--shapes=2")
    kept, whole = map(int, re.search(r"tokens: (\d+) of (\d+) stay, which the titles of small need\n", report).groups())
    assert 256 < kept < whole
    tokens = int(re.search(r"A user: (\d+) tokens, the mean of a prompt and 8 titles of small\.\n", report)[1])
    backbone = table(report)["backbone"]
    assert backbone[7] == si(2 * tokens * (788_608 + 128 * whole))
    assert [step["do"] for step in steps(report)] == ["vocabulary", "finetune", "width", "mlp", "depth"]
    assert shlex.split(report.splitlines()[-1])[2:-1] == ["--model=PruneRec", "--backbone=tiny", *SMALL]
    assert {path.name for path in here.iterdir()} == {"dataset", "smollm2"}  # nothing is written
    load_arguments(shlex.split(report.splitlines()[-1])[2:])


def test_a_tokenizer_that_cannot_be_trimmed_keeps_its_tokens(here, capsys):
    words = {word: number for number, word in enumerate(["<unk>", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:\"\n'., "])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    write_config(here / "words", {**SMOLLM2, "vocab_size": 100})
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="\n").save_pretrained(here / "words")
    report = ask(capsys, "--backbone=words", *SMALL)
    assert "\ntokens: all 100 stay: its tokenizer (" in report and "is WordLevel and no byte-level BPE\n" in report
    assert [step["do"] for step in steps(report)] == ["finetune", "width", "mlp", "depth"]


def test_a_teacher_is_pruned_as_it_is(here, capsys):
    report = ask(capsys, "--teacher=smollm2", "--budget=0.5")
    assert report.startswith("teacher=smollm2: 106,203,456 ") and steps(report)[0]["do"] == "width"
    assert "--backbone=tiny --teacher=smollm2 " in report


def test_the_header_of_a_gguf_file_is_enough(here, capsys):
    write_gguf(here / "model.gguf", **{"attention.head_count_kv": 2})
    report = ask(capsys, "--backbone=model.gguf", "--count=non_embedding", "--budget=0.3", "--round_to=4", "--preset=tiny")
    assert table(report)["backbone"][:5] == ["3", "48", "6", "2", "56"]


def test_a_name_on_the_hub_is_asked_for_its_config_alone(here, capsys, monkeypatch):
    def folder(name, key, weights, revision):
        assert (name, key, weights, revision) == ("Qwen/Qwen2-0.5B", "backbone", False, "v1")
        return here / "smollm2"

    monkeypatch.setattr("recbole_prunerec.planning.proposal.hub_folder", folder)
    assert ask(capsys, "--backbone=Qwen/Qwen2-0.5B", "--revision=v1").startswith("backbone=Qwen/Qwen2-0.5B: 106,203,456 non-embedding parameters")
    assert refused("--backbone=Qwen/Qwen2-0.5B", "--revision=v1", "--vocab=50000") == [
        "vocab=50000 is more than the 49,152 tokens that the backbone has; choose at most 49152"
    ]
    assert hub.hub_folder is not folder


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--budget=0.003"],  # of 134,515,008
            "shapes that meet it: none; the nearest has 2,386,320\n"  # 49,152 * 48 and 27,024 as below
            "the embedding of the smallest hidden size, 48, takes 2,359,296 alone; "
            "let tokens go, with --dataset=... or --vocab=..., or count non_embedding, or raise the budget\n",
        ),
        (
            ["--budget=0.003", "--vocab=9203"],
            "shapes that meet it: none; the nearest has 468,768\n"
            "the embedding of the smallest hidden size, 48, takes 441,744 alone; count non_embedding, or raise the budget\n",
        ),
        (["--budget=0.0034", "--vocab=9203"], "shapes that meet it: none; the nearest has 468,768\n\n"),
        # 48 * 64 * (3 + 2 + 3) of three heads on one, 3 * 48 * 16 of the MLP, 3 * 48 of norms
        (["--budget=0.0002", "--count=non_embedding"], "shapes that meet it: none; the nearest has 27,024\n\n"),
        (["--budget=1e-12"], "budget=1e-12 of all parameters: 1\nshapes that meet it: none; "),
    ],
)
def test_a_budget_that_no_shape_meets_gets_the_nearest(capsys, argv, said):
    report = ask(capsys, "--backbone=smollm2", *argv)
    assert said in report
    assert list(table(report)) == ["backbone", "1"] and table(report)["1"][:5] == ["1", "48", "3", "1", "16"]


NOT_TINY = "backbone=smollm2 has no tokenizer (tokenizer.json, or vocab.json and merges.txt); save the model's tokenizer in the same folder"


@pytest.mark.parametrize(
    ("argv", "problems"),
    [
        (
            ["--budget=5%", "--count=totl", "--round_to=0", "--kv_policy=grouped", "--vocab=all", "--shapes=0", "--bugdet=1", "--epohcs=3"],
            [
                "budget='5%': expected a number",
                "count=totl: expected one of total, non_embedding; did you mean 'total'?",
                "kv_policy=grouped: expected one of expand, group, balanced, merge; did you mean 'group'?",
                "round_to=0: expected at least 1",
                "vocab='all': expected a whole number",
                "shapes=0: expected at least 1",
                "bugdet is unknown; did you mean 'budget'?",
                "epohcs is not a known key; did you mean 'epochs'?",
            ],
        ),
        (["--budget=0"], ["budget=0: expected more than 0.0"]),
        (
            ["--backbone=smollm2", "--budget=1", "--round_to=1000", "--vocab=50000", "--revision=v1"],
            [
                "budget=1: expected less than 1.0",
                "revision=v1 is of a backbone on the Hugging Face hub, got backbone=smollm2; leave it out",
                "round_to=1000 is more than the backbone's hidden size, 576; choose at most that, such as 16",
                "vocab=50000 is more than the 49,152 tokens that the backbone has; choose at most 49152",
            ],
        ),
        (["--probe", "--shapes"], ["argument --shapes: expected one argument; see python -m recbole_prunerec plan --help"]),
        (
            ["--probe", "--round_to=129", "--ranking.assistant=SASRec"],
            [
                "--probe trains and ranks, and no data are named; add --dataset=<name>, such as ml-100k",
                "ranking.assistant=SASRec cannot help in a probe, which trains no other model; leave it out",
                "round_to=129 is more than the backbone's hidden size, 128; choose at most that, such as 16",
            ],
        ),
        (["--backbone=smollm2", "--dataset=smal"], None),
        (["--backbone=smollm2", *SMALL], [NOT_TINY]),
        (["--backbone=smollm2", *SMALL, "--probe"], [NOT_TINY, "backbone=smollm2 has no weights (model.safetensors)"]),
        (["--vocab=10", *SMALL], ["vocab=10 is told by the titles of dataset=small; leave one of the two out"]),
        (
            ["--fresh", "--dry_run"],
            [
                "--fresh starts a probe anew, and there is none; add --probe, or leave it out",
                "--dry_run tells what a probe takes, and there is none; add --probe, or leave it out",
            ],
        ),
        (
            ["--model=SASRec", "--steps.1.heads=2"],
            [
                "--model=SASRec: this command decides on that itself; leave it out",
                "--steps.1.heads=2: this command decides on that itself; leave it out",
            ],
        ),
        (["--budget=0.1", "--kv_policy=group", "--kv-policy=merge"], ["--kv_policy is given twice, as group and as merge; leave one out"]),
        (["--backbone=dataset"], ["backbone=dataset is a folder without config.json, so it holds no Hugging Face model"]),
        (["--backbone=./nowhere"], ["backbone=./nowhere is not a folder; give the path of one with a Hugging Face model"]),
    ],
)
def test_mistakes_are_told_all_at_once(argv, problems):
    if problems is None:
        found = refused(*argv)
        assert found[0].startswith("dataset=smal is not there: ") and found[1:] == [NOT_TINY]
    else:
        assert refused(*argv) == problems


def test_mistakes_are_told_without_a_heavy_import(blocked):
    done = shell(blocked, "plan", "--backbone=smollm2", "--budget=2", "--round_to=600")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-3:] == [
        "2 problems:",
        "  - budget=2: expected less than 1.0",
        "  - round_to=600 is more than the backbone's hidden size, 576; choose at most that, such as 16",
    ]


LOAD = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model, kept = AutoModelForCausalLM.from_pretrained(folder), load_file(Path(folder) / "seen.safetensors")
    with torch.no_grad():
        same = torch.equal(model(input_ids=kept["ids"]).logits, kept["logits"])
    print(Path(folder).name, same, sum(parameter.numel() for parameter in model.parameters()))
assert not any(name.startswith("recbole_prunerec") for name in sys.modules)
"""


def test_every_shape_shown_goes_through_surgery_and_loads_elsewhere_with_equal_logits(tmp_path, capsys, here):
    """Of a tiny model of each family by each policy: cut by the shown steps, saved, and loaded by transformers alone in another process."""
    from safetensors.torch import save_file

    folders, expected = [], []
    ids = batch(2)["input_ids"]
    for family, make in FAMILIES.items():
        for policy, most in (("group", 3), ("expand", 1), ("balanced", 1), ("merge", 1)):
            whole = make(dtype=torch.float32)
            space = Space(Sizes.of(whole), family, policy, 8)
            for number, shape in enumerate(unlike(space.within(int(0.3 * Sizes.of(whole).total_parameters), "total"), most)):
                model = whole
                for step in TypeAdapter(list[Step]).validate_python([step.model_dump(exclude_unset=True) for step in space.steps(shape.sizes)]):
                    random = step.model_copy(update={"criterion": "random"})
                    model = apply(DECISIONS[step.do](model, [batch(2)], VOCABULARY, random, None, (number,)).plan, model)
                assert Sizes.of(model) == shape.sizes
                folder = tmp_path / "shapes" / f"{family}-{policy}-{number}"
                model.save_pretrained(folder)
                with torch.no_grad():
                    save_file({"ids": ids, "logits": model(input_ids=ids).logits}, folder / "seen.safetensors")
                folders.append(str(folder))
                expected.append(f"{folder.name} True {shape.sizes.total_parameters}")
    assert len(folders) == 4 * 6
    done = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True)
    assert done.stdout.splitlines() == expected, done.stderr
