"""The smoke run as a user starts it, and everything it must leave behind."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_prunerec.arguments import load_arguments

ROOT = Path(__file__).parent.parent
STEPS = ["1-finetune", "2-width", "3-mlp", "4-depth"]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run_recbole.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One smoke run: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    printed = run(folder, "--model=PruneRec", "--preset=quick")
    return (folder / "saved" / "latest").resolve(), printed


@pytest.fixture(scope="module")
def results(finished) -> dict:
    return json.loads((finished[0] / "results.json").read_text())


def test_rows_are_popularity_a_baseline_the_teacher_and_each_step_before_and_after(results):
    rows = [(row["system"], row["step"], row["step_name"], row["restored"], row["test_rows"]) for row in results["rows"]]
    assert rows == [
        ("Pop", None, None, None, 64),
        ("SASRec", None, None, None, 64),
        ("BIGRec (teacher)", 1, "finetune", None, 64),
        ("PruneRec", 2, "width", False, 32),
        ("PruneRec", 2, "width", True, 32),
        ("PruneRec", 3, "mlp", False, 32),
        ("PruneRec", 3, "mlp", True, 32),
        ("PruneRec", 4, "depth", False, 32),
        ("PruneRec", 4, "depth", True, 64),
    ]
    assert "not converged" in results["rows"][1]["note"]
    assert results["worthless"] is True


def test_parameters_are_counted_and_shrink(results, finished):
    for row in results["rows"][2:]:
        weights = load_file(finished[0] / f"{row['step']}-{row['step_name']}" / "model.safetensors")
        if row["restored"] is not False:
            assert row["parameters"]["total"] == sum(weight.numel() for weight in weights.values())
    shares = [row["parameters"]["share_non_embedding"] for row in results["rows"][2:]]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True) and 0.09 < shares[-1] < 0.1
    flops = [row["flops_per_user"] for row in results["rows"] if row["restored"]]
    assert flops == sorted(flops, reverse=True) and all(value > 0 for value in flops)


def test_metrics_and_retention_follow_from_the_ranks(results, finished):
    """Hand-written HR and NDCG from ranks.csv against RecBole's evaluator, and retention on the same rows."""

    def metrics(name: str, rows=None) -> dict[str, float]:
        table = pd.read_csv(finished[0] / "ranks" / f"{name}.csv")
        ranks = (table if rows is None else table[table["row"].isin(rows)])["rank"].to_numpy()
        found = {f"hit@{k}": float(np.mean(ranks <= k)) for k in (10, 20)}
        return found | {f"ndcg@{k}": float(np.mean([1 / np.log2(rank + 1) if rank <= k else 0 for rank in ranks])) for k in (10, 20)}

    for row in results["rows"]:
        name = {"Pop": "Popularity"}.get(row["system"], row["system"]) if row["step"] is None else f"{row['step']}-{row['step_name']}"
        name += "-unrestored" if row["restored"] is False else ""
        assert row["metrics"] == pytest.approx(metrics(name), abs=6e-5)  # RecBole rounds to four places
        if row["step"] is not None:
            rows = pd.read_csv(finished[0] / "ranks" / f"{name}.csv")["row"]
            teacher, own = metrics("1-finetune", set(rows)), metrics(name)
            expected = None if 0 in teacher.values() else np.mean([own[key] / teacher[key] for key in teacher])
            assert row["retention"] == (None if expected is None else pytest.approx(expected))


def test_every_system_is_ranked_on_the_same_samples(finished):
    tables = {path.stem: pd.read_csv(path, dtype={"user": str, "target": str}) for path in (finished[0] / "ranks").glob("*.csv")}
    reference = tables["Popularity"].set_index("row")
    assert len(tables) == 9 and reference.index.is_monotonic_increasing
    for table in tables.values():
        same = reference.loc[table["row"]]
        assert (same["user"].to_numpy() == table["user"].to_numpy()).all() and (same["target"].to_numpy() == table["target"].to_numpy()).all()


