"""Runs of the dataset `small`, as run_recbole.py makes them, and what they leave."""

import json
from pathlib import Path

import pandas as pd

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.quick_start import run


def ran(place: Path, name: str, *argv: str) -> Path:
    """The folder of a finished run on the data in `place`, whose folders lie in `name` there."""
    run(load_arguments([f"--data_path={place / 'dataset'}", f"--checkpoint_dir={place / name}", *argv]))
    return (place / name / "latest").resolve()


def rows(folder: Path) -> dict[str, dict]:
    """The table's rows by system."""
    return {row["system"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}


def ranks(folder: Path, name: str) -> pd.DataFrame:
    """The target's rank in every test row, as text."""
    return pd.read_csv(folder / "ranks" / f"{name}.csv", dtype=str)
