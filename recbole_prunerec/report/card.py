"""The model card (README.md) of a step's folder, in the form that the Hugging Face Hub reads. Works without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData


@dataclass(frozen=True)
class CardFacts:
    """What a card says. `sizes_*` are the plan's sizes by name; `protocol` is how the metrics were measured."""

    name: str
    step: int
    step_name: str
    sizes_before: Mapping[str, int | bool]
    sizes_after: Mapping[str, int | bool]
    dataset: str
    protocol: Mapping[str, Any]
    metrics: Mapping[str, float]  # by RecBole's names, means over `test_rows`
    test_rows: int
    prompt: tuple[str, ...]  # one real prompt, in the pieces that are encoded alone; the last is the opening quote
    base_model: str | None = None  # its name on the Hub; None for a local one
    random_start: bool = False  # no pretrained weights behind this model
    notes: tuple[str, ...] = field(default=())


def _heading(metric: str) -> str:
    return metric.replace("hit@", "HR@").upper()


def _table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _data(facts: CardFacts) -> ModelCardData:
    results = [
        EvalResult(
            task_type="other",
            task_name="next-item recommendation",
            dataset_type=facts.dataset,
            dataset_name=facts.dataset,
            dataset_split="test",
            metric_type=metric,
            metric_name=_heading(metric),
            metric_value=float(value),
        )
        for metric, value in facts.metrics.items()
    ]
    return ModelCardData(
        model_name=facts.name,
        base_model=facts.base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["recommendation", "sequential-recommendation", "pruning", "prunerec"],
        eval_results=results or None,
    )


def _origin(facts: CardFacts) -> str:
    if facts.random_start:
        return "The weights started from random values: no pretrained language model is behind it, and it knows only the titles it was trained on."
    return f"It started from {facts.base_model or 'a local pretrained model'}."


USAGE = """```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
pieces = {prompt!r}  # a prompt, encoded piece by piece as in training
ids = [id for index, piece in enumerate(pieces) for id in tokenizer(piece, add_special_tokens=index == 0).input_ids]
output = model.generate(torch.tensor([ids]), max_new_tokens=64)
title = tokenizer.decode(output[0, len(ids):])
```"""


def model_card(facts: CardFacts) -> str:
    """The card's text: a YAML header with the metrics as evaluation results, then sizes, protocol, metrics and how to load the model."""
    sizes = [(name, before, facts.sizes_after.get(name, "-")) for name, before in facts.sizes_before.items()]
    metrics = [(_heading(name), f"{value:.4f}") for name, value in facts.metrics.items()]
    parts = [
        f"---\n{_data(facts).to_yaml()}\n---",
        f"# {facts.name}",
        f"A language model that recommends the next item by writing its title, after step {facts.step} ({facts.step_name}) of PruneRec.",
        _origin(facts),
        *(f"> **Note**: {note}" for note in facts.notes),
        "## Sizes",
        _table(("size", "before this step", "after"), sizes),
        "## Evaluation",
        f"Dataset {facts.dataset}, {facts.test_rows:,} test rows, means over rows:",
        _table(("metric", "value"), metrics),
        "Protocol:",
        _table(("setting", "value"), list(facts.protocol.items())),
        "## Use",
        "A plain transformers model; no code of PruneRec is needed to load it. The prompt ends with an opening quote and the model closes the title.",
        USAGE.format(prompt=facts.prompt),
    ]
    return str(ModelCard("\n\n".join(parts) + "\n"))
