"""Every criterion, through choice and surgery, into a folder that any process loads."""

import pytest
import torch
from naive_importance import BATCHES, SOFTMAXES
from tiny import FAMILIES, llama, qwen2
from transformers import AutoModelForCausalLM

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import in_own_memory
from recbole_prunerec.importance.criteria import CRITERIA
from recbole_prunerec.prune.decide import DECISIONS
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.prune.update import with_update
from recbole_prunerec.settings import Depth, Mlp, Width

MAKERS = {**FAMILIES, "llama biased": lambda **changes: llama(attention_bias=True, mlp_bias=True, **changes)}
STEPS = {"width": Width(do="width", heads=3, hidden=24), "mlp": Mlp(do="mlp", intermediate=20), "depth": Depth(do="depth", layers=2)}
SCORED = [(name, kind) for name, criterion in CRITERIA.items() for kind in STEPS if getattr(criterion, kind) is not None]
CHANGE_WEIGHTS = {"sparsegpt", "laco"}


def cut(model, step, softmax):
    decision = DECISIONS[step.do](model, BATCHES, softmax, step)
    plan = with_update(decision.plan, decision.update)[0] if decision.update else decision.plan
    return plan, decision, apply(plan, model, decision.update)


@pytest.mark.parametrize("softmax", [softmax for softmax, _ in SOFTMAXES.values()], ids=SOFTMAXES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(("name", "kind"), SCORED)
def test_a_criterion_leads_to_a_folder_that_loads(name, kind, make, softmax, tmp_path):
    model = make(num_hidden_layers=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step = STEPS[kind].model_copy(update={"criterion": name})
    plan, decision, student = cut(model, step, softmax)
    assert plan.criterion == name and plan.step == kind and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    sizes = Sizes.of(student)
    assert sizes == plan.sizes_after
    wanted = {"width": (sizes.heads, sizes.hidden) == (3, 24), "mlp": sizes.intermediate == 20, "depth": sizes.layers == 2 or name == "blockpruner"}
    assert wanted[kind]
    assert plan.filled == (["hidden"] if kind == "width" and name in ("sparsegpt", "flap") else None)
    folds = name == "flap" and sizes.o_bias
    assert bool(decision.update) == (name in CHANGE_WEIGHTS or folds)
    student.save_pretrained(tmp_path)
    loaded = in_own_memory(AutoModelForCausalLM.from_pretrained(tmp_path))
    with torch.no_grad():
        logits = student(BATCHES[0]["input_ids"]).logits
        assert logits.isfinite().all() and logits.std() > 1e-3
        assert torch.equal(loaded(BATCHES[0]["input_ids"]).logits, logits) and Sizes.of(loaded) == sizes


POLICIES = [("expand", 4, None, 4), ("group", 3, None, 1), ("balanced", 4, None, 2), ("merge", 4, 2, 2)]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("policy", "heads", "kv_heads", "after"), POLICIES)
@pytest.mark.parametrize("name", [name for name, kind in SCORED if kind == "width"])
def test_heads_follow_every_policy(name, policy, heads, kv_heads, after, scope):
    step = Width(do="width", heads=heads, hidden=48, kv_policy=policy, kv_heads=kv_heads, scope=scope, criterion=name)
    model, (softmax, _) = qwen2(seed=3), SOFTMAXES["vocabulary"]
    plan, decision, student = cut(model, step, softmax)
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (heads, after)
    if policy in ("group", "expand"):
        scores = CRITERIA[name].width(model, BATCHES, softmax, step, (0,), None, lambda scores: []).heads
        rows = [scores.mean(0)] * 3 if scope == "global" else scores
        for layer, kept in zip(rows, plan.query_heads, strict=True):
            groups = [[0, 1, 2], [3, 4, 5]]
            best = sorted(layer.argsort(descending=True)[:4].tolist()) if policy == "expand" else max(groups, key=lambda group: layer[group].sum())
            assert kept == best
    if name == "sparsegpt":
        for layer, kept in enumerate(plan.query_heads):
            new, columns = decision.update[f"model.layers.{layer}.self_attn.o_proj.weight"], [8 * head + dim for head in kept for dim in range(8)]
            assert torch.equal(student.model.layers[layer].self_attn.o_proj.weight, new[:, columns])
            assert new.count_nonzero() == 48 * len(columns)
