"""Rules that filter a dataset: what they need, and what does not go with them."""

import importlib.util

import pytest

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.errors import UserError
from recbole_prunerec.validation import validate

RULES = ["--dataset=amazon-books", "--model=SASRec"]


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_arguments([*RULES, *argv])
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("encoding=cp1252", "'cp1252'"),
        ("field_separator=,", "','"),
        ("benchmark_filename=train,valid,test", "['train', 'valid', 'test']"),
    ],
)
def test_files_of_another_form_cannot_be_filtered(tmp_path, given, shown):
    key = given.partition("=")[0]
    end = f"but rules filter a single file of interactions, in utf-8, with tabs; leave {key} out, or choose rules=null"
    assert mistakes(f"--{given}") == [f"{key}={shown}, {end}"]
    assert load_arguments([*RULES, f"--{given}", "--rules=null"]).settings.rules is None


def test_what_is_as_rules_want_it_is_let_through():
    settings = load_arguments([*RULES, "--encoding=utf8", "--field_separator=\t"]).settings
    assert settings.encoding == "utf8" and settings.rules is not None


def test_rules_need_duckdb_which_is_told_with_the_other_mistakes(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(validate, "find_spec", lambda name: None if name == "duckdb" else find(name))
    missing = "rules need the package duckdb, which is not installed; run: pip install -c constraints.txt -e '.[amazon]'"
    assert mistakes("--seed=x") == [missing, "seed='x': expected a whole number"]
    assert load_arguments([*RULES, "--rules=null"]).settings.rules is None


def test_a_wrong_rule_has_its_path():
    assert mistakes("--rules.core=x", "--rules.window_end=2018-13") == [
        "rules.window_end=2018-13: expected a month from 1970-01 on, such as 2018-11, or null",
        "rules.core='x': expected a whole number",
    ]
    assert mistakes("--rules.cores=3") == ["rules.cores is unknown; did you mean 'core'?"]
