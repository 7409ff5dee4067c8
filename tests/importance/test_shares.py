"""Several processes, played by threads: what each makes of its share of the samples are the scores of all."""

import threading

import pytest
import torch
from naive_importance import BATCHES, CATALOGUE
from tiny import qwen2

from recbole_prunerec.importance import blockpruner, flap, heads, hidden, inputs, laco, layers, llm_pruner, minitron, mlp, shortgpt, sparsegpt, wanda
from recbole_prunerec.importance.heads import head_importance
from recbole_prunerec.importance.hidden import hidden_importance, norm_scales
from recbole_prunerec.importance.layers import layer_order, mean_nll
from recbole_prunerec.importance.mlp import mlp_importance
from recbole_prunerec.settings import Depth, Mlp


class Together:
    """`total` and `gathered` of threads that are called by their number."""

    def __init__(self, count):
        self._barrier, self._given = threading.Barrier(count, timeout=60), [None] * count

    def every(self, values):
        """What all threads gave, in their order."""
        self._given[int(threading.current_thread().name)] = values
        self._barrier.wait()
        given = [values.clone() for values in self._given]
        self._barrier.wait()
        return given

    def total(self, values):
        return torch.stack(self.every(values)).sum(0)

    def gathered(self, values):
        return torch.cat(self.every(values))


def worst(kl):
    """The two heads of the last layer that are missed least."""
    return kl[-1].argsort()[:2].tolist()


SCORES = {
    "heads": lambda model, batches: head_importance(model, batches, CATALOGUE),
    "heads, greedy": lambda model, batches: head_importance(model, batches, CATALOGUE, greedy=worst),
    "hidden": lambda model, batches: hidden_importance(model, batches, CATALOGUE),
    "norms": lambda model, batches: torch.tensor(list(norm_scales(model, batches, [1, 5, 6]).values()), dtype=torch.float64),
    "layers": lambda model, batches: torch.tensor(
        [value for nll in layer_order(model, batches, CATALOGUE, 1).rounds for value in nll.values()], dtype=torch.float64
    ),
    "loss": lambda model, batches: torch.tensor(mean_nll(model, batches, CATALOGUE), dtype=torch.float64),
    "mlp": lambda model, batches: torch.stack(mlp_importance(model, batches)),
    "wanda": lambda model, batches: wanda.mlp_scores(model, batches).mlp,
    "sparsegpt": lambda model, batches: sparsegpt.width_scores(model, batches).heads,
    "flap": lambda model, batches: flap.width_scores(model, batches).heads,
    "minitron": lambda model, batches: minitron.width_scores(model, batches).hidden,
    "llm_pruner": lambda model, batches: (
        llm_pruner.mlp_scores(model, batches, CATALOGUE, Mlp(do="mlp", intermediate=9, criterion="llm_pruner", taylor="mix")).mlp
    ),
    "shortgpt": lambda model, batches: shortgpt.layer_scores(model, batches).layers,
    "laco": lambda model, batches: torch.cat([weight.flatten() for weight in _depth(laco, model, batches).update([]).values()]),
    "blockpruner": lambda model, batches: _depth(blockpruner, model, batches).halves,
}


def _depth(criterion, model, batches):
    return criterion.layer_scores(model, batches, CATALOGUE, Depth(do="depth", layers=2), (0,), None)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 0)], ids=["one batch each", "all in one process"])
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_shares_give_the_scores_of_all_samples_to_every_process(score, sizes, monkeypatch):
    expected, together, found = score(qwen2(), BATCHES), Together(2), {}
    for module in (heads, hidden, layers, inputs, llm_pruner, shortgpt, laco, blockpruner):
        monkeypatch.setattr(module, "total", together.total)
    monkeypatch.setattr(mlp, "gathered", together.gathered)

    def work(number, model, share):
        found[number] = score(model, share)

    shares = [BATCHES[: sizes[0]], BATCHES[sizes[0] :]]
    threads = [threading.Thread(target=work, args=(number, qwen2(), share), name=str(number)) for number, share in enumerate(shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], expected, atol=1e-12, rtol=1e-12)
