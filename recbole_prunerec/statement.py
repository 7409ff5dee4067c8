"""What is said of the backbone when a run starts: where it comes from, what it is, and what it takes to train."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.origin import Origin
from recbole_prunerec.estimate import TRAINED
from recbole_prunerec.prune.budget import HIDDEN_DIVIDES
from recbole_prunerec.restore.train import use_bfloat16
from recbole_prunerec.settings import Settings


def statement(settings: Settings, config: PretrainedConfig, origin: Origin | None) -> str:
    """Two lines on the backbone of `config`. Without an `origin` its weights are random."""
    key, name = settings.start
    sizes = Sizes.of_config(config.to_dict(), f"{key}={name}")
    device = torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")
    training = "bfloat16" if use_bfloat16(settings.precision, sizes.total_parameters, device) else "float32"
    commit = f" at commit {origin.commit}" if origin and origin.commit else ""
    rule = ", whose hidden size must be a multiple of its heads" if config.model_type in HIDDEN_DIVIDES else ""
    weights = f"{origin.types or 'unknown'} in its files, float32 here" if origin else "random weights, float32"
    attention = "sdpa" if settings.attn_implementation == "auto" else settings.attn_implementation
    licence = f"; licence {origin.licence or 'unknown'}" if origin else ""
    embedding = "a tied embedding" if sizes.tied else "embedding and output head"
    counts = f"{sizes.non_embedding_parameters:,} non-embedding parameters, {sizes.embedding_parameters:,} in {embedding}"
    held = f"; training all of them holds {TRAINED * sizes.total_parameters / 2**20:,.0f} MiB, beside a micro-batch (--dry_run tells that, too)"
    return (
        f"{key} {name}{commit}: family {config.model_type}{rule}; {weights}, {training} in training; attention {attention}{licence}\n"
        f"{key} {name}: {counts}{held if settings.steps else ''}"
    )
