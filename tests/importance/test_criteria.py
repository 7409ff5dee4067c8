"""What a step's settings make its criterion measure, and what a random one draws."""

from functools import partial
from typing import get_args

import pytest
import torch
from naive_importance import BATCHES as TITLE_BATCHES
from naive_importance import CATALOGUE, VOCABULARY
from tiny import batch, every_model, llama, qwen2

from recbole_prunerec.importance.criteria import CRITERIA
from recbole_prunerec.importance.heads import head_importance, normalise_and_recurse
from recbole_prunerec.importance.hidden import hidden_importance
from recbole_prunerec.importance.layers import layer_order
from recbole_prunerec.importance.mlp import mlp_importance
from recbole_prunerec.importance.scores import Scores
from recbole_prunerec.settings import Depth, Mlp, PruningStep, Width

BATCHES = [batch(3, seed=1), batch(2, seed=2)]
STEPS = {"width": Width(do="width", heads=6, hidden=48), "mlp": Mlp(do="mlp", intermediate=56), "depth": Depth(do="depth", layers=3)}


def score(step: PruningStep, seed=(0,), batches=BATCHES, make=qwen2, softmax=VOCABULARY) -> Scores:
    more = [lambda scores: []] if step.do == "width" else []
    return getattr(CRITERIA[step.criterion], step.do)(make(), batches, softmax, step, seed, None, *more)


def same(one: Scores, other: Scores) -> bool:
    """Whether all scores are equal; each criterion gives the same parts for one kind of step."""
    pairs = [(getattr(one, part), getattr(other, part)) for part in ("heads", "hidden", "mlp", "layers")]
    return all(torch.equal(first, second) for first, second in pairs if first is not None)


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_names_the_criteria_that_score_what_it_cuts(kind):
    named = get_args(type(STEPS[kind]).model_fields["criterion"].annotation)
    assert set(named) == {name for name, criterion in CRITERIA.items() if getattr(criterion, kind) is not None}


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"head_epsilon": 0.1}, {"epsilon": 0.1}),
        ({"kl_positions": "first"}, {"positions": "first"}),
        ({"recursion": 0.2}, {}),
        ({"recursion": 0.0}, {}),
    ],
)
def test_head_options_reach_the_divergences(options, measured):
    found, default = (score(STEPS["width"].model_copy(update=changes)) for changes in (options, {}))
    kl = head_importance(qwen2(), BATCHES, VOCABULARY, **measured)
    assert torch.equal(found.head_kl, kl) and torch.equal(found.heads, normalise_and_recurse(kl, options.get("recursion", 0.7)))
    assert not torch.equal(found.heads, default.heads)


@pytest.mark.parametrize("recursion", [0.2, 0.7])
@pytest.mark.parametrize("greedy", [True, False])
def test_greedy_asks_which_heads_go_by_the_scores_of_each_layer(greedy, recursion):
    asked = []

    def removed(scores: torch.Tensor) -> list[int]:
        asked.append(scores)
        return [int(scores.argmin())]

    step = STEPS["width"].model_copy(update={"greedy": greedy, "recursion": recursion})
    found = CRITERIA["prunerec"].width(qwen2(), BATCHES, VOCABULARY, step, (0,), None, removed)
    assert len(asked) == 3 * greedy and (not greedy or torch.equal(torch.stack(asked), found.heads))
    gone = [int(layer.argmin()) for layer in found.heads]
    assert torch.equal(found.head_kl, head_importance(qwen2(), BATCHES, VOCABULARY, greedy=(lambda kl: [gone[len(kl) - 1]]) if greedy else None))


@pytest.mark.parametrize("hidden_score", ["product", "gradient", "embedding"])
def test_hidden_scores_are_those_named(hidden_score):
    found = score(STEPS["width"].model_copy(update={"hidden_score": hidden_score})).hidden
    assert torch.equal(found, hidden_importance(qwen2(), BATCHES, VOCABULARY, hidden_score))
    others = [hidden_importance(qwen2(), BATCHES, VOCABULARY, other) for other in {"product", "gradient", "embedding"} - {hidden_score}]
    assert not any(torch.allclose(found, other) for other in others)


