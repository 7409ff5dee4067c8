"""Which run a command is: a hash of all that its figures depend on, and the folder of that name. Nothing heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path

from recbole_prunerec import __version__
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import recbole_folder
from recbole_prunerec.storage import file_hash, hash_of

MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja")


def settled(settings: Settings) -> Settings:
    """The settings with the backbone's and the teacher's folders by the names that they keep: `saved/latest` will point elsewhere."""
    given = {key: Path(name) for key in ("backbone", "teacher") if (name := getattr(settings, key)) and Path(name).exists()}
    return settings.model_copy(update={key: os.path.relpath(path.resolve()) for key, path in given.items()})


def identity_of(settings: Settings) -> str:
    """A hash of all that the figures depend on: settings, which are `settled`, data, a local backbone or teacher, version."""
    return hash_of([settings.identity(), data_hashes(settings), model_hashes(settings.teacher or settings.backbone), __version__])


def model_hashes(name: str) -> list[str]:
    """Hashes of a local model's files; of a name on the hub, or of tiny, none."""
    start = Path(name)
    files = [start] if start.is_file() else sorted(path for path in start.glob("*") if path.suffix in MODEL_FILES)
    return [file_hash(path) for path in files]


def data_hashes(settings: Settings) -> dict[str, str]:
    """Hashes of the dataset's files, by their names."""
    folder = recbole_folder() / "dataset_example" / "ml-100k" if settings.dataset == "ml-100k" else Path(settings.data_path) / settings.dataset
    return {path.name: file_hash(path) for path in sorted(folder.glob("*.i*")) if path.suffix in (".inter", ".item")}


def run_path(settings: Settings, identity: str) -> Path:
    """The folder of a run of `settings`; one without steps evaluates."""
    name = "-".join(settings.model) if settings.steps else "evaluate"
    return Path(settings.checkpoint_dir) / f"{name}-{settings.dataset}-{identity[:8]}"
