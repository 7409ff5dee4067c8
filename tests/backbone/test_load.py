"""Every way in: tiny, a folder, a .gguf file; and what a step's folder holds."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import every_family, every_model, llama, qwen2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from recbole_prunerec.backbone import load
from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import load_backbone, load_step, save_step
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.shipped import properties
from recbole_prunerec.text.tokenizer import train_tokenizer

TITLES = ["Toy Story", "Heat", "Heat and Dust", "Seven", "Casino"]
TOKENIZER = train_tokenizer(TITLES, 280)
TINY = properties("backbone", "tiny")


def write_gguf(path, model, tokenizer) -> None:
    """A Llama in GGUF's own layout: q and k rows interleaved for its rotary embedding, GPT-2 style vocabulary and merges."""
    config, weights = model.config, {name: weight.float().numpy() for name, weight in model.state_dict().items()}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(spec["vocab"], key=spec["vocab"].get))
    writer.add_token_types([3] + [1] * (len(spec["vocab"]) - 1))
    writer.add_token_merges([" ".join(pair) for pair in spec["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)

    def interleaved(weight, heads):
        return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for name, theirs in (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")):
        writer.add_tensor(f"{theirs}.weight", weights[f"{name}.weight"])
    for layer in range(config.num_hidden_layers):
        for name, theirs in names.items():
            weight = weights[f"model.layers.{layer}.{name}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", interleaved(weight, heads) if heads else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_tiny_is_built_from_its_yaml_and_repeats_by_seed():
    first, again, other = (load_backbone("tiny", TINY, TITLES, seed) for seed in (1, 1, 2))
    assert first.random and first.hub_name is None and first.model.config.hidden_size == TINY["hidden_size"]
    assert first.model.config.vocab_size == len(first.tokenizer) <= TINY["vocab_size"]
    same, different = (zip(first.model.parameters(), backbone.model.parameters(), strict=True) for backbone in (again, other))
    assert all(torch.equal(one, two) for one, two in same)
    assert not all(torch.equal(one, two) for one, two in different)


@every_model
def test_a_folder_is_loaded_in_float32(tmp_path, make):
    model = make(dtype=torch.bfloat16, vocab_size=len(TOKENIZER))
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), TINY, [], 0)
    assert not backbone.random and backbone.hub_name is None
    for loaded, saved in zip(backbone.model.parameters(), model.parameters(), strict=True):
        assert loaded.dtype == torch.float32 and torch.equal(loaded, saved.float())


def gpt2_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits as GPT-2 does, as GGUF means it for a Llama."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([f'"{title}"\n' for title in TITLES], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def test_a_gguf_file_loads_with_equal_logits_and_saves_again(tmp_path):
    tokenizer = gpt2_tokenizer(280)
    model = llama(dtype=torch.float32, vocab_size=len(tokenizer), num_attention_heads=6, head_dim=8)
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    backbone = load_backbone(str(tmp_path / "model.gguf"), TINY, [], 0)
    ids = torch.tensor([tokenizer.encode('"Toy Story"\n"Heat"\n"')])
    assert backbone.tokenizer.encode('"Toy Story"\n"Heat"\n"', add_special_tokens=False) == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(backbone.model(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
        save_step(tmp_path / "saved", backbone.model, backbone.tokenizer, [199], ids[0].numpy())
        assert torch.equal(load_step(tmp_path / "saved")(ids).logits, backbone.model(ids).logits)


def test_weights_lie_as_those_that_were_never_in_a_file(tmp_path):
    """Their file's pages would lie as its header leaves them, and some processors round by that."""
    save_step(tmp_path, qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER)), TOKENIZER, [5], np.array([1, 2, 3]))
    loaded = [load_step(tmp_path), load_backbone(str(tmp_path), {}, (), 0).model]
    assert {weight.data_ptr() % 64 for model in loaded for weight in model.parameters()} == {0}


def test_a_saved_step_loads_anywhere_and_stops_at_the_terminator(tmp_path):
    model = qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER))
    prompt = np.array(TOKENIZER.encode('"Heat"\n"'))
    save_step(tmp_path, model, TOKENIZER, [5, 9], prompt)
    loaded, probe = AutoModelForCausalLM.from_pretrained(tmp_path), load_file(tmp_path / "probe.safetensors")
    with torch.inference_mode():
        assert torch.equal(loaded(probe["input_ids"]).logits[:, -4:], probe["logits"])
    assert probe["input_ids"].tolist() == [prompt.tolist()]
    assert loaded.generation_config.eos_token_id == [5, 9] and loaded.generation_config.do_sample is False
    assert AutoTokenizer.from_pretrained(tmp_path).encode("Toy Story") == TOKENIZER.encode("Toy Story")


def test_a_model_on_the_hub_is_loaded_from_the_folder_that_it_was_put_into(tmp_path, monkeypatch):
    model, asked = qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER)), []
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    monkeypatch.setattr(load, "hub_folder", lambda *argv: asked.append(argv) or tmp_path)
    backbone = load_backbone("some/model", TINY, [], 0)
    assert set(asked) == {("some/model", "backbone", True, None)} and backbone.hub_name == backbone.name == "some/model" and not backbone.random
    assert all(torch.equal(one, two) for one, two in zip(backbone.model.parameters(), model.parameters(), strict=True))


