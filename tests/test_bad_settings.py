"""Mistakes made from the settings themselves: for every key what is of another type, out of range, misspelt or null. Each answer names the key.

What a key takes is read from the JSON schema of the models, so that a key added to them is tested as well.
"""

import re
from collections import Counter

import pytest

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import recbole_data_keys, recbole_defaults
from recbole_prunerec.validation.recbole_keys import REFUSED, SHARED

SCHEMA = Settings.model_json_schema()
STEPS = {1: "Finetune", 2: "Width", 3: "Mlp", 4: "Depth"}  # those of the preset tiny
HUGE = 10**30
WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "list": "a list",
    "object": "keys and values",
}
WRONG = {  # by JSON schema's name of a type: values of other types, as YAML
    "integer": ["1.5", "true", "ten", "[1]", "{a: 1}", "''", ".inf", ".nan", "1e3", "0x1F", "1:30", "2020-01-01", str(HUGE), f"-{HUGE}"],
    "number": ["ten", "true", "[1.0]", "{a: 1}", "''", ".inf", "-.inf", ".nan", "1:30", "9" * 400],
    "boolean": ["1", "0", "maybe", "[true]", "{a: 1}", "''", "1.0"],
    "string": ["3", "1.5", "true", "[]", "[a]", "{a: 1}", "''", "'  '", "2020-01-01"],
    "object": ["3", "true", "text", "[1]"],
}
ITEMS = {
    "integer": ["ten", "1.5", "true", "[[1]]", "{a: 1}", ".nan"],
    "number": ["0.9,a", "0.9,true", "0.9,.nan"],
    "string": ["[[a]]", "[{a: 1}]", "[null]"],
}


