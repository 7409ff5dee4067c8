"""The comparison of key/value policies at a small size."""

from dataclasses import replace
from types import SimpleNamespace

import kv_policies
import numpy as np
import pytest
import torch
from kv_policies import POLICIES, Outcome, _of_teacher, _table, equal_steps
from tiny import qwen2
from tiny_run import SETTINGS, TOKENIZER, samples

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import Backbone, load_backbone, load_step
from recbole_prunerec.estimate import sizes_by_step
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.ranking.recommender import ranker
from recbole_prunerec.report.measure import measure
from recbole_prunerec.report.ranks import Ranks
from recbole_prunerec.settings import Depth, Mlp, Width
from recbole_prunerec.text.prompts import Prompts

SMOLLM2 = Sizes(hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=9203, tied=True)
SHAPE = Shape("llama", 576, 30, 9, 3, 1536)
STEPS = (Width(do="width", heads=3, hidden=192), Mlp(do="mlp", intermediate=688), Depth(do="depth", layers=10))


@pytest.mark.parametrize(("policy", "kv_heads"), [("group", 1), ("expand", 3), ("balanced", 3), ("merge", 1)])
def test_policies_leave_as_many_parameters(policy, kv_heads):
    steps = equal_steps(STEPS, policy, SMOLLM2, SHAPE)
    final = sizes_by_step(steps, SMOLLM2, SHAPE)[-1]
    assert (final.heads, final.kv_heads, final.hidden, final.layers) == (3, kv_heads, 192, 10)
    count = 10 * (2 * 192 * 64 * (3 + kv_heads) + 3 * 192 * steps[1].intermediate + 2 * 192) + 192
    usual = 10 * (2 * 192 * 64 * 4 + 3 * 192 * 688 + 2 * 192) + 192
    assert final.non_embedding_parameters == count and abs(count - usual) <= 3 * 192 * 10 / 2
    assert (steps[1].intermediate == 688) == (kv_heads == 1)


@pytest.mark.slow
def test_every_policy_starts_from_one_teacher_and_ranks_validation_rows(tmp_path, monkeypatch):
    data = samples()
    monkeypatch.setattr(kv_policies, "load_samples", lambda *_: data)
    first, width, *others = SETTINGS.steps
    steps = (first, width.model_copy(update={"heads": 2}), *others)
    settings = SETTINGS.model_copy(update={"training_rows": 20, "steps": steps})
    monkeypatch.setattr(kv_policies, "load_arguments", lambda _: SimpleNamespace(settings=settings))

    def loaded(name, *arguments):
        return (
            Backbone(qwen2(0, torch.float32, vocab_size=len(TOKENIZER), num_attention_heads=4), TOKENIZER, "tiny", random=True)
            if name == "tiny"
            else load_backbone(name, *arguments)
        )

    monkeypatch.setattr(kv_policies, "load_backbone", loaded)
    outcomes = _of_teacher("tiny", 3, tmp_path)
    prompts = Prompts(TOKENIZER, data.catalogue, settings.template, settings.max_prompt_tokens)
    for policy, outcome in outcomes.items():
        model = load_step(tmp_path / policy / "3-depth").eval()
        assert Sizes.of(model) == outcome.sizes and outcome.sizes.kv_heads == {"group": 1, "expand": 2, "balanced": 2, "merge": 1}[policy]
        _, expected = measure(ranker(model, prompts, settings, data.valid), data.catalogue, data.valid, outcome.ranks.rows, settings.topk)
        np.testing.assert_array_equal(outcome.ranks.ranks, expected.ranks)
        np.testing.assert_array_equal(outcome.teacher.ranks, outcomes["group"].teacher.ranks)
    assert len(list((tmp_path / "cache").glob("teacher-*"))) == 1 and tuple(outcomes) == POLICIES


def test_the_table_says_what_the_ranks_say():
    users = np.array(["u", "v", "w", "x"])

    def ranked(*values):
        return Ranks(np.arange(4), users, users, np.array(values))

    found = {policy: Outcome(ranked(1, 1, 99, 99), ranked(1, 1, 1, 1), replace(SMOLLM2, layers=10), 688) for policy in POLICIES}
    found["merge"] = replace(found["merge"], ranks=ranked(1, 3, 99, 99))
    found["expand"] = replace(found["expand"], ranks=ranked(1, 1, 1, 99))
    rows, figures = _table("small-0", [found])
    assert [(row["Policy"], row["NDCG@10"], row["HR@10"], row["retention"]) for row in rows] == [
        ("group", "0.5000", "0.5000", "50.0%"), ("expand", "0.7500", "0.7500", "75.0%"), ("balanced", "0.5000", "0.5000", "50.0%"),
        ("merge", "0.3750", "0.5000", "43.8%"),
    ]  # fmt: skip
    assert rows[0]["NDCG@10 minus group's"] == "" and rows[2]["NDCG@10 minus group's"] == "+0.0000 [+0.0000, +0.0000]"
    assert rows[3]["NDCG@10 minus group's"].startswith("-0.1250 [-0.3750, +0.0000]")
    assert {figure.key: figure.value for figure in figures} == {"small_teacher": 1.0, "small_spread": 0.375, "small_behind": 0.25}
