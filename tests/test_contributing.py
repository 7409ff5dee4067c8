"""CONTRIBUTING.md's patches are true: each applies to this tree, alone and after the others, and what it adds works there."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATCHES = dict(re.findall(r"^## Add a (\w+)\n(?:(?!^## ).)*?^```diff\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
TRY = """
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import batch, qwen2, smollm3
from tiny_run import SETTINGS, TOKENIZER, backbone, samples

import recbole_prunerec
from recbole_prunerec import pipeline
from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.softmax import Vocabulary
from recbole_prunerec.importance.criteria import CRITERIA
from recbole_prunerec.importance.hooks import bypassed
from recbole_prunerec.importance.layers import mean_nll
from recbole_prunerec.prune.decide import DECISIONS
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.restore.losses import LOSSES
from recbole_prunerec.settings import Settings

found = {"package": recbole_prunerec.__file__}
here, model, batches = Path.cwd(), qwen2(num_hidden_layers=4), [batch()]

student, teacher = (torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
found["loss"] = [student.tolist(), teacher.tolist(), LOSSES["brier"](student, teacher, 2.0).tolist()]
found["kd_loss"] = load_arguments(["--restore.kd_loss=brier"]).settings.restore.kd_loss

step = load_arguments(["--steps.2.criterion=euclidean", "--steps.2.kv_policy=expand", "--steps.2.hidden=24"]).settings.steps[1]
scores = CRITERIA[step.criterion].width(model, [], Vocabulary(97), step, (0,), None, None)
weights = dict(model.named_parameters())
found["criterion"] = {
    "head 2 of layer 1": (scores.heads[1, 2].item(), weights["model.layers.1.self_attn.o_proj.weight"][:, 16:24].norm().item()),
    "hidden 5": (scores.hidden[5].item(), weights["model.embed_tokens.weight"][:, 5].norm().item()),
    "MLP 7 of layer 2": (scores.mlp[2, 7].item(), weights["model.layers.2.mlp.down_proj.weight"][:, 7].norm().item()),
    "layer 3": (
        scores.layers[3].item(),
        sum(weights[f"model.layers.3.{part}.weight"].square().sum().item() for part in ("self_attn.o_proj", "mlp.down_proj")) ** 0.5,
    ),
}
hidden = DECISIONS["width"](model, batches, Vocabulary(97), step).plan.hidden
found["kept by criterion"] = (hidden, sorted(weights["model.embed_tokens.weight"].norm(dim=0).topk(24).indices.tolist()))

step = load_arguments(["--steps=[{do: finetune}, {do: block, layers: 2}]"]).settings.steps[1]
blocks = [[0, 1], [0, 3], [2, 3]]  # what stays where two in a row go
losses = [mean_nll(apply(Plan.of("depth", "", Sizes.of(model), layers=layers), model), batches, Vocabulary(97)) for layers in blocks]
found["step"] = (DECISIONS["block"](model, batches, Vocabulary(97), step).plan.layers, blocks[losses.index(min(losses))], losses)
steps = [{"do": "finetune"}, {"do": "block", "layers": 2}]
run = Settings.model_validate({**SETTINGS.model_dump(), "steps": steps, "epochs": 1, "restore": {"epochs": 1}})
records = pipeline.run(backbone(), TOKENIZER, samples(), run, here / "run")
found["run"] = ([record.name for record in records], json.loads((here / "run" / "2-block" / "config.json").read_text())["num_hidden_layers"])

model = smollm3(num_hidden_layers=4, no_rope_layer_interval=2)
with torch.no_grad(), bypassed(model, [0]):
    wanted = model(batches[0]["input_ids"]).logits
cut = apply(Plan.of("depth", "", Sizes.of(model), layers=[1, 2, 3]), model)
with torch.no_grad():
    found["family"] = ((cut(batches[0]["input_ids"]).logits - wanted).abs().max().item(), cut.config.no_rope_layers)

(here / "data" / "goodbooks").mkdir(parents=True)
(here / "data" / "goodbooks" / "goodbooks.inter").write_text("user_id:token\\titem_id:token\\ttimestamp:float\\nu\\ti\\t1\\n")
(here / "data" / "goodbooks" / "goodbooks.item").write_text("item_id:token\\toriginal_title:token_seq\\ni\\tA book\\n")
settings = load_arguments(["--dataset=goodbooks", f"--data_path={here / 'data'}"]).settings
found["dataset"] = [settings.title_field, settings.split, settings.merge_titles, settings.recbole["item_inter_num_interval"]]

files = [f"tests/{name}.py" for name in ("restore/test_losses", "prune/test_surgery", "test_properties")]
found["tests"] = pytest.main(["-n", "0", "-x", "-p", "no:cacheprovider", "-k", "brier or smollm3 or goodbooks", *files])
sys.stdout.write("\\nFOUND" + json.dumps(found))
"""


def copy(to: Path) -> Path:
    """What patches change, as it is here; the YAML files stand in the package as well, as in an installed one."""
    for name in ("recbole_prunerec", "properties", "tests", "docs"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    (to / "recbole_prunerec" / "properties").symlink_to(to / "properties", target_is_directory=True)
    return to


def git_apply(tree: Path, patch: str) -> str:
    """Apply a patch; what git says where it does not fit."""
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}  # in a repository git would leave out what is not its own
    done = subprocess.run(["git", "apply", "-"], input=patch, cwd=tree, env=environment, capture_output=True, text=True)
    return done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return copy(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def found(tree):
    """What a process finds where all patches are applied."""
    assert [git_apply(tree, patch) for patch in PATCHES.values()] == [""] * 5
    paths = os.pathsep.join([str(tree), str(tree / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", TRY], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    output, _, result = done.stdout.rpartition("FOUND")
    return json.loads(result) | {"output": output}


def softmax(values):
    largest = max(values)
    powers = [math.exp((value - largest) / 2.0) for value in values]  # temperature 2
    return [power / sum(powers) for power in powers]


def test_there_is_a_patch_for_everything_that_can_be_added():
    assert list(PATCHES) == ["loss", "criterion", "step", "family", "dataset"]


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_applies_alone(name, tmp_path):
    assert git_apply(copy(tmp_path), PATCHES[name]) == ""
    assert git_apply(tmp_path, PATCHES[name]) != ""  # it is there now


def test_it_is_the_patched_package_that_is_tried(found, tree):
    assert Path(found["package"]).parent == tree / "recbole_prunerec"


def test_the_loss_is_what_its_formula_says(found):
    student, teacher, values = found["loss"]
    wanted = [4 * sum((a - b) ** 2 for a, b in zip(softmax(s), softmax(t), strict=True)) for s, t in zip(student, teacher, strict=True)]
    assert values == pytest.approx(wanted, rel=1e-12) and found["kd_loss"] == "brier"


def test_the_criterion_scores_and_decides(found):
    for part, (score, wanted) in found["criterion"].items():
        assert score == pytest.approx(wanted, rel=1e-6), part
    kept, wanted = found["kept by criterion"]
    assert kept == wanted and len(kept) == 24


def test_the_step_removes_the_block_that_costs_least(found):
    kept, wanted, losses = found["step"]
    assert kept == wanted and len(set(losses)) == 3
    assert found["run"] == [["finetune", "block"], 2]


def test_the_family_is_cut_like_the_others(found):
    difference, rope = found["family"]
    assert difference < 1e-6 and rope == [0, 1, 0]


def test_the_dataset_has_its_settings(found):
    assert found["dataset"] == ["original_title", "leave_one_out", True, "[20,inf)"]


def test_the_patches_bring_tests_that_pass(found):
    assert found["tests"] == 0, found["output"]
    assert int(re.search(r"(\d+) passed", found["output"])[1]) > 20


def test_the_patched_files_are_in_style(found, tree):
    files = re.findall(r"^\+\+\+ b/(.*\.py)$", "".join(PATCHES.values()), re.MULTILINE)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *sorted(set(files))], cwd=tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