LOADS_ELSEWHERE = """
import sys, json, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    probe = load_file(folder + "/probe.safetensors")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(probe["input_ids"]).logits[:, -probe["logits"].shape[1] :]
    assert torch.equal(logits, probe["logits"]), folder
    ids = probe["input_ids"]
    written = model.generate(ids)[0, ids.shape[1] :]
    ends = [token in model.generation_config.eos_token_id for token in written.tolist()]
    assert ends.index(True) == len(ends) - 1 if True in ends else len(ends) == 64, ends
    assert tokenizer.decode(ids[0]).startswith("Chosen so far:")
assert not [name for name in sys.modules if name.startswith(("recbole", "recbole_prunerec"))]
"""


def test_every_folder_is_plain_hugging_face_with_equal_logits(finished, tmp_path):
    folders = [str(finished[0] / step) for step in STEPS]
    done = subprocess.run(
        [sys.executable, "-c", LOADS_ELSEWHERE, *folders], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for folder in folders:
        card = (Path(folder) / "README.md").read_text()
        assert card.startswith("---\n") and "started from random values" in card and "worth nothing" in card


def test_plans_are_stored_and_agree_with_the_configs(finished):
    for step in STEPS[1:]:
        plan, config = (json.loads((finished[0] / step / name).read_text()) for name in ("plan.json", "config.json"))
        after = plan["sizes_after"]
        assert (after["hidden"], after["heads"], after["kv_heads"], after["intermediate"], after["layers"]) == tuple(
            config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "num_hidden_layers")
        )
    assert plan["sizes_after"] == plan["sizes_after"] | {"hidden": 64, "heads": 2, "kv_heads": 1, "intermediate": 128, "layers": 2}


def test_tables_come_in_every_form_and_say_that_a_smoke_run_is_worthless(finished):
    folder, printed = finished
    for text in (printed.stdout, *((folder / f"results.{form}").read_text() for form in ("md", "tex", "csv"))):
        assert "worth nothing" in text and "BIGRec (teacher)" in text
    with (folder / "results.csv").open() as file:
        next(file)
        assert len(list(csv.DictReader(file))) == 9
    assert "backbone=tiny starts from random weights" in printed.stderr and "--backbone=Qwen/Qwen2-0.5B" in printed.stderr
    assert "/" not in json.loads((folder / "results.json").read_text())["command"]


def test_comparisons_pair_the_final_model_with_popularity(results):
    pairs = {(each["system"], each["against"], each["metric"]): each for each in results["comparisons"]}
    each = pairs["PruneRec", "Pop", "ndcg@10"]
    by_name = {row["system"]: row["metrics"]["ndcg@10"] for row in results["rows"] if row["test_rows"] == 64}
    assert each["rows"] == 64 and each["low"] <= each["difference"] <= each["high"]
    assert each["difference"] == pytest.approx(by_name["PruneRec"] - by_name["Pop"], abs=1.1e-4)


def test_tensorboard_has_losses_importance_and_the_table(finished):
    board = finished[0] / "tensorboard"
    width = EventAccumulator(str(board / "2-width")).Reload().Tags()
    assert {"train/loss", "train/kd", "train/ce", "train/learning_rate", "eval/loss"} <= set(width["scalars"])
    assert {"importance/head_divergence", "importance/head_score", "importance/hidden"} <= set(width["images"])
    assert "table/ndcg@10" in EventAccumulator(str(board / "table" / "PruneRec-4-depth")).Reload().Tags()["scalars"]


def test_config_yaml_gives_the_same_settings_again(finished):
    first = load_arguments(["--model=PruneRec", "--preset=quick"]).settings
    assert load_arguments([f"--config_files={finished[0] / 'config.yaml'}"]).settings == first


def test_the_same_command_prints_the_finished_table(finished):
    folder, printed = finished
    again = run(folder.parent.parent, "--model=PruneRec", "--preset=quick")
    table = printed.stdout.rsplit("\n", 3)[0]
    assert table and table in again.stdout and "--fresh" in again.stdout


