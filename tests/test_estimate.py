import pytest

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.estimate import planned_work, time_left
from recbole_prunerec.prune.budget import Shape
from recbole_prunerec.settings import Settings

SIZES = Sizes(hidden=8, layers=2, heads=4, kv_heads=2, head_dim=2, intermediate=16, vocab=50, tied=True)


def weights(sizes: Sizes) -> int:
    return sizes.non_embedding_parameters + sizes.vocab * sizes.hidden


def test_planned_work_adds_training_and_ranking():
    steps = [{"do": "finetune"}, {"do": "mlp", "intermediate": 4}, {"do": "depth", "layers": 1, "restore": {"epochs": 1}}]
    settings = Settings.model_validate({"steps": steps, "epochs": 3, "restore": {"epochs": 2}})
    work = planned_work(settings, SIZES, Shape("qwen2", 8, 2, 4, 2, 16), tokens_an_epoch=1000, tokens_a_user=10, rows={"all": 30, "few": 5})
    teacher = weights(SIZES)
    narrow = weights(Sizes(8, 2, 4, 2, 2, 4, 50, True))
    shallow = weights(Sizes(8, 1, 4, 2, 2, 4, 50, True))
    assert work == [
        teacher * (9 * 1000 + 300),
        2 * 1000 * (3 * narrow + teacher) + 100 * narrow,
        1 * 1000 * (3 * shallow + teacher) + 350 * shallow,
    ]


@pytest.mark.parametrize(
    ("took", "expected"),
    [([], ""), ([None], ""), ([10.0], ", about 30 s left"), ([None, 40.0], ", about 20 s left"), ([600.0], ", about 30 min left")],
)
def test_time_left_scales_by_what_was_timed(took, expected):
    assert time_left([10.0, 20.0, 10.0], took, len(took)) == expected