def resolved(schema: dict) -> dict:
    """A schema with its reference followed, and null told apart: nullable schemas have `null: True`."""
    if "$ref" in schema:
        return resolved(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    kinds = schema.get("anyOf", [])
    if {"type": "null"} in kinds:
        (other,) = (kind for kind in kinds if kind != {"type": "null"})
        return resolved(other) | {"null": True}
    return schema


def keys(schema: dict, path: str = "") -> list[tuple[str, dict]]:
    """Every key below a schema by its path, with what it takes."""
    found = []
    for name, part in schema["properties"].items():
        part = resolved(part)
        if path + name == "recbole":  # filled from the top level
            continue
        found.append((path + name, part))
        if path + name == "steps":
            for number, step in STEPS.items():
                found += keys(SCHEMA["$defs"][step], f"steps.{number}.")
        elif "properties" in part:
            found += keys(part, f"{path}{name}.")
    return found


def wrong_values(path: str, schema: dict) -> list[str]:
    """Values, as YAML, that a key does not take."""
    values = [] if schema.get("null") or schema.get("type") == "array" else ["null"]  # no list is an empty one
    if "enum" in schema or "const" in schema:
        options = schema.get("enum", [schema.get("const")])
        return [*values, "3", "true", "[a]", "{a: 1}", "''", *(f"{option}x" for option in options), options[0].upper()]
    if schema["type"] == "array":
        lists = ["3", "true", "[null]"] if path == "steps" else ITEMS[schema.get("items", schema.get("prefixItems", [{}])[0])["type"]]
        return [*lists, *(["0.9", "[0.9, 0.9, 0.9]", "[]", "0.9,1", "0.9,-1"] if "prefixItems" in schema else [])]
    values += WRONG[schema["type"]]
    one = 1 if schema["type"] == "integer" else 0.5
    values += [str(schema["minimum"] - one)] if "minimum" in schema else []
    values += [str(schema["maximum"] + one)] if "maximum" in schema else []
    values += [str(schema["exclusiveMinimum"]), "-1"] if "exclusiveMinimum" in schema else []
    return values


def misspelt(path: str) -> str:
    """A key with its last letter twice."""
    return path + path[-1]


KEYS = dict(keys(SCHEMA))
VALUES = [(path, value) for path, schema in KEYS.items() for value in wrong_values(path, schema)]


def problems(argv: list[str]) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_arguments(argv)
    return str(caught.value).splitlines()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("mine") / "mine.yaml"


def as_user(file, path: str, value: str, text: bool) -> list[str]:
    """The arguments that set a key. On the command line `text` is text whatever it looks like, so what is none goes into `file`."""
    if not text:
        return [f"--{path}={value}"]
    file.write_text(f"{path}: {value}\n")
    return [f"--config_files={file}"]


def test_all_keys_are_there_with_enough_of_each_mistake():
    assert len(VALUES) + len(KEYS) > 600
    assert {"epochs", "dataset", "steps", "steps.2.heads", "steps.2.restore.kd_weight", "restore.kd_loss", "ranking.beams", "adam_betas"} <= set(KEYS)
    least = Counter(path for path, _ in VALUES)
    assert all(least[path] >= 3 for path in KEYS), least


@pytest.mark.parametrize(("path", "value"), VALUES)
def test_a_value_that_a_key_does_not_take_is_answered_by_its_name(file, path, value):
    found = problems(as_user(file, path, value, KEYS[path].get("type") == "string" and "." not in path))
    assert len(found) == 1, found
    assert re.match(rf"{re.escape(path)}(\.\d+)?(=| is empty|\.do is missing)", found[0]), found


@pytest.mark.parametrize("path", KEYS)
def test_a_misspelt_key_is_answered_by_the_right_one(path):
    (found,) = problems([f"--{misspelt(path)}=1"])
    assert found.startswith(f"{misspelt(path)} is ") and found.endswith(f"; did you mean {path.rpartition('.')[2]!r}?"), found


MODELS = ("SASRec", "Caser", "NARM", "NextItNet", "SASRecCPR")  # between them every type that RecBole's keys have
THEIRS = {key: (model, default) for model in MODELS for key, default in recbole_defaults([model]).items()}
THEIRS = {key: value for key, value in THEIRS.items() if key not in {*REFUSED, *Settings.model_fields, "gpu_id", "use_gpu"}}
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "list", dict: "object"}
# What the comments in RecBole's YAML say of keys whose default is null.
NULLS = {"clip_grad_norm": "object", "seq_len": "object", "val_interval": "object", "normalize_field": "list", "rm_dup_inter": "string"}


def type_of(key: str) -> str | None:
    """JSON schema's name of the type of a key of RecBole's."""
    default = THEIRS[key][1]
    return NULLS.get(key) if default is None else "number" if key.endswith("_prob") else NAMES[type(default)]


def others(key: str) -> list[str]:
    """Values, as YAML, of another type than RecBole's default has."""
    kind = type_of(key)
    if kind == "string":  # blank is a separator, for example; and empty is what some are by default
        return [value for value in WRONG["string"] if value.strip("' ") or (value == "''" and THEIRS[key][1])]
    return ["{a: 1}", "[[a]]"] if kind == "list" else WRONG.get(kind, [])[:5] + WRONG.get(kind, [])[-2:]


THEIR_VALUES = [(key, value) for key in THEIRS for value in others(key)]


def test_all_types_of_recboles_keys_are_there():
    assert {type_of(key) for key in THEIRS} == {*NAMES.values(), None}
    assert len(THEIR_VALUES) > 350
    assert all(THEIRS[key][1] is None for key in NULLS)


@pytest.mark.parametrize(("key", "value"), THEIR_VALUES)
def test_a_value_that_a_key_of_recboles_does_not_take_is_answered_by_its_name(file, key, value):
    found = problems([f"--model={THEIRS[key][0]}", *as_user(file, key, value, type_of(key) == "string")])
    assert len(found) == 1 and re.match(rf"{key}(\.\d+)?=", found[0]), found


