"""Loading and saving a backbone: the embedded tiny one, a Hugging Face name, a folder, or a `.gguf` file. No code from a checkpoint is ever run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from recbole_prunerec.backbone.files import backbone_config, unembedded
from recbole_prunerec.backbone.hub import hub_folder
from recbole_prunerec.backbone.origin import origin_of
from recbole_prunerec.backbone.title_tokens import Parts, embed, with_tokens
from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import properties
from recbole_prunerec.storage import write_bytes
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import texts_as_tokens
from recbole_prunerec.text.tokenizer import train_tokenizer

PROBE = "probe.safetensors"  # one prompt and its last logits, by which any process can check that it loads the same model
FLASH = "flash_attention_2"
PROBED = 4  # positions whose logits are kept


@dataclass(frozen=True)
class Backbone:
    """A language model with its tokenizer, in float32, and where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    random: bool  # whether the weights are random
    licence: str | None = None  # as its card has it, such as apache-2.0; None: not known
    revision: str | None = None  # the commit that was loaded, of a model on the hub

    @property
    def hub_name(self) -> str | None:
        """Its name on the Hugging Face hub; None for the tiny one and for local files."""
        return None if self.random or Path(self.name).exists() else self.name


def load_config_and_tokenizer(
    name: str,
    tiny: Mapping[str, Any],
    titles: Sequence[str],
    key: str = "backbone",
    weights: bool = True,
    revision: str | None = None,
    as_tokens: Sequence[str] = (),
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Of the backbone called `name`, which was given as `key`: "backbone" or "teacher". Of a hub's model, without `weights`, only these are fetched.

    "tiny" has the config `tiny` and a tokenizer trained on `titles`; a `revision` is for names on the hub. Each of the texts `as_tokens` is made one
    token. Raises `UserError` where they do not load, the tokenizer has ids that the embedding lacks, or a teacher writes such a text in several.
    """
    config, tokenizer = _config_and_tokenizer(name, tiny, titles, key, weights, revision)
    tokenizer, parts = _with_tokens(tokenizer, as_tokens, key, name)
    config.vocab_size = max([config.vocab_size, *(number + 1 for number in parts)])
    return config, tokenizer


def _config_and_tokenizer(
    name: str, tiny: Mapping[str, Any], titles: Sequence[str], key: str, weights: bool, revision: str | None
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    if name == "tiny":
        tokenizer = train_tokenizer(titles, tiny["vocab_size"])
        token_ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
        return AutoConfig.for_model(**{**tiny, **token_ids, "vocab_size": len(tokenizer)}), tokenizer
    source = _arguments(source_of(name, key, weights, revision))
    try:
        config, tokenizer = AutoConfig.from_pretrained(**source), AutoTokenizer.from_pretrained(**source)
    except (OSError, ValueError, TypeError, ImportError, KeyError, StrictDataclassError) as error:
        raise UserError(f"{key}={name} could not be loaded: {' '.join(str(error).split())}") from error
    if "gguf_file" not in source:  # of whose tokens transformers may make more, that no text has
        for problem in unembedded(max(tokenizer.get_vocab().values(), default=-1), config.vocab_size):  # of a tokenizer whose files do not tell
            raise UserError(f"{key}={name}: its {problem}")
    return config, tokenizer


def _with_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], key: str, name: str) -> tuple[PreTrainedTokenizerBase, Parts]:
    tokenizer, parts = with_tokens(tokenizer, texts)
    if parts and key != "backbone":
        raise UserError(f"{key}={name} writes {len(parts):,} titles in several tokens; give one that was fine-tuned with title_tokens=true, or none")
    return tokenizer, parts


def source_of(name: str, key: str = "backbone", weights: bool = True, revision: str | None = None) -> Path:
    """The folder or .gguf file that a backbone other than "tiny" is loaded from; a name on the hub is fetched where the cache lacks it.

    Without `weights` a folder need not have any. Raises `UserError` as `backbone_config` and `hub_folder` do.
    """
    if (not weights and Path(name).is_dir()) or backbone_config(key, name) is not None:
        return Path(name)
    return hub_folder(name, key, weights, revision)


def _arguments(source: Path) -> dict[str, Any]:
    """What transformers' from_pretrained takes to read a folder or a .gguf file."""
    if source.suffix == ".gguf":
        return {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    return {"pretrained_model_name_or_path": source}


def load_backbone(
    name: str,
    tiny: Mapping[str, Any],
    titles: Sequence[str],
    seed: int,
    key: str = "backbone",
    revision: str | None = None,
    attn_implementation: str = "auto",
    as_tokens: Sequence[str] = (),
) -> Backbone:
    """The backbone called `name`, with what `load_config_and_tokenizer` gives.

    The weights of "tiny" are drawn by `seed`; all others are loaded in float32, whatever their files have. `attn_implementation` is a name of
    transformers', or "auto", its choice; flash_attention_2 knows no float32, so it is left to training, and sdpa stands in for it. Raises `UserError`
    where nothing loads, or weights are missing. The embeddings of texts `as_tokens` begin as `embed` has them.
    """
    backbone = _load_backbone(name, tiny, titles, seed, key, revision, attn_implementation)
    tokenizer, parts = _with_tokens(backbone.tokenizer, as_tokens, key, name)
    embed(backbone.model, parts)
    return replace(backbone, tokenizer=tokenizer)


def load_for(settings: Settings, catalogue: Catalogue, key: str, name: str) -> Backbone:
    """`load_backbone` of a model that is to recommend from `catalogue`, as `settings` say."""
    tiny, as_tokens = properties("backbone", "tiny"), texts_as_tokens(settings, catalogue)
    return load_backbone(name, tiny, catalogue.texts, settings.seed, key, settings.revision, settings.attn_implementation, as_tokens)


def _load_backbone(
    name: str, tiny: Mapping[str, Any], titles: Sequence[str], seed: int, key: str, revision: str | None, attn_implementation: str
) -> Backbone:
    config, tokenizer = _config_and_tokenizer(name, tiny, titles, key, True, revision)
    attention = {"auto": None, FLASH: "sdpa"}.get(attn_implementation, attn_implementation)
    if name == "tiny":
        torch.manual_seed(seed)
        return Backbone(AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention), tokenizer, name, random=True)
    source = source_of(name, key, revision=revision)
    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, "attn_implementation": attention}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(**_arguments(source), dtype=torch.float32, **options)
    except (OSError, ValueError, TypeError, ImportError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"{key}={name} could not be loaded: {' '.join(str(error).split())}") from error
    model, found = loaded
    if any(extra.endswith("lm_head.bias") for extra in found["unexpected_keys"]):
        raise UserError(f"{key}={name} has a bias in its output head, which transformers leaves out for this family; choose a model without")
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(f"{key}={name} lacks {len(missing)} of its weights, such as {missing[0]}; fetch or save the model again")
    if source.suffix == ".gguf":
        _detach_quantizer(model)
    origin = origin_of(source)
    return Backbone(in_own_memory(model), tokenizer, name, random=False, licence=origin.licence, revision=origin.commit)


