"""YAML as this package reads it."""

import math

import pytest

from recbole_prunerec.errors import UserError
from recbole_prunerec.shipped import read_yaml


@pytest.mark.parametrize(
    "text, value",
    [
        ("3", 3), ("-3", -3), ("0", 0), ("1_000", 1000), ("1e-3", 1e-3), ("2.5e4", 2.5e4), ("3.", 3.0), (".5", 0.5), ("-1.5E+3", -1500.0),
        (".inf", math.inf), ("010", "010"), ("0x10", "0x10"), ("0b1", "0b1"), ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("1e", "1e"), ("e3", "e3"),
        ("1.e3", 1e3), (".5E3", 500.0), ("1e5x", "1e5x"),
    ],
)  # fmt: skip
def test_numbers_are_what_people_mean(text, value):
    read = read_yaml(text, "x")
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {do: 1, do: 2}"])
def test_a_key_that_stands_twice_is_refused_with_its_place(text):
    with pytest.raises(UserError, match=r"x\.yaml is not valid YAML at line \d, column \d+: the key '(a|do)' stands twice"):
        read_yaml(text, "x.yaml")