@pytest.mark.parametrize(("options", "arguments"), [({}, (None, 0.9)), ({"tau": 0.4}, (0.4,)), ({"quantile": 0.6}, (None, 0.6))])
def test_mlp_thresholds_are_those_given(options, arguments):
    share, magnitude = mlp_importance(qwen2(), BATCHES, *arguments)
    found = score(STEPS["mlp"].model_copy(update=options))
    assert torch.equal(found.mlp, share) and torch.equal(found.mlp_ties, magnitude)
    if options:
        assert not torch.equal(share, mlp_importance(qwen2(), BATCHES)[0])


@pytest.mark.parametrize("search", ["greedy", "oneshot"])
def test_layers_that_the_search_keeps_score_one(search):
    def make():
        return qwen2(3, num_hidden_layers=5)

    found = score(Depth(do="depth", layers=2, search=search), make=make)
    expected = layer_order(make(), BATCHES, VOCABULARY, 2, search)
    assert found.search == expected and len(expected.rounds) == {"greedy": 3, "oneshot": 1}[search]
    assert [layer for layer, value in enumerate(found.layers.tolist()) if value == 1] == expected.kept and found.layers.sum() == 2


def test_scores_are_of_the_softmax_that_is_given():
    width, depth = (score(STEPS[kind], batches=TITLE_BATCHES, softmax=CATALOGUE) for kind in ("width", "depth"))
    assert torch.equal(width.head_kl, head_importance(qwen2(), TITLE_BATCHES, CATALOGUE))
    assert torch.equal(width.hidden, hidden_importance(qwen2(), TITLE_BATCHES, CATALOGUE))
    assert depth.search == layer_order(qwen2(), TITLE_BATCHES, CATALOGUE, 3)
    other = score(STEPS["width"], batches=TITLE_BATCHES)
    assert not torch.allclose(width.head_kl, other.head_kl) and not torch.allclose(width.hidden, other.hidden)


@pytest.mark.parametrize("make", [qwen2, llama])
@pytest.mark.parametrize("kind", STEPS)
def test_random_scores_need_no_samples_repeat_by_seed_and_differ_between_steps(kind, make):
    step = STEPS[kind].model_copy(update={"criterion": "random"})
    found = score(step, (2020, 2), [], make)
    assert (found.heads.shape, found.hidden.shape, found.mlp.shape, found.layers.shape) == ((3, 6), (48,), (3, 56), (3,))
    assert found.head_kl is None and found.search is None
    assert same(found, score(step, (2020, 2), [], make))
    assert not same(found, score(step, (2020, 3), [], make)) and not same(found, score(step, (2021, 2), [], make))


def test_random_scores_are_even_and_layers_are_drawn_apart():
    values = score(STEPS["mlp"].model_copy(update={"criterion": "random"})).mlp
    assert 0 <= values.min() < 0.05 and 0.95 < values.max() < 1 and abs(values.mean() - 0.5) < 0.06
    assert len(set(values.flatten().tolist())) == values.numel()


@every_model
@pytest.mark.parametrize("step", [STEPS["width"], STEPS["mlp"], Depth(do="depth", layers=1)], ids=STEPS)
def test_eager_attention_and_sdpa_give_the_same_scores(make, step):
    eager, sdpa = (score(step, make=partial(make, attn_implementation=name)) for name in ("eager", "sdpa"))
    for part in ("heads", "hidden", "mlp", "layers"):
        one, other = getattr(eager, part), getattr(sdpa, part)
        if one is not None:
            assert one.std() > 0
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # eager attention takes its softmax in float32
    ways = [make(attn_implementation=name).model.layers[0].self_attn.config._attn_implementation for name in ("eager", "sdpa")]
    assert ways == ["eager", "sdpa"]
