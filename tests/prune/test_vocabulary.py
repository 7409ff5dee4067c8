"""A trimmed vocabulary: titles keep their spelling, texts their bytes, and kept tokens their logits."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILIES, every_family
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, Qwen2Tokenizer

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import in_own_memory
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.plan import Plan
from recbole_prunerec.prune.surgery import apply
from recbole_prunerec.prune.vocabulary import kept_tokens, trimmed_tokenizer, vocabulary_after
from recbole_prunerec.settings import Finetune, Vocabulary
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Prompts

TITLES = ["The Matrix (1999)", "Amélie", "Das Boot", "7 Samurai", "東京物語", "Crouching Tiger, Hidden Dragon", "The Thing", "Other Things 🎬"]
CORPUS = [
    *TITLES,
    "the other brother gathers leather there and then, however the weather",
    "an unrelated sentence about something that never happens in titles, with strange strings",
    "numbers 1999 2001 1984 and words, wordings, wordless swords",
] * 3


def byte_level(end: str = "<|endoftext|>", added: tuple[str, ...] = (), ignore_merges: bool = False) -> Tokenizer:
    """A byte-level BPE of 600 tokens that knows more than the titles."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[end, *added], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def smollm2_style():
    """As SmolLM2's: special tokens first, digits apart."""
    backend = byte_level("<|endoftext|>", ("<|im_start|>", "<|im_end|>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|im_end|>")


def qwen2_style():
    """As Qwen2's: the class itself, NFC, special tokens behind the others."""
    content = json.loads(byte_level("<|unused|>").to_str())["model"]
    vocab = {token: number for number, token in enumerate(token for token in content["vocab"] if token != "<|unused|>")}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[tuple(pair) for pair in content["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def llama3_style():
    """As Llama 3's: whole words are looked up before merges, and a BOS is put first."""
    backend = byte_level("<|end_of_text|>", ("<|begin_of_text|>",), ignore_merges=True)
    begin = ("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[begin])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


STYLES = {"smollm2": smollm2_style, "qwen2": qwen2_style, "llama3": llama3_style}
TOKENIZERS = {name: make() for name, make in STYLES.items()}


def prompts_of(tokenizer, titles=TITLES, template="list") -> Prompts:
    return Prompts(tokenizer, Catalogue.build(["[PAD]", *titles], ["", *titles], [0] * (len(titles) + 1)), template, 512)


KEPT = {name: kept_tokens(prompts_of(tokenizer)) for name, tokenizer in TOKENIZERS.items()}
NEW = {name: trimmed_tokenizer(TOKENIZERS[name], kept) for name, kept in KEPT.items()}
every_name = pytest.mark.parametrize("name", TOKENIZERS)


@every_name
@pytest.mark.parametrize("template", ["list", "bigrec"])
def test_titles_and_prompts_map_one_to_one(name, template):
    before = prompts_of(TOKENIZERS[name], template=template)
    kept = kept_tokens(before)
    after = before.with_tokenizer(trimmed_tokenizer(TOKENIZERS[name], kept))
    assert len(kept) < len(TOKENIZERS[name])
    history = list(range(1, len(TITLES) + 1))
    assert [kept[token] for token in after.prompt(history)] == before.prompt(history).tolist()
    for title in range(len(TITLES)):
        assert [kept[token] for token in after.answers[title]] == before.answers[title].tolist()
    assert kept[after.pad_id] == before.pad_id


@every_name
def test_nothing_is_kept_without_a_reason(name):
    """By brute force: used tokens, the parts of whatever merge makes a kept token, bytes, special tokens; and no other."""
    old, prompts = TOKENIZERS[name], prompts_of(TOKENIZERS[name])
    content = json.loads(old.backend_tokenizer.to_str())
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    needed = {old.convert_ids_to_tokens(int(number)) for answer in prompts.answers for number in answer}
    needed |= set(old.convert_ids_to_tokens([*prompts.prompt([]).tolist(), *prompts.closing]))
    needed |= set(pre_tokenizers.ByteLevel.alphabet()) | {token["content"] for token in content["added_tokens"]}
    grown = True
    while grown:
        parts = {part for left, right in merges if left + right in needed for part in (left, right)}
        grown = not parts <= needed
        needed |= parts
    assert [old.convert_ids_to_tokens(number) for number in KEPT[name]] == sorted(needed, key=lambda token: old.convert_tokens_to_ids(token))
    assert set(vocab) - needed  # otherwise this says nothing


@every_name
def test_without_the_ancestors_titles_would_be_spelled_otherwise(name):
    old, prompts = TOKENIZERS[name], prompts_of(TOKENIZERS[name])
    bare = sorted(prompts.used_ids | {old.convert_tokens_to_ids(byte) for byte in pre_tokenizers.ByteLevel.alphabet()} | set(old.all_special_ids))
    bare = sorted({*bare, *(token["id"] for token in json.loads(old.backend_tokenizer.to_str())["added_tokens"])})
    again = prompts.with_tokenizer(trimmed_tokenizer(old, bare)) if name != "llama3" else None
    if again is not None:  # Llama 3 looks whole words up
        assert any(len(ours) != len(theirs) for ours, theirs in zip(again.answers, prompts.answers, strict=True))


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.sampled_from(CORPUS)


@every_name
@given(text=TEXTS)
def test_a_text_round_trips_where_it_did_before(name, text):
    old, new = TOKENIZERS[name], NEW[name]
    before = old.decode(old.encode(text, add_special_tokens=False))
    after = new.decode(new.encode(text, add_special_tokens=False))
    assert (after == text) == (before == text) and after == before


@every_name
@given(titles=st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=12), min_size=1, max_size=5, unique=True))
def test_any_catalogue_keeps_its_spelling(name, titles):
    try:
        before = prompts_of(TOKENIZERS[name], titles)
    except UserError:  # titles that the tokenizer cannot tell apart
        return
    kept = kept_tokens(before)
    after = before.with_tokenizer(trimmed_tokenizer(TOKENIZERS[name], kept))
    assert [[kept[token] for token in answer] for answer in after.answers] == [answer.tolist() for answer in before.answers]


@every_name
def test_it_is_loaded_from_its_files_as_it_is(name, tmp_path):
    NEW[name].save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(TOKENIZERS[name])
    for text in CORPUS:
        assert loaded.encode(text) == NEW[name].encode(text)
    assert len(loaded) == len(KEPT[name]) and loaded.eos_token == TOKENIZERS[name].eos_token
    assert KEPT[name][loaded.eos_token_id] == TOKENIZERS[name].eos_token_id


@every_family
def test_logits_of_kept_tokens_are_what_they_were(make):
    model, tokens = make(eos_token_id=7, bos_token_id=3), [0, 3, 5, 7, 11, 50, 96]
    model.generation_config = GenerationConfig(eos_token_id=[7, 50], pad_token_id=0, bos_token_id=4)
    cut = apply(Plan.of("vocabulary", "titles", Sizes.of(model), tokens=tokens), model)
    ids = torch.tensor([[3, 1, 6, 2, 4], [0, 0, 5, 6, 1]])
    with torch.no_grad():
        expected = model(torch.tensor(tokens)[ids]).logits[..., tokens]
        assert torch.allclose(cut(ids).logits, expected, rtol=0, atol=1e-12)
    assert Sizes.of(cut).vocab == cut.config.vocab_size == 7
    assert (cut.config.eos_token_id, cut.config.bos_token_id) == (3, 1)
    assert (cut.generation_config.eos_token_id, cut.generation_config.pad_token_id, cut.generation_config.bos_token_id) == ([3, 5], 0, None)
    assert Sizes.of(model).vocab == 97 and model.config.eos_token_id == 7  # the old one does not change


@every_family
def test_a_trimmed_model_is_plain_elsewhere(make, tmp_path):
    model = make(dtype=torch.float32)
    cut = apply(Plan.of("vocabulary", "titles", Sizes.of(model), tokens=list(range(0, 97, 2))), model)
    cut.save_pretrained(tmp_path)
    loaded = in_own_memory(AutoModelForCausalLM.from_pretrained(tmp_path))
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids).logits, cut(ids).logits)


def test_all_tokens_kept_is_the_same_model():
    model = FAMILIES["qwen2"]()
    cut = apply(Plan.of("vocabulary", "titles", Sizes.of(model), tokens=list(range(97))), model)
    ids = torch.arange(9)[None]
    assert torch.equal(cut(ids).logits, model(ids).logits)


def characters() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def word_pieces() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[SEP]"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")


@pytest.mark.parametrize(
    ("make", "reason"), [(characters, "is a BPE over characters and no byte-level one"), (word_pieces, "is WordPiece and no byte-level BPE")]
)
def test_another_kind_of_tokenizer_is_refused_with_the_reason(make, reason):
    prompts = prompts_of(make(), ["The Matrix", "Das Boot"])
    with pytest.raises(UserError, match=reason):
        kept_tokens(prompts)
    assert vocabulary_after([Vocabulary(do="vocabulary"), Finetune(do="finetune")], prompts) is None


def test_the_number_that_is_left_is_known_beforehand():
    prompts = prompts_of(TOKENIZERS["qwen2"])
    assert vocabulary_after([Finetune(do="finetune")], prompts) is None
    assert vocabulary_after([Finetune(do="finetune"), Vocabulary(do="vocabulary")], prompts) == len(KEPT["qwen2"])
