"""What is said of the backbone at the start of a run."""

import pytest
import torch
from tiny import llama, qwen2

from recbole_prunerec.backbone.origin import Origin
from recbole_prunerec.settings import Settings
from recbole_prunerec.statement import statement


@pytest.mark.parametrize(("make", "tied"), [(qwen2, True), (llama, False)])
def test_all_that_is_known_is_said(monkeypatch, make, tied):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = make()
    embedding = 97 * 48 * (1 if tied else 2)
    total = sum(parameter.numel() for parameter in model.parameters())
    settings = Settings(backbone="some/model", attn_implementation="eager", precision="bfloat16")
    first, second = statement(settings, model.config, Origin("apache-2.0", "a" * 40, "bf16")).splitlines()
    rule = "" if tied else ", whose hidden size must be a multiple of its heads"
    where = f"backbone some/model at commit {'a' * 40}: family {model.config.model_type}{rule}"
    assert first == f"{where}; bf16 in its files, float32 here, bfloat16 in training; attention eager; licence apache-2.0"
    kind = "a tied embedding" if tied else "embedding and output head"
    assert second == (
        f"backbone some/model: {total - embedding:,} non-embedding parameters, {embedding:,} in {kind}; "
        f"training all of them holds {16 * total / 2**20:,.0f} MiB, beside a micro-batch (--dry_run tells that, too)"
    )


def test_what_is_not_known_is_said_to_be_so_and_an_evaluation_trains_nothing():
    settings = Settings(teacher="a/folder", precision="float32", steps=[{"do": "depth", "layers": 2}])
    first, second = statement(settings.model_copy(update={"steps": ()}), qwen2().config, Origin()).splitlines()
    assert first == "teacher a/folder: family qwen2; unknown in its files, float32 here, float32 in training; attention sdpa; licence unknown"
    assert second.endswith(" in a tied embedding")
    assert statement(Settings(precision="float32"), qwen2().config, None).startswith(
        "backbone tiny: family qwen2; random weights, float32, float32 in training; attention sdpa\n"
    )
