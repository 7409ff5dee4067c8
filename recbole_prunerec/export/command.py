"""`python -m recbole_prunerec export`: what is wrong is said first, and what is written gets its name once it says what the model says."""

from __future__ import annotations

import math
import os
from importlib import import_module
from importlib.util import find_spec
from os.path import isdir  # unlike that of Path, False for a name that no folder can have
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recbole_prunerec.backbone.files import folder_config
from recbole_prunerec.backbone.headers import read_safetensors
from recbole_prunerec.backbone.weights import BESIDE
from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.export.limits import gguf_problems
from recbole_prunerec.ranking.serving import model_folder
from recbole_prunerec.storage import MANIFEST, sync
from recbole_prunerec.validation.on_disk import disk_problems

PACKAGES = {"gguf": ("gguf",), "onnx": ("onnx", "onnxscript", "onnxruntime")}  # of each format; its extra has its name, and so its module here
ENDINGS = {"gguf": ".gguf", "onnx": "-onnx"}  # of the name that is given to what has none


def export(name: str, to: str, out: str | None, revision: str | None = None) -> str:
    """Write the model `name`, a step's folder or one like it on the hub (there at `revision`), in the format `to`, and return what is printed.

    It gets the name `out`, a file for gguf and a folder for onnx, which must be free. Raises `UserError` with all that is wrong before a model is
    loaded, and where what was written does not say what the model says; then nothing is left.
    """
    target = Path(out or Path(name).resolve().name + ENDINGS.get(to, f".{to}"))
    problems, folder = [*_format_problems(to), *_target_problems(target, to)], None
    if isdir(name) or not problems:  # a hub is asked when all else is well
        try:
            folder = _model(name, to, target, revision)
        except UserError as error:
            problems += str(error).splitlines()
    if problems or folder is None:
        raise UserError("\n".join(problems))
    return _export(name, folder, to, target)


def _format_problems(to: str) -> list[str]:
    if to not in PACKAGES:
        return [f"--to={to}: expected {' or '.join(PACKAGES)}{nearest(to, PACKAGES)}"]
    missing = [package for package in PACKAGES[to] if find_spec(package) is None]
    if not missing:
        return []
    return [
        f"--to={to} needs the {'package' if len(missing) == 1 else 'packages'} {', '.join(missing)}; run: pip install -c constraints.txt -e '.[{to}]'"
    ]


def _target_problems(target: Path, to: str) -> list[str]:
    problems = []
    if os.path.lexists(target):
        problems.append(f"--out={target} exists; remove it, or choose another name")
    if to == "gguf" and target.suffix != ".gguf":
        problems.append(f"--out={target} does not end in .gguf, by which such a file is known; add that")
    run = next((folder for folder in target.absolute().parents if (folder / MANIFEST).is_file()), None)
    if run is not None:
        problems.append(f"--out={target} lies in a run's folder ({run}), which would refuse to go on with it; choose a place outside")
    return problems


def _model(name: str, to: str, target: Path, revision: str | None) -> Path:
    """The folder of the model `name`. Raises `UserError` where there is none, the format cannot hold it, or the disk."""
    folder = model_folder(name, revision=revision)
    config = folder_config(f"model={name}", folder)
    problems = gguf_problems(f"model={name}", config) if to == "gguf" else []
    problems += disk_problems(target.absolute().parent, _bytes(folder), "the folder of --out")
    if problems:
        raise UserError("\n".join(problems))
    return folder


def _bytes(folder: Path) -> int:
    """Of the weights in float32."""
    parts = [read_safetensors(path) for path in folder.glob("*.safetensors") if path.name not in BESIDE]
    return 4 * sum(math.prod(weight.shape) for part in parts for weight in part.values())


def _export(name: str, folder: Path, to: str, target: Path) -> str:
    from transformers.utils import logging  # takes seconds to import; mistakes are answered before

    from recbole_prunerec.backbone.load import load_backbone
    from recbole_prunerec.export.probe import Probe
    from recbole_prunerec.ranking.recommender import load_prompts

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    form: Any = import_module(f"recbole_prunerec.export.{to}")
    backbone = load_backbone(str(folder), {}, (), 0, "model")
    prompts, _ = load_prompts(folder, backbone.tokenizer)
    probe = Probe.of(backbone.model, prompts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        part = Path(work) / target.name
        try:
            form.write(part, backbone, prompts)
            del backbone  # before it is read again
            difference = probe.difference(form.read(part, prompts, probe))
        except UserError as error:
            raise UserError("\n".join(f"model={name}: {problem}" for problem in str(error).splitlines())) from error
        found = f"its logits differ from the model's by at most {difference:.1e}, the largest being {probe.largest:.1f}"
        if difference > form.TOLERANCE * probe.largest:
            raise UserError(
                f"model={name}: read again as {to}, {found}; that is over {form.TOLERANCE:.0e} of it, and nothing is kept. Use the folder itself, "
                "and report this with its config.json"
            )
        files = [path for path in (part, *part.rglob("*")) if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        for path in files:
            sync(path)
        os.replace(part, target)
    sync(target.parent)
    return f"{target}: written, {size / 2**20:,.1f} MiB; read again, {found}\n"
