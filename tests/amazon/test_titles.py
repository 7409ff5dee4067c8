"""What becomes of titles, by both sets of rules, against what plain code says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_amazon import judged

from recbole_prunerec.amazon.titles import LONG, MARKUP, SINGLE, UNTITLED, cleaned
from recbole_prunerec.settings import Rules

OURS, D3 = Rules(), Rules(title_rules="d3")
PARTS = st.sampled_from(
    ["&quot;", "&amp;", "&nbsp;", "&lt;", '"', " ", "\t", "\n", "a", "Halo", "<span id", "<b>", "</b>", "<3", "<br />", "é", "w " * 19]
)
RAW = st.one_of(st.none(), st.lists(PARTS, max_size=6).map("".join))


@given(RAW)
def test_d3s_rules_are_those_of_its_script(title):
    text, fate = cleaned(title, D3)
    expected, why = judged(title, D3.model_dump())
    assert fate == (why or None) and (fate or text == expected)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Halo &amp; Friends", "Halo & Friends"),
        ("  Caf&eacute;\t&#39;64&#39; \r\n&nbsp; ", "Café '64'"),
        ("I <3 Games", "I <3 Games"),
        ("Ring <Japanese Import>", "Ring <Japanese Import>"),
        ("a < b > c", "a < b > c"),
        ("&amp;amp;", "&amp;"),  # what is encoded twice is decoded once
        ("w " * 20, ("w " * 20).strip()),
        (None, UNTITLED),
        ("&nbsp;\t", UNTITLED),
        ("<span id='productTitle' class=\"x\">Halo", MARKUP),
        ("cut <SPAN ID", MARKUP),
        ("<b>Halo</b>", MARKUP),
        ("Halo</a>", MARKUP),
        ("Halo<br/>", MARKUP),
        ("&lt;i&gt;Halo", MARKUP),
        ('<img src="x"', MARKUP),
        ("<!-- Halo", MARKUP),
        ("w " * 21, LONG),
    ],
)
def test_ours(title, expected):
    text, fate = cleaned(title, OURS)
    assert (fate or text) == expected


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Caf&eacute; &amp; &quot;Bar&quot;", 'Caf&eacute; & "Bar'),
        ('  "Halo"  ', "Halo"),
        ("\tHalo", "Halo"),  # such white space is kept by the reference, and cannot be in RecBole's files
        ("<b>Halo</b>", "<b>Halo</b>"),
        ("<span id", MARKUP),
        ("X", SINGLE),
        ('"X"', SINGLE),
        ('""', UNTITLED),
        ("a  b" + " c" * 17, "a b" + " c" * 17),
        ("a  b" + " c" * 18, LONG),  # two spaces in a row part three
    ],
)
def test_d3(title, expected):
    text, fate = cleaned(title, D3)
    assert (fate or text) == expected


def test_the_longest_title_is_a_key():
    for rules in (OURS, D3):
        assert cleaned("one two three", rules.model_copy(update={"title_words": 2}))[1] == LONG
        assert cleaned("one two three", rules.model_copy(update={"title_words": 3}))[1] is None