@pytest.mark.parametrize("key", [key for key, (_, default) in THEIRS.items() if default not in (None, [])])
def test_null_is_taken_only_where_recbole_takes_it(file, key):
    argv = [f"--model={THEIRS[key][0]}", *as_user(file, key, "null", True)]
    default = THEIRS[key][1]
    if key in ("train_neg_sample_args", "user_inter_num_interval", "item_inter_num_interval"):
        assert load_arguments(argv).settings.recbole[key] is None
    else:
        shown = str(default).lower() if isinstance(default, bool) else repr(default)
        example = "" if default == "" else f", such as {shown}"
        assert problems(argv) == [f"{key}=null: expected {WORDS[type_of(key)]}{example}"]


@pytest.mark.parametrize("key", THEIRS)
def test_a_misspelt_key_of_recboles_is_answered_by_the_right_one(key):
    model, _ = THEIRS[key]
    assert problems([f"--model={model}", f"--{misspelt(key)}=1"]) == [f"{misspelt(key)} is not a known key; did you mean {key!r}?"]
    path = f"baselines.{misspelt(key)}"
    assert problems([f"--model={model},PruneRec", f"--{path}=1"]) == [f"{path} is not a key of RecBole's; did you mean {key!r}?"]


@pytest.mark.parametrize("key", THEIRS)
def test_a_key_of_the_baselines_is_judged_alike(key):
    if key in SHARED or key in recbole_data_keys():
        (found,) = problems([f"--model={THEIRS[key][0]},PruneRec", f"--baselines.{key}=1"])
        assert found == f"baselines.{key} cannot be set: it is the same for all models of a table; write --{key}=1"
    elif wrong := [value for value in others(key) if type_of(key) != "string"]:
        (found,) = problems([f"--model={THEIRS[key][0]},PruneRec", f"--baselines.{key}={wrong[0]}"])
        assert re.match(rf"baselines\.{key}(\.\d+)?=", found)


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("n_layers=0", "expected at least 1"),
        ("hidden_size=-64", "expected at least 1"),
        ("eval_batch_size=0", "expected at least 1"),
        ("worker=-1", "expected at least 0"),
        ("hidden_dropout_prob=1.5", "expected at most 1"),
        ("attn_dropout_prob=-0.1", "expected at least 0"),
        ("train_neg_sample_args.alpha=.nan", "expected a finite number, at most 2147483647"),
        ("train_neg_sample_args.sample_num=0", "expected at least 1"),
    ],
)
def test_a_number_of_recboles_is_in_its_range(argument, problem):
    path, _, value = argument.partition("=")
    assert problems(["--model=SASRec", f"--{argument}"]) == [f"{path}={value.lstrip('.')}: {problem}"]


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("learner=adma", "expected one of adam, adamw, sgd, adagrad, rmsprop, sparse_adam; did you mean 'adam'?"),
        ("loss_type=ce", "expected one of BPR, CE, BCE; did you mean 'CE'?"),
        ("hidden_act=gleu", "expected one of gelu, relu, swish, tanh, sigmoid; did you mean 'gelu'?"),
        ("state=loud", "expected one of debug, info, warning, error, critical"),
        ("train_neg_sample_args.distribution=unifrom", "expected one of uniform, popularity; did you mean 'uniform'?"),
        ("user_inter_num_interval=5", "expected an interval, such as [5,inf) or [5,100]"),
        ("item_inter_num_interval=[5,inf", "expected an interval, such as [5,inf) or [5,100]"),
        ("item_inter_num_interval=[5,9];", "expected an interval, such as [5,inf) or [5,100]"),
    ],
)
def test_a_name_of_recboles_is_one_that_it_knows(argument, problem):
    path, _, value = argument.partition("=")
    assert problems(["--model=SASRec", f"--{argument}"]) == [f"{path}={value!r}: {problem}"]


@pytest.mark.parametrize("interval", ["[5,inf)", "(0,1];[3,4.5)", "[ 5 , 100 ]"])
def test_an_interval_is_taken_as_recbole_writes_it(interval):
    assert load_arguments([f"--user_inter_num_interval={interval}"]).settings.recbole["user_inter_num_interval"] == interval