def test_commit_and_licence_of_a_model_on_the_hub_are_kept(tmp_path, monkeypatch):
    folder, asked = tmp_path / "snapshots" / ("a" * 40), []
    qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(load, "hub_folder", lambda *argv: asked.append(argv) or folder)
    backbone = load_backbone("some/model", TINY, [], 0, revision="v2")
    assert (backbone.licence, backbone.revision) == ("mit", "a" * 40) and set(asked) == {("some/model", "backbone", True, "v2")}


@every_family
def test_attention_is_computed_as_asked_and_stays_so_when_cut_and_loaded_again(tmp_path, make):
    """Flash attention is left to training, which has its precision."""
    make(dtype=torch.float32, vocab_size=len(TOKENIZER)).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    for asked, got in (("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager"), ("flash_attention_2", "sdpa")):
        model = load_backbone(str(tmp_path), TINY, [], 0, attn_implementation=asked).model
        plan = Plan.of("depth", "random", Sizes.of(model), layers=[0, 2])
        assert model.config._attn_implementation == got == apply(plan, model).config._attn_implementation
    assert load_backbone("tiny", TINY, TITLES, 0, attn_implementation="eager").model.config._attn_implementation == "eager"
    assert load_step(tmp_path, "eager").config._attn_implementation == "eager"


def test_a_tokenizer_whose_files_do_not_tell_its_ids_is_judged_when_it_is_loaded(tmp_path, monkeypatch):
    qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER) - 1).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    monkeypatch.setattr(load, "backbone_config", lambda key, name: {})  # as if nothing had been found
    with pytest.raises(UserError, match=f"its tokenizer has ids up to {len(TOKENIZER) - 1}, but the embedding has {len(TOKENIZER) - 1} rows; fetch"):
        load_backbone(str(tmp_path), TINY, [], 0)


@pytest.mark.parametrize("key", ["backbone", "teacher"])
def test_what_cannot_be_loaded_is_named_by_the_key_that_gave_it(tmp_path, key):
    def refused() -> str:
        with pytest.raises(UserError) as caught:
            load_backbone(str(tmp_path), TINY, [], 0, key)
        assert str(caught.value).startswith(f"{key}={tmp_path}")
        return str(caught.value).removeprefix(f"{key}={tmp_path}")

    assert refused() == " is a folder without config.json, so it holds no Hugging Face model"
    model = llama(dtype=torch.float32, vocab_size=len(TOKENIZER))
    model.save_pretrained(tmp_path)
    assert refused().startswith(" has no tokenizer")
    TOKENIZER.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layers.1.self_attn" not in name}, tmp_path / "model.safetensors", {"format": "pt"})
    assert refused() == " lacks 4 of its weights, such as model.layers.1.self_attn.k_proj.weight; fetch or save the model again"
    wrong = {**weights, "model.layers.1.self_attn.q_proj.weight": torch.zeros(3, 48)}
    save_file(wrong, tmp_path / "model.safetensors", {"format": "pt"})
    assert refused().startswith(" could not be loaded: ")
    save_file({**weights, "lm_head.bias": torch.zeros(len(TOKENIZER))}, tmp_path / "model.safetensors", {"format": "pt"})
    assert refused() == " has a bias in its output head, which transformers leaves out for this family; choose a model without"
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "none"}}')
    assert refused().startswith(" could not be loaded: ")


def test_no_pickle_is_ever_read(tmp_path, monkeypatch):
    """The weights are there, as a pickle: transformers alone would take them."""
    model = qwen2(dtype=torch.float32, vocab_size=len(TOKENIZER))
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has its weights as a pickle only"):
        load_backbone(str(tmp_path), TINY, [], 0)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_step(tmp_path)
    monkeypatch.setattr(load, "backbone_config", lambda key, name: {})  # as if the folder had not been judged
    with pytest.raises(UserError, match=r"could not be loaded: .*model\.safetensors"):
        load_backbone(str(tmp_path), TINY, [], 0)
