"""GGUF, which llama.cpp and what is built on it read: weights in float32, and a byte-level BPE tokenizer. Names are those of the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from recbole_prunerec.backbone.family import family_of, state_of
from recbole_prunerec.backbone.load import Backbone, load_backbone
from recbole_prunerec.errors import UserError
from recbole_prunerec.export.limits import ARCHITECTURES, INSTEAD
from recbole_prunerec.export.probe import Probe, logits_of
from recbole_prunerec.prune.vocabulary import content_of, merges_of
from recbole_prunerec.text.prompts import Prompts

TOLERANCE = 0.0  # float32 is written as it is
BY_THREE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {BY_THREE: "llama-bpe", BY_THREE.replace("{1,3}", ""): "qwen2"}  # llama.cpp's names of how texts are split before tokens are merged
TOKEN = gguf.TokenType


def write(path: Path, backbone: Backbone, prompts: Prompts) -> None:
    """Write the model and its tokenizer to `path`. Raises `UserError` where GGUF cannot hold the tokenizer."""
    model, config = backbone.model, backbone.model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_name(f"PruneRec {path.stem}")  # of a name that is "mistral" transformers makes another family
        if backbone.licence:
            writer.add_license(backbone.licence)
        _add_sizes(writer, config)
        _add_tokenizer(writer, backbone.tokenizer, config.vocab_size)
        names = gguf.get_tensor_name_map({name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture], config.num_hidden_layers)
        for name, weight in state_of(model).items():
            if architecture == "llama":
                weight = _interleaved(name, weight, config)
            part, _, kind = name.rpartition(".")
            writer.add_tensor(f"{names.get_name(part)}.{kind}", weight.float().contiguous().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read(path: Path, prompts: Prompts, probe: Probe) -> Tensor:
    """What the model in the file says of `probe`. Raises `UserError` where its tokenizer writes titles in other tokens than that of `prompts`."""
    backbone = load_backbone(str(path), {}, (), 0, "export")
    again = prompts.with_tokenizer(backbone.tokenizer)
    distinct = prompts.catalogue.distinct
    other = [title for title, one, two in zip(distinct, prompts.answers, again.answers, strict=True) if one.tolist() != two.tolist()]
    if other:
        raise UserError(f"{len(other)} of {len(distinct)} titles, such as {other[0]!r}, would be read in other tokens from GGUF; {INSTEAD}")
    if prompts.prompt_of(distinct[:1]).tolist() != again.prompt_of(distinct[:1]).tolist():
        raise UserError(f"prompts would be read in other tokens from GGUF, though titles are not; {INSTEAD}")
    return logits_of(backbone.model, probe.ids, probe.mask)


def _add_sizes(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _interleaved(name: str, weight: Tensor, config: PretrainedConfig) -> Tensor:
    """A Llama's queries and keys as llama.cpp turns them: the two halves of a head, which transformers turns against each other, alternate."""
    family = family_of(config)
    heads = {f"{family.q}.weight": config.num_attention_heads, f"{family.k}.weight": config.num_key_value_heads}
    count = next((count for part, count in heads.items() if name.endswith(part)), None)
    return weight if count is None else weight.unflatten(0, (count, 2, -1)).transpose(1, 2).reshape(weight.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """The tokens of all `rows` of the embedding: those that no text has are named [PAD...] and marked as unused, as llama.cpp does."""
    try:
        content = content_of(tokenizer)
    except UserError as reason:
        raise UserError(f"{reason}, which GGUF cannot hold so that it is read as it is; {INSTEAD}") from reason
    tokens, types = [f"[PAD{number}]" for number in range(rows)], [TOKEN.UNUSED] * rows
    for token, number in content["model"]["vocab"].items():
        tokens[number], types[number] = token, TOKEN.NORMAL
    for added in content["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], TOKEN.CONTROL if added["special"] else TOKEN.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(content["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in merges_of(content)])
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            add(number)
    begins = tokenizer("").input_ids
    writer.add_add_bos_token(tokenizer.bos_token_id in begins)
    writer.add_add_eos_token(tokenizer.eos_token_id in begins)


def _splitting(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """llama.cpp's name of a pre-tokenizer; gpt-2 where it is a plain byte-level one, or has no name here."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer] if pre_tokenizer else [])
    named = [SPLITS[pattern] for step in steps if (pattern := step.get("pattern", {}).get("Regex")) in SPLITS]
    digits = ["smollm"] if any(step["type"] == "Digits" for step in steps) else []
    return next(iter([*named, *digits]), "gpt-2")
