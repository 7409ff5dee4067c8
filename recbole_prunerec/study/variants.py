"""The paper's ablations as systems: what differs from PruneRec's step, each restored and unrestored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.study.systems import REFERENCE, System, both

MLP_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the intermediate dimensions, that stay
LAYERS = 8  # at most so many numbers of layers are tried


class Ablation(NamedTuple):
    """One step by itself, in several ways."""

    step: str
    label: str  # of what differs
    changes: Mapping[str, Mapping[str, Any]]  # the step's settings, by the name of the way
    reference: str

    def systems(self) -> dict[str, System]:
        """Every way, restored and unrestored."""
        found: dict[str, System] = {}
        for name, change in self.changes.items():
            found |= both(name, System(REFERENCE, change={self.step: change}, starts=True, only=self.step))
        return found


def ablations(sizes: Sizes) -> dict[str, Ablation]:
    """By the paper's names, for a backbone of `sizes`."""
    widths = sorted({max(1, round(share * sizes.intermediate)) for share in MLP_SHARES})
    stride = -(-(sizes.layers - 1) // LAYERS) or 1
    depths = list(range(sizes.layers - 1, 0, -stride))
    return {
        "table3": Ablation(
            "width",
            "how heads are scored",
            {
                "full": {},
                "no recursion": {"recursion": 0.0},
                "one list for all layers": {"scope": "global"},
                "neither": {"scope": "global", "recursion": 0.0},
                "random": {"criterion": "random"},
            },
            "full",
        ),
        "fig5a": Ablation(
            "width",
            "how hidden dimensions are scored",
            {"product": {}, "gradient": {"hidden_score": "gradient"}, "embedding": {"hidden_score": "embedding"}},
            "product",
        ),
        "fig5b": Ablation("mlp", "MLP dimensions that stay", {str(width): {"intermediate": width} for width in widths}, str(widths[-1])),
        "fig5c": Ablation("depth", "layers removed", {str(sizes.layers - kept): {"layers": kept} for kept in depths}, "1"),
    }
