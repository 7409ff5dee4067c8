"""The model card (README.md) of a step's folder, in the form that the Hugging Face Hub reads. Works without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from recbole_prunerec.report.licences import licence_keys


@dataclass(frozen=True)
class CardFacts:
    """What a card says. `steps` are those that were done, each with what it was told; `sizes_*` are by name; `protocol` is how it was measured."""

    name: str
    step: int
    step_name: str
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    sizes_before: Mapping[str, int | bool]
    sizes_after: Mapping[str, int | bool]
    dataset: str
    items: int  # whose titles lie in the folder
    protocol: Mapping[str, Any]
    metrics: Mapping[str, float]  # by RecBole's names, means over `test_rows`; none where the model cannot recommend yet
    test_rows: int
    ranked: str  # the part of the data that these are of
    history: tuple[str, ...]  # titles of one real user, the oldest first
    prompt: tuple[str, ...]  # the prompt for it, in the pieces that are encoded alone; the last is the opening quote
    base_model: str | None = None  # its name on the Hub; None for a local one
    base_name: str | None = None  # of a local one: of its folder or file
    revision: str | None = None  # the commit of the base model
    licence: str | None = None  # of the base model; None: not known
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
            dataset_split=facts.ranked,
            metric_type=metric,
            metric_name=_heading(metric),
            metric_value=float(value),
        )
        for metric, value in facts.metrics.items()
    ]
    return ModelCardData(
        model_name=facts.name,
        base_model=facts.base_model,
        base_model_relation="finetune" if facts.base_model else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["recommendation", "sequential-recommendation", "pruning", "prunerec"],
        eval_results=results or None,
        **licence_keys(None if facts.random_start else facts.licence),
    )


def _origin(facts: CardFacts) -> str:
    if facts.random_start:
        return "The weights started from random values: no pretrained language model is behind it, and it knows only the titles it was trained on."
    name = facts.base_model
    base = f"[{name}](https://huggingface.co/{name})" if name else f"a local model, {facts.base_name or 'unnamed'}"
    commit = f", commit {facts.revision}" if facts.revision else ""
    known = f"whose licence is {facts.licence} and binds this one"
    terms = known if facts.licence else "whose licence is not known here: find it out before you pass this one on"
    return f"It started from {base}{commit}, {terms}."


def _intro(facts: CardFacts) -> str:
    after = f"after step {facts.step} ({facts.step_name}) of PruneRec"
    if facts.metrics:
        return f"A language model that recommends the next item by writing its title, {after}."
    return f"A language model that is to recommend the next item by writing its title, {after}. It is not fine-tuned and cannot do so yet."


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items()) or "-"


USAGE = """A plain transformers model; no code of PruneRec is needed to load it. The prompt ends with an opening quote and the model closes the title.

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file lies, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
pieces = {prompt!r}  # a prompt, encoded piece by piece as in training
ids = [id for index, piece in enumerate(pieces) for id in tokenizer(piece, add_special_tokens=index == 0).input_ids]
output = model.generate(torch.tensor([ids]), max_new_tokens=64)
title = tokenizer.decode(output[0, len(ids):])
```

With PruneRec it recommends from its catalogue alone, and ranks all of it:

```python
from recbole_prunerec.ranking.recommender import Recommender

recommender = Recommender.from_pretrained(folder)
(items,) = recommender.recommend([{history!r}], k=10)  # each with its item, title and log_probability
```"""


def _evaluation(facts: CardFacts) -> list[str]:
    return [
        "## Evaluation",
        f"Dataset {facts.dataset}, {facts.test_rows:,} {facts.ranked} rows, means over rows:",
        _table(("metric", "value"), [(_heading(name), f"{value:.4f}") for name, value in facts.metrics.items()]),
        "Protocol:",
        _table(("setting", "value"), list(facts.protocol.items())),
        "## Use",
        USAGE.format(prompt=facts.prompt, history=list(facts.history)),
    ]


def model_card(facts: CardFacts) -> str:
    """The card's text: a YAML header with the metrics as evaluation results, then origin, steps, sizes, protocol, metrics and how to use the model.

    Of a model that was not measured, since it cannot recommend yet, neither metrics nor use are told.
    """
    sizes = [(name, before, facts.sizes_after.get(name, "-")) for name, before in facts.sizes_before.items()]
    steps = [(f"{number} {name}", _told(values)) for number, (name, values) in enumerate(facts.steps, 1)]
    parts = [
        f"---\n{_data(facts).to_yaml()}\n---",
        f"# {facts.name}",
        _intro(facts),
        _origin(facts),
        *(f"> **Note**: {note}" for note in facts.notes),
        f"The folder holds the titles of {facts.items:,} items of {facts.dataset} (catalogue.json), for which that dataset's terms go on to hold.",
        "## Steps",
        _table(("step", "settings"), steps),
        "## Sizes",
        _table(("size", "before this step", "after"), sizes),
        *(_evaluation(facts) if facts.metrics else ()),
    ]
    return str(ModelCard("\n\n".join(parts) + "\n"))
