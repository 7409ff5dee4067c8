"""Steps in a row: each is judged on the shape that those before it leave."""

import pytest
from pydantic import TypeAdapter

from recbole_prunerec.prune.budget import Shape, shape_problems
from recbole_prunerec.settings import Step

START = Shape("qwen2", hidden=48, layers=5, heads=6, kv_heads=2, intermediate=56)


def steps(*given: dict) -> tuple[Step, ...]:
    return TypeAdapter(tuple[Step, ...]).validate_python(({"do": "finetune"}, *given))


def width(heads: int, hidden: int, **more) -> dict:
    return {"do": "width", "heads": heads, "hidden": hidden, **more}


def mlp(intermediate: int) -> dict:
    return {"do": "mlp", "intermediate": intermediate}


def depth(layers: int) -> dict:
    return {"do": "depth", "layers": layers}


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ([mlp(40), mlp(28), depth(4), depth(3)], []),
        ([mlp(40), mlp(41)], ["steps.3.intermediate=41 is more than the model's 40"]),
        ([depth(3), mlp(40), depth(4)], ["steps.4.layers=4 is more than the model's 3"]),
        (
            [width(4, 36, kv_policy="balanced"), width(6, 40, kv_policy="expand")],
            ["steps.3.heads=6 is more than the model's 4", "steps.3.hidden=40 is more than the model's 36"],
        ),
        # six heads on two: whole groups have three; then two heads share one
        ([width(3, 48)], []),
        ([width(4, 48)], ["steps.2.heads=4 is not a multiple of 3, the heads that share one key/value head; choose 3 or 6, or kv_policy=expand"]),
        ([width(4, 48, kv_policy="balanced"), width(2, 48)], []),
        (
            [width(4, 48, kv_policy="balanced"), width(3, 48)],
            ["steps.3.heads=3 is not a multiple of 2, the heads that share one key/value head; choose 2 or 4, or kv_policy=expand"],
        ),
        # once each head has its own, any number is whole groups
        ([width(5, 48, kv_policy="expand"), width(3, 48)], []),
        (
            [width(3, 48), width(2, 48, kv_policy="merge", kv_heads=2)],
            ["steps.3.kv_heads=2 does not fit: kv_policy=merge shares kv_heads evenly among heads=2; choose kv_heads=1"],
        ),
        # a step that does not fit changes nothing for those after it
        ([mlp(57), mlp(50), depth(6)], ["steps.2.intermediate=57 is more than the model's 56", "steps.4.layers=6 is more than the model's 5"]),
    ],
)
def test_limits_are_those_that_the_steps_before_leave(given, problems):
    assert shape_problems(steps(*given), START) == problems


def test_a_family_that_divides_its_hidden_size_does_so_after_every_step():
    llama = Shape("llama", hidden=48, layers=5, heads=6, kv_heads=6, intermediate=56)
    assert shape_problems(steps(width(4, 36), width(3, 27)), llama) == []
    assert shape_problems(steps(width(4, 36), width(3, 28)), llama) == [
        "steps.3.hidden=28 is not a multiple of heads=3, as llama needs; choose hidden=27"
    ]
