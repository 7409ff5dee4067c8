"""GGUF: what transformers and our own loader read back is the same model and the same tokenizer, to the bit."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from exportable import STYLES, write_exportable
from served_folder import TITLES, TOKENIZER
from tiny import batch, llama, mistral, qwen2, qwen3
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from recbole_prunerec.backbone.files import backbone_config
from recbole_prunerec.backbone.load import load_backbone
from recbole_prunerec.errors import UserError
from recbole_prunerec.export.command import export
from recbole_prunerec.prune.vocabulary import kept_tokens, trimmed_tokenizer
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Prompts

gguf = pytest.importorskip("gguf")

MODELS = {
    "llama": llama,
    "llama tied": partial(llama, tie_word_embeddings=True),
    "llama wide heads": partial(llama, head_dim=16),
    "llama, one head a group": partial(llama, num_key_value_heads=6),
    "qwen2": qwen2,
    "qwen2 untied": partial(qwen2, tie_word_embeddings=False),
    "qwen3": partial(qwen3, head_dim=128),
    "mistral": mistral,
    "mistral wide heads": partial(mistral, head_dim=16, tie_word_embeddings=True),
    "mistral whose window is as long as it reads": partial(mistral, sliding_window=512),
    "other constants": partial(llama, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
}


def read_again(path: Path):
    """By transformers, and nothing of ours."""
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    return AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(**where)


def logits(model, inputs):
    with torch.inference_mode():
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_transformers_reads_the_same_model(tmp_path, make):
    model = make(0, torch.float32, vocab_size=len(TOKENIZER))
    write_exportable(tmp_path / "step", model)
    printed = export(str(tmp_path / "step"), "gguf", str(tmp_path / "a.gguf"))
    again, _ = read_again(tmp_path / "a.gguf")
    inputs = batch(vocab=len(TOKENIZER))
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    assert again.num_parameters() == model.num_parameters() and again.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert printed.startswith(f"{tmp_path / 'a.gguf'}: written, ") and " by at most 0.0e+00, " in printed


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("trimmed", [False, True], ids=["whole", "trimmed"])
def test_titles_are_read_in_the_same_tokens(tmp_path, style, trimmed):
    tokenizer = STYLES[style]()
    if trimmed:
        kept = kept_tokens(prompts_of(tokenizer))
        assert len(kept) < len(tokenizer) or style == "qwen2"
        tokenizer = trimmed_tokenizer(tokenizer, kept)
    write_exportable(tmp_path / "step", llama(0, vocab_size=len(tokenizer) + 4), tokenizer)
    export(str(tmp_path / "step"), "gguf", str(tmp_path / "a.gguf"))
    model, again = read_again(tmp_path / "a.gguf")
    assert model.config.vocab_size == len(tokenizer) + 4
    for title in [*TITLES, "Chosen so far:\n", "Never seen 2001", *tokenizer.get_added_vocab()]:
        for special in (False, True):
            assert again(title, add_special_tokens=special).input_ids == tokenizer(title, add_special_tokens=special).input_ids, title
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert value_of(tmp_path / "a.gguf", "tokenizer.ggml.pre") == style


def prompts_of(tokenizer, titles=TITLES) -> Prompts:
    titles = list(dict.fromkeys(titles))
    return Prompts(tokenizer, Catalogue.build(["[PAD]", *titles], ["", *titles], [0] * (len(titles) + 1)), "list", 512)


def value_of(path: Path, key: str):
    return gguf.GGUFReader(path).fields[key].contents()


def test_keys_and_tokens_are_those_that_llama_cpp_reads(tmp_path):
    """Names by its documents; and queries with their halves alternating, place by place, against a loop."""
    tokenizer = STYLES["smollm"]()
    model = llama(0, torch.float32, vocab_size=len(tokenizer) + 2)
    write_exportable(tmp_path / "step", model, tokenizer)
    (tmp_path / "step" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    export(str(tmp_path / "step"), "gguf", str(tmp_path / "a.gguf"))
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "llama" and values["general.license"] == "apache-2.0" and values["general.file_type"] == 0
    sizes = {"embedding_length": 48, "block_count": 3, "feed_forward_length": 56, "context_length": 512, "vocab_size": len(tokenizer) + 2}
    heads = {"head_count": 6, "head_count_kv": 2, "key_length": 8, "value_length": 8}
    expected = {**sizes, **{f"attention.{name}": size for name, size in heads.items()}, "rope.dimension_count": 8}
    assert {name: values[f"llama.{name}"] for name in expected} == expected
    assert values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6) and values["llama.rope.freq_base"] == 10000
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert tokens[-2:] == [f"[PAD{len(tokenizer)}]", f"[PAD{len(tokenizer) + 1}]"]
    assert types == [3, 3, 3, *[1] * (len(tokenizer) - 4), 4, 5, 5]  # control, normal, user-defined, unused
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    weights = model.state_dict()
    for ours, theirs, count in (("q_proj", "attn_q", 6), ("k_proj", "attn_k", 2)):
        weight, turned = weights[f"model.layers.1.self_attn.{ours}.weight"].numpy(), found[f"blk.1.{theirs}.weight"]
        for head in range(count):
            for place in range(4):
                assert (turned[8 * head + 2 * place] == weight[8 * head + place]).all()
                assert (turned[8 * head + 2 * place + 1] == weight[8 * head + 4 + place]).all()
    assert (found["blk.1.attn_v.weight"] == weights["model.layers.1.self_attn.v_proj.weight"].numpy()).all()
    assert len(found) == 3 * 9 + 3 and all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in reader.tensors)


def test_it_is_a_backbone_like_any_other(tmp_path):
    write_exportable(tmp_path / "step", qwen2(0, vocab_size=len(TOKENIZER) + 3))
    (tmp_path / "step" / "README.md").write_text("---\nlicense: mit\n---\n")
    export(str(tmp_path / "step"), "gguf", str(tmp_path / "a.gguf"))
    assert backbone_config("backbone", str(tmp_path / "a.gguf"))["vocab_size"] == len(TOKENIZER) + 3
    loaded = load_backbone(str(tmp_path / "a.gguf"), {}, (), 0)
    before = load_backbone(str(tmp_path / "step"), {}, (), 0)
    assert loaded.licence == before.licence == "mit"
    one, two = loaded.model.state_dict(), before.model.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_titles_that_gguf_would_spell_otherwise_are_refused_and_nothing_stays(tmp_path):
    """Qwen's tokenizer composes signs first (NFC), for which GGUF has no key."""
    titles = ["Heat", "Ame\u0301lie", "Toy Story"]
    catalogue = Catalogue.build(["[PAD]", *titles], ["", *titles], [0] * 4)
    write_exportable(tmp_path / "step", qwen2(0, vocab_size=len(TOKENIZER)), catalogue=catalogue)
    with pytest.raises(UserError) as raised:
        export(str(tmp_path / "step"), "gguf", str(tmp_path / "a.gguf"))
    expected = "1 of 3 titles, such as 'Ame\u0301lie', would be read in other tokens from GGUF; use --to=onnx"
    assert str(raised.value) == f"model={tmp_path / 'step'}: {expected}"
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused(tmp_path):
    words = sorted({*"".join(TITLES), *'Chosen so far:\n"'})
    backend = Tokenizer(models.WordLevel({sign: number for number, sign in enumerate(["?", *words])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    write_exportable(tmp_path / "step", llama(0, vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(UserError, match=r"is WordLevel and no byte-level BPE, which GGUF cannot hold so that it is read as it is; use --to=onnx"):
        export(str(tmp_path / "step"), "gguf", str(tmp_path / "a.gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["step"]
