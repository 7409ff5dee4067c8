"""A backbone's folder or file that is not whole, or not what can be pruned, is answered from its files alone, in one sentence a problem."""

import json

import numpy as np
import pytest
from hf_folder import CONFIG, weights, write_folder
from safetensors.numpy import save_file

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone import files
from recbole_prunerec.backbone.files import HUB_NAME, backbone_config, folder_config
from recbole_prunerec.errors import UserError

INDEX = "model.safetensors.index.json"


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_arguments(argv)
    return str(caught.value).splitlines()


@pytest.fixture(params=["backbone", "teacher"])
def judged(request, tmp_path):
    """What the command line says of the folder tmp_path, given as backbone or as teacher, behind `key=path`."""
    steps = "[{do: finetune}]" if request.param == "backbone" else "[{do: depth, layers: 2}]"
    start = f"{request.param}={tmp_path}"

    def judge() -> list[str]:
        found = mistakes(f"--{request.param}={tmp_path}", f"--steps={steps}")
        assert all(line.startswith(start) for line in found), found
        return [line.removeprefix(start) for line in found]

    return judge


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, " is a folder without config.json, so it holds no Hugging Face model"),
        ('{"model_type": ', ": its config.json is damaged (Expecting value: line 1 column 16 (char 15)); fetch or save the model again"),
        ("", ": its config.json is damaged (Expecting value: line 1 column 1 (char 0)); fetch or save the model again"),
        ("version https://git-lfs.github.com/spec/v1\n", ": its config.json is a pointer of Git LFS and not the file itself (run git lfs pull)"),
        ("[1]", ": its config.json has no model_type, so it holds no Hugging Face model"),
        ("{}", ": its config.json has no model_type, so it holds no Hugging Face model"),
        ('{"model_type": "gpt2"}', " is of the family gpt2, which is not supported; choose a model of one of the families qwen2, "),
        (
            {"hidden_size": None, "intermediate_size": "56", "num_hidden_layers": 0},
            ": its config.json lacks hidden_size, num_hidden_layers, intermediate_size, so it is not a decoder that can be pruned",
        ),
        ({"num_key_value_heads": 4}, ": its config.json has num_key_value_heads=4, which does not divide num_attention_heads=6"),
        ({"num_key_value_heads": 0}, ": its config.json has num_key_value_heads=0, which does not divide num_attention_heads=6"),
        (
            {"model_type": "qwen", "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}},
            " wants to run code of its own (auto_map in its config.json), which is never run; choose a model of one of the families qwen2, ",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            " is quantized (quantization_config in its config.json), and such weights cannot be cut; choose the model in full precision",
        ),
    ],
)
def test_a_config_that_is_no_decoders_is_told_apart(tmp_path, judged, config, expected):
    write_folder(tmp_path, **(config if isinstance(config, dict) else {}))
    if config is None:
        (tmp_path / "config.json").unlink()
    elif isinstance(config, str):
        (tmp_path / "config.json").write_text(config)
    (found,) = judged()
    assert found.startswith(expected), found


@pytest.mark.parametrize("changes", [{}, {"model_type": "qwen2"}, {"num_key_value_heads": None}, {"vocab_size": 21}])
def test_a_whole_folder_gives_its_config(tmp_path, changes):
    write_folder(tmp_path, **changes)
    (tmp_path / "pytorch_model.bin").touch()  # beside safetensors a pickle is nobody's business
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert backbone_config("backbone", str(tmp_path)) == folder_config("x", tmp_path) == {**CONFIG, **changes}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, " has no tokenizer (tokenizer.json, or vocab.json and merges.txt); save the model's tokenizer in the same folder"),
        ({"vocab.json": "{}"}, " has no tokenizer"),
        ({"tokenizer.model": "x"}, " has its tokenizer as tokenizer.model only, which needs the package sentencepiece"),
        ({"tokenizer.json": '{"model": {'}, ": its tokenizer.json is damaged (Expecting property name enclosed in double quotes: line 1"),
        ({"tokenizer.json": b"\xff\xfe"}, ": its tokenizer.json is damaged ('utf-8' codec can't decode byte 0xff in position 0"),
        ({"tokenizer.json": "[]"}, ": its tokenizer.json holds no tokenizer"),
        ({"tokenizer.json": "{}"}, ": its tokenizer.json holds no tokenizer"),
        ({"vocab.json": "{", "merges.txt": ""}, ": its vocab.json is damaged (Expecting property name"),
        ({"tokenizer.json": '{"model": 1}', "tokenizer_config.json": '{"a": '}, ": its tokenizer_config.json is damaged (Expecting value: line 1"),
        (
            {"tokenizer.json": '{"model": 1}', "tokenizer_config.json": '{"auto_map": {}}'},
            " wants to run code of its own (auto_map in its tokenizer_config.json), which is never run; choose a stock tokenizer",
        ),
    ],
)
def test_a_tokenizer_that_is_not_whole_is_named(tmp_path, judged, monkeypatch, content, expected):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    (write_folder(tmp_path) / "tokenizer.json").unlink()
    for name, text in content.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    (found,) = judged()
    assert found.startswith(expected), found


