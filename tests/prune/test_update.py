"""New weights of a plan: they lie beside it, are checked, and are those that the cut model has."""

import pytest
import torch
from tiny import llama, qwen2

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.prune.update import read_update, with_update

NAME = "model.layers.1.mlp.down_proj.weight"
PLAN = Plan.of("mlp", "sparsegpt", Sizes.of(qwen2()), intermediate=[[1, 5, 7]] * 3)
NEW = {NAME: torch.randn(48, 56, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}


def written(folder):
    plan, data = with_update(PLAN, NEW)
    (folder / plan.update.name).write_bytes(data)
    return plan, folder / plan.update.name


def test_the_plan_replays_with_its_file(tmp_path):
    plan, _ = written(tmp_path)
    again = Plan.model_validate_json(plan.model_dump_json())
    update = read_update(again, tmp_path)
    assert update.keys() == NEW.keys() and torch.equal(update[NAME], NEW[NAME])
    model, without = qwen2(), apply(PLAN, qwen2())
    cut = apply(again, model, update)
    for name, parameter in cut.named_parameters():
        assert torch.equal(parameter, NEW[NAME][:, [1, 5, 7]] if name == NAME else dict(without.named_parameters())[name])
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, qwen2().model.layers[1].mlp.down_proj.weight)
    assert read_update(PLAN, tmp_path) == {}


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_file_that_is_not_the_plans_is_refused(tmp_path, damage):
    plan, path = written(tmp_path)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError) as error:
        read_update(plan, tmp_path)
    assert str(error.value).startswith(f"{path} is {'missing' if damage == 'missing' else 'damaged'}")


def test_surgery_wants_the_weights_that_the_plan_names():
    plan, _ = with_update(PLAN, NEW)
    with pytest.raises(UserError, match=r"the plan needs the weights of plan\.safetensors, which lies beside it, got 0 of them"):
        apply(plan, qwen2())
    with pytest.raises(UserError, match=r"the plan needs no new weights, got 1 of them"):
        apply(PLAN, qwen2(), NEW)
    for wrong in ({NAME: torch.zeros(3, 3)}, {"model.layers.9.mlp.down_proj.weight": NEW[NAME]}):
        with pytest.raises(UserError, match=r"model\.layers\.\d\.mlp\.down_proj\.weight is no weight of this model, or of another shape"):
            apply(plan, qwen2(), wrong)
    with pytest.raises(UserError, match="made for another model"):
        apply(plan, llama(), NEW)
