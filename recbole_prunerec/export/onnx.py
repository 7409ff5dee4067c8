"""ONNX, which onnxruntime and others run: a folder with the graph, its weights beside it, and the tokenizer. transformers' own exporter makes it."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor
from torch.export import Dim
from transformers.exporters import OnnxConfig, OnnxExporter

from recbole_prunerec.backbone.load import Backbone
from recbole_prunerec.export.probe import Probe
from recbole_prunerec.text.prompts import Prompts

TOLERANCE = 1e-4  # of the largest logit: its sums run in another order
GRAPH = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
TRACED = (2, 7)  # prompts and positions that the graph is made from; it takes any


def write(path: Path, backbone: Backbone, prompts: Prompts) -> None:
    """Write the folder `path`. The graph takes `input_ids` and `attention_mask`, (prompt, position) in int64, and gives `logits`, one more axis in
    float32. It has no cache of keys and values."""
    path.mkdir()
    backbone.model.config.use_cache = False
    inputs: dict[str, Any] = {name: torch.ones(TRACED, dtype=torch.long) for name in INPUTS}
    config = OnnxConfig(dynamic_shapes={name: {0: Dim("prompt"), 1: Dim("position")} for name in INPUTS})
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):  # torch prints what it is about
        exported = OnnxExporter().export(backbone.model, inputs, config=config)
    if backbone.licence:
        exported.program.metadata_props["license"] = backbone.licence
    exported.save_pretrained(path)
    backbone.tokenizer.save_pretrained(path)


def read(path: Path, prompts: Prompts, probe: Probe) -> Tensor:
    """What the graph in the folder says of `probe`, on the CPU."""
    session = onnxruntime.InferenceSession(path / GRAPH, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], dict(zip(INPUTS, (probe.ids.numpy(), probe.mask.numpy()), strict=True)))
    return torch.from_numpy(logits)
