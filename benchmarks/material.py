"""What the benchmark of ranking works on: MovieLens 100k, a backbone, a trained small model, and a million titles that nobody wrote."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone.load import load_backbone, load_step
from recbole_prunerec.data.samples import Samples, training_popularity
from recbole_prunerec.errors import UserError
from recbole_prunerec.shipped import properties
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.text.spelling import TEMPLATES
from recbole_prunerec.text.tokenizer import train_tokenizer
from recbole_prunerec.text.wording import Wording

SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
}
CUT = {"hidden_size": 288, "intermediate_size": 512, "num_hidden_layers": 9, "num_attention_heads": 3, "num_key_value_heads": 1}  # 5.0 % of SmolLM2's
TRAINING = [
    "--preset=tiny", "--softmax=vocabulary", "--epochs=4", "--training_rows=20000", "--test_rows=200", "--steps=[{do: finetune}]",
    "--show_progress=false",
]  # fmt: skip
LIST = Wording(template="list", max_prompt_tokens=512)
LONGEST = 8  # words of a synthetic title
WORDS_AT_ONCE = 1 << 16  # titles drawn at once


@dataclass(frozen=True)
class Subject:
    """A model with what it takes to rank a catalogue of titles."""

    name: str
    model: PreTrainedModel
    prompts: Prompts


@dataclass
class Work:
    """What the parts share, loaded when it is first asked for. `users` is the most that any part looks at."""

    backbone: str | None
    model: Path | None
    folder: Path
    users: int
    titles: int
    seed: int
    generated: dict[int, list[int]] = field(default_factory=dict)  # the reference's titles of each user, from any part
    batch_size: int = 4  # the reference's best, once it is known

    @cached_property
    def samples(self) -> Samples:
        """MovieLens 100k."""
        return load_samples(self.seed, self.folder)

    @cached_property
    def large(self) -> Subject:
        """The backbone."""
        return load_subject(self.backbone, catalogue_of(self.samples), self.seed)

    @cached_property
    def trained(self) -> Subject:
        """The trained small model."""
        return load_trained(self.model, self.samples, self.seed, self.folder)

    def queries(self, subject: Subject, users: int) -> list[np.ndarray]:
        """The prompts of the first `users` users, or of as many as are asked for at most."""
        return [subject.prompts.prompt(history) for history in histories(self.samples, min(users, self.users), self.seed)]


def load_samples(seed: int, folder: Path) -> Samples:
    """MovieLens 100k by the protocol of all tables, with its catalogue. `folder` is for RecBole, which writes nothing."""
    from recbole_prunerec.loading import load_data  # imports RecBole, which takes seconds

    settings = load_arguments(["--preset=tiny", f"--seed={seed}", "--test_rows=null"]).settings
    data = load_data(settings, folder, folder)
    return replace(data.samples, catalogue=data.dataset.catalogue(training_popularity(data.samples.train, data.dataset.item_num)))


def catalogue_of(samples: Samples) -> Catalogue:
    """The catalogue of samples that have one."""
    return cast(Catalogue, samples.catalogue)


def histories(samples: Samples, users: int, seed: int) -> list[list[int]]:
    """Histories of `users` test samples; those for fewer are the first of those for more."""
    rows = np.random.default_rng(seed).permutation(len(samples.test))[:users]
    return [samples.test.history(row).tolist() for row in rows]


def load_subject(backbone: str | None, catalogue: Catalogue, seed: int) -> Subject:
    """The language model called `backbone`; None for one of SmolLM2-135M's shape, whose weights are random and whose tokenizer knows the titles."""
    if backbone:
        loaded = load_backbone(backbone, properties("backbone", "tiny"), catalogue.distinct, seed)
        return Subject(Path(backbone).name, loaded.model.eval(), _prompts(loaded.tokenizer, catalogue))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2), dtype=torch.float32).eval()
    return Subject("random, of SmolLM2-135M's shape", model, _prompts(train_tokenizer(catalogue.distinct, SMOLLM2["vocab_size"]), catalogue))


def load_trained(folder: Path | None, samples: Samples, seed: int, work: Path) -> Subject:
    """The model of a step's `folder`; without one, the tiny one trained for a minute, in `work`."""
    if folder is None:
        from recbole_prunerec import pipeline

        settings = load_arguments([*TRAINING, f"--seed={seed}"]).settings
        few = replace(samples, train=samples.train.take(np.arange(len(samples.train))[: settings.training_rows]))
        backbone = load_backbone("tiny", properties("backbone", "tiny"), catalogue_of(samples).distinct, seed)
        pipeline.run(backbone.model, backbone.tokenizer, few, settings, work / "trained")
        folder = work / "trained" / "1-finetune"
    wording = Wording.load(folder)
    if wording is None:
        raise UserError(f"model={folder} is no step's folder: it has no prompts.json; give one such as saved/latest/4-depth")
    prompts = _prompts(AutoTokenizer.from_pretrained(folder), catalogue_of(samples), wording)
    return Subject(f"{folder.resolve().parent.name}/{folder.name}", load_step(folder).eval(), prompts)


def _prompts(tokenizer: PreTrainedTokenizerBase, catalogue: Catalogue, wording: Wording = LIST) -> Prompts:
    return Prompts(tokenizer, catalogue, wording.template, wording.max_prompt_tokens)


def cut(subject: Subject, seed: int) -> Subject:
    """A model of random weights with 5 % of SmolLM2-135M's non-embedding parameters, and the subject's vocabulary."""
    config = LlamaConfig(**{**SMOLLM2, **CUT, "vocab_size": subject.model.config.vocab_size})
    torch.manual_seed(seed)
    return Subject("random, 5 % of SmolLM2-135M", AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), subject.prompts)


def in_bfloat16(subject: Subject) -> Subject:
    """The same model with bfloat16 weights."""
    return replace(subject, name=f"{subject.name} in bfloat16", model=copy.deepcopy(subject.model).bfloat16())


def synthetic_answers(tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[np.ndarray]:
    """Token ids of `count` distinct titles with their closing: words of the tokenizer's own, drawn by Zipf's law, up to eight a title."""
    words = sorted(word for word in (token.lstrip("Ġ▁") for token in tokenizer.get_vocab() if token[0] in "Ġ▁") if word.isascii() and word.isalpha())
    generator = np.random.default_rng(seed)
    generator.shuffle(words)
    chance = 1 / np.arange(1, len(words) + 1)
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        lengths = generator.integers(1, LONGEST + 1, WORDS_AT_ONCE)
        chosen = iter(generator.choice(len(words), lengths.sum(), p=chance / chance.sum()).tolist())
        drawn |= dict.fromkeys(" ".join(words[next(chosen)] for _ in range(length)) for length in lengths)
    titles, closing = list(drawn)[:count], TEMPLATES["list"].closing
    answers: list[np.ndarray] = []
    for start in range(0, count, WORDS_AT_ONCE):
        texts = [title + closing for title in titles[start : start + WORDS_AT_ONCE]]
        answers += [np.array(ids, dtype=np.int32) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
    return answers
