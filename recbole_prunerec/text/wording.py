"""How a model was spoken to when it was trained: prompts.json of a step's folder. Read without anything heavy, so that settings can follow it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from recbole_prunerec.storage import read_json, write_json

FILE = "prompts.json"
CATALOGUE = "catalogue.json"  # beside it; what catalogue.py writes
Softmax = Literal["vocabulary", "catalogue"]


class Wording(BaseModel):
    """The settings, by their names, without which a model is asked in other words than it knows, or ranked otherwise than it learnt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str
    max_prompt_tokens: int
    softmax: Softmax = "vocabulary"
    short_titles: bool = False

    def save(self, folder: Path) -> None:
        """Write `prompts.json` into `folder`."""
        write_json(folder / FILE, self)

    @classmethod
    def load(cls, folder: Path) -> Wording | None:
        """Read `prompts.json` from `folder`; None where there is none, as with a model from elsewhere. Raises `UserError` where it is damaged."""
        return read_json(folder / FILE, cls) if (folder / FILE).exists() else None