def test_a_tokenizer_comes_in_three_forms(tmp_path, monkeypatch):
    (write_folder(tmp_path) / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").touch()
    monkeypatch.setattr(files, "find_spec", lambda name: name == "sentencepiece" or None)
    assert folder_config("x", tmp_path) == CONFIG
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").touch()
    assert folder_config("x", tmp_path) == CONFIG


def shards(path, lost: str | None = None) -> dict[str, str]:
    """Write the weights as two shards and their index, without those called `lost`. Returns the index's weight_map."""
    (write_folder(path) / "model.safetensors").unlink()
    tensors = weights(CONFIG)
    parts = {"a.safetensors": dict(list(tensors.items())[:2]), "b.safetensors": dict(list(tensors.items())[2:])}
    places = {name: file for file, part in parts.items() for name in part}
    for file, part in parts.items():
        save_file({name: value for name, value in part.items() if name != lost} or {"other": np.zeros(1)}, path / file)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_weights_in_several_files_are_judged_by_their_index(tmp_path, judged):
    shards(tmp_path)
    assert folder_config("x", tmp_path) == CONFIG
    (tmp_path / "b.safetensors").unlink()
    assert judged() == [f" lacks b.safetensors, named in its {INDEX}; fetch the model again"]
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    size = (tmp_path / "a.safetensors").stat().st_size
    assert judged() == [f": its b.safetensors is cut: it has {size - 1:,} bytes, of {size:,}; fetch or save the model again"]
    shards(tmp_path, lost="model.layers.2.mlp.up_proj.weight")
    (found,) = judged()
    assert found.startswith(f": its {INDEX} names model.layers.2.mlp.up_proj.weight, which is not in b.safetensors")


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b.safetensors"}}'])
def test_an_index_that_leads_nowhere_is_refused(tmp_path, judged, index):
    shards(tmp_path)
    (tmp_path / INDEX).write_text(index)
    (found,) = judged()
    assert found.startswith(f": its {INDEX} " + ("is damaged (" if index == "{" else "does not say where the weights are; fetch or save"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], " has no weights (model.safetensors)"),
        (["probe.safetensors"], " has no weights (model.safetensors)"),
        (["adapter.safetensors"], " has no weights (model.safetensors); it has adapter.safetensors, which nothing looks for under that name"),
        (
            ["pytorch_model.bin"],
            " has its weights as a pickle only (pytorch_model.bin), which can run code when it is read; "
            "choose a model with safetensors, or save it as such where you trust it",
        ),
        (["a.pth", "b.pt"], " has its weights as a pickle only (a.pth, b.pt), which can run code when it is read"),
    ],
)
def test_a_folder_without_weights_says_what_it_has(tmp_path, judged, names, expected):
    (write_folder(tmp_path) / "model.safetensors").unlink()
    for name in names:
        (tmp_path / name).touch()
    (found,) = judged()
    assert found.startswith(expected) and (len(expected) > 60 or found == expected)


def test_weights_that_do_not_fit_the_config_are_refused_before_transformers_draws_new_ones(tmp_path, judged):
    def with_config(**changes):
        (write_folder(tmp_path) / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        return judged()

    assert with_config(num_hidden_layers=4) == [" has weights of 3 layers, but its config.json says num_hidden_layers=4; fetch the model again"]
    shape = " has an embedding of shape [20, 48], but its config.json says vocab_size={}, hidden_size={}; fetch the model again"
    assert with_config(vocab_size=21) == [shape.format(21, 48)]
    assert with_config(hidden_size=24) == [shape.format(20, 24)]
    save_file({name: value for name, value in weights(CONFIG).items() if "embed" not in name}, write_folder(tmp_path) / "model.safetensors")
    assert judged() == [" has no embedding, but its config.json says vocab_size=20, hidden_size=48; fetch the model again"]


@pytest.mark.parametrize(
    "content",
    [
        {"tokenizer.json": {"model": {"vocab": {"a": 0, "b": 20}}}},
        {"tokenizer.json": {"model": {"vocab": [["a", -1.0]] * 21}}},
        {"tokenizer.json": {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 3}, {"id": 20}]}},
        {"tokenizer.json": {"model": {"vocab": {"a": 0}}}, "tokenizer_config.json": {"added_tokens_decoder": {"20": {}}}},
        {"tokenizer.json": {"model": {}}, "added_tokens.json": {"<pad>": 20}},
        {"vocab.json": {"a": 19, "b": 20}, "merges.txt": ""},
    ],
)
def test_a_tokenizer_with_ids_beyond_the_embedding_is_told_before_anything_is_loaded(tmp_path, judged, content):
    def write(changed):
        (write_folder(tmp_path) / "tokenizer.json").unlink()
        for name, value in changed.items():
            (tmp_path / name).write_text(json.dumps(value))

    write(content)
    assert judged() == [
        ": its tokenizer has ids up to 20, but the embedding has 20 rows; fetch the tokenizer that belongs to the model, "
        "or save both again after model.resize_token_embeddings"
    ]
    write(json.loads(json.dumps(content).replace("20", "19").replace(', ["a", -1.0]]', "]")))
    assert folder_config("x", tmp_path) == CONFIG  # as many as there are rows, or fewer