def redrawn(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same config, in float32 and on the same device, with weights drawn by `seed`, as its family draws them before pretraining."""
    torch.manual_seed(seed)
    fresh = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32, attn_implementation=model.config._attn_implementation)
    return fresh.to(model.device)


def in_own_memory(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its weights copied from the pages of their file, which lie as the file's header leaves them.

    How a matrix is aligned decides how some processors round its products, and a run that goes on from a file must end as one that was not cut.
    """
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()
    return model


def _detach_quantizer(model: PreTrainedModel) -> None:
    """GGUF weights arrive dequantized, but transformers still marks the model as quantized and refuses to save it."""
    for owner, attribute in ((model, "hf_quantizer"), (model, "is_quantized"), (model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)


def load_step(folder: Path, attn_implementation: str | None = None) -> PreTrainedModel:
    """The model of a step's folder; attention is computed by transformers' choice where nothing else is named."""
    options: dict[str, Any] = {"use_safetensors": True, "attn_implementation": attn_implementation}
    return in_own_memory(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options))


def save_step(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, terminators: Sequence[int], prompt: np.ndarray) -> None:
    """Write a complete Hugging Face folder: weights, config, tokenizer, generation config, and a probe.

    The generation config ends at `terminators` and does not sample, so that plain `generate` stops after one title. The probe holds `prompt`
    (position,) as `input_ids` (1, position) and the model's last `logits` (1, PROBED, vocab).
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else terminators[0]
    model.generation_config = GenerationConfig(eos_token_id=list(terminators), pad_token_id=pad, do_sample=False, max_new_tokens=64)
    model.eval()
    with torch.inference_mode():
        ids = torch.from_numpy(prompt)[None].to(model.device)
        logits = model(input_ids=ids).logits
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_bytes(folder / PROBE, save({"input_ids": ids.cpu(), "logits": logits[:, -PROBED:].contiguous().cpu()}))