def test_a_run_goes_on_after_the_last_whole_step_with_the_same_weights(finished, tmp_path):
    """Remove what comes after step 2 as a cut run would lack it: the rest is made again, to the bit."""
    folder = tmp_path / "saved" / finished[0].name
    shutil.copytree(finished[0], folder)
    for name in ("3-mlp", "4-depth"):
        shutil.rmtree(folder / name)
    for form in ("json", "md", "csv", "tex"):
        (folder / f"results.{form}").unlink()
    before = (folder / "2-width" / "model.safetensors").stat().st_mtime_ns
    printed = run(tmp_path, "--model=PruneRec", "--preset=quick")
    assert "step 2, width: complete" in printed.stderr and (folder / "2-width" / "model.safetensors").stat().st_mtime_ns == before
    for step in STEPS[2:]:
        first, second = (load_file(path / step / "model.safetensors") for path in (finished[0], folder))
        assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [json.loads((path / "results.json").read_text())["rows"] for path in (finished[0], folder)]
    assert [row["metrics"] for row in rows[0]] == [row["metrics"] for row in rows[1]]


def test_other_backbones_teachers_policies_and_templates(finished, tmp_path):
    """A Llama folder with its own tokenizer as backbone; then its fine-tuned step as the teacher of another run."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import llama
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(finished[0] / "1-finetune")
    model = llama(dtype=torch.float32, vocab_size=len(tokenizer), hidden_size=96, head_dim=16)
    model.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    common = ["--preset=quick", "--test_rows=16", "--training_rows=64", "--valid_rows=16", "--calibration_samples=4", "--compare=[]"]
    common.append("--metrics=Hit,NDCG,ItemCoverage,AveragePopularity")  # the last two look at the training data
    run(tmp_path, "--model=PruneRec", "--backbone=llama", "--template=bigrec", "--packing=false",
        "--steps=[{do: finetune}, {do: width, heads: 4, hidden: 48, kv_policy: balanced}, {do: depth, layers: 2, search: oneshot}]",
        *common)  # fmt: skip
    first = (tmp_path / "saved" / "latest").resolve()
    config = json.loads((first / "3-depth" / "config.json").read_text())
    assert (config["model_type"], config["num_attention_heads"], config["num_key_value_heads"], config["num_hidden_layers"]) == ("llama", 4, 2, 2)
    generation = json.loads((first / "3-depth" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.eos_token_id]
    run(tmp_path, "--model=PruneRec", f"--teacher={first / '1-finetune'}", "--template=bigrec", "--packing=false",
        "--steps=[{do: mlp, intermediate: 24, tau: 0.1, restore: {teacher: previous, kd_loss: js}}]", *common)  # fmt: skip
    second = json.loads(((tmp_path / "saved" / "latest").resolve() / "results.json").read_text())
    assert [(row["system"], row["step"], row["step_name"], row["criterion"]) for row in second["rows"]] == [
        ("Pop", None, None, None),
        ("BIGRec (teacher)", 0, "teacher", None),
        ("PruneRec", 1, "mlp", "prunerec"),
        ("PruneRec", 1, "mlp", "prunerec"),
    ]
    teacher = json.loads((first / "results.json").read_text())["rows"][1]
    assert second["rows"][0]["metrics"]["itemcoverage@10"] == pytest.approx(10 / 1349, abs=6e-5)  # popularity names ten items of all
    assert all({"itemcoverage@10", "averagepopularity@20"} <= set(row["metrics"]) for row in second["rows"])
    assert second["rows"][1]["metrics"] == teacher["metrics"]


def test_recbole_models_run_alone_by_the_same_protocol(tmp_path, results):
    run(tmp_path, "--model=Pop,GRU4Rec,Caser", "--preset=quick", "--epochs=1", "--training_rows=640")
    alone = json.loads((tmp_path / "saved" / "latest" / "results.json").read_text())
    assert [row["system"] for row in alone["rows"]] == ["Pop", "GRU4Rec", "Caser"]
    assert alone["rows"][0]["metrics"] == results["rows"][0]["metrics"]