def test_an_output_head_must_be_as_tied_as_the_config_says(tmp_path, judged):
    def write(tied: bool | None, **head) -> None:
        write_folder(tmp_path, **({} if tied is None else {"tie_word_embeddings": tied}))
        if tied is None:
            (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in CONFIG.items() if not key.startswith("tie")}))
        save_file({**weights(CONFIG), **head}, tmp_path / "model.safetensors")

    embedding = weights(CONFIG)["model.embed_tokens.weight"]
    other = embedding.copy()
    other[-1, -1] = 1e-6
    for tied, head in ((True, {}), (True, {"lm_head.weight": embedding}), (False, {"lm_head.weight": other}), (None, {"lm_head.weight": embedding})):
        write(tied, **head)
        assert folder_config("x", tmp_path)["hidden_size"] == 48
    write(True, **{"lm_head.weight": other})
    assert judged() == [
        " has a lm_head.weight other than its embedding, but its config.json ties the two; set tie_word_embeddings=false there to keep both"
    ]
    for tied in (False, None):
        write(tied)
        assert judged() == [" lacks lm_head.weight; fetch the model again, or set tie_word_embeddings=true in its config.json where the head is tied"]


def test_all_that_is_wrong_with_a_folder_comes_at_once(tmp_path, judged):
    (write_folder(tmp_path) / "tokenizer.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first, second = judged()
    assert first.startswith(": its tokenizer.json is damaged") and second.startswith(": its model.safetensors is cut")


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "~/nowhere", "some/where/else", "/" + "a" * 300])
def test_a_path_that_leads_nowhere_is_no_name_on_the_hub(name):
    (found,) = mistakes(f"--backbone={name}")
    assert found.startswith(f"backbone={name} is not a folder; give the path of one with a Hugging Face model")
    assert found.endswith("(the shell leaves ~ as it is behind an equals sign; write $HOME)") == name.startswith("~")


@pytest.mark.parametrize(
    "name", ["a" * 300, "tniy", "Tiny", "gpt2", "a b/c", "a/b ", "a/-b", "-a/b", "a/b.", "a--b/c", "a/b..c", "http:/x", "a/" + "b" * 96, "ä/b"]
)
def test_a_name_that_cannot_be_on_the_hub_is_refused(name):
    (found,) = mistakes(f"--backbone={name}")
    assert found.startswith(f"backbone={name} is neither tiny, nor a folder, nor a name on the Hugging Face hub such as Qwen/Qwen2-0.5B")
    assert found.endswith("; did you mean 'tiny'?") == (name.lower() in ("tniy", "tiny"))


@pytest.mark.parametrize("name", ["Qwen/Qwen2-0.5B", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b", "a_b/c.d"])
def test_a_name_on_the_hub_is_left_to_the_hub(name):
    assert backbone_config("backbone", name) is None and HUB_NAME.fullmatch(name)


def test_a_revision_is_for_the_hub_alone(tmp_path):
    folder = write_folder(tmp_path / "model")
    for argv, got in (
        ([f"--backbone={folder}", "--steps=[{do: finetune}]"], f"backbone={folder}"),
        (["--backbone=tiny"], "backbone=tiny"),
        ([f"--teacher={folder}", "--backbone=some/model", "--steps=[{do: depth, layers: 2}]"], f"teacher={folder}"),
    ):
        assert mistakes(*argv, "--revision=v2") == [f"revision=v2 is of a backbone on the Hugging Face hub, got {got}; leave it out"]
    assert load_arguments(["--backbone=some/model", "--revision=v2"]).settings.revision == "v2"


def test_flash_attention_needs_its_package_a_gpu_and_bfloat16():
    flash = "attn_implementation=flash_attention_2"
    assert mistakes("--attn_implementation=flash_attention_2", "--device=cpu", "--precision=float32") == [
        f"{flash} needs the package flash_attn, which is not installed; choose sdpa",
        f"{flash} knows no float32, got precision=float32; choose precision=bfloat16, or sdpa",
        f"{flash} needs a GPU, got device=cpu; choose sdpa",
    ]


def test_a_file_that_is_no_folder_says_so(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    assert mistakes(f"--backbone={path}") == [f"backbone={path} is a file; give the folder it lies in, or a file in GGUF whose name ends in .gguf"]


def test_a_gguf_file_must_be_there_and_needs_its_package(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    assert mistakes(f"--backbone={path}") == [f"backbone={path} does not exist; give the path of a .gguf file"]
    path.touch()
    assert mistakes(f"--backbone={path}") == [f"backbone={path}: its model.gguf is no GGUF file; fetch it again"]
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert mistakes(f"--backbone={path}") == [f"backbone={path} needs the package gguf to be read; run: pip install -c constraints.txt -e '.[gguf]'"]
