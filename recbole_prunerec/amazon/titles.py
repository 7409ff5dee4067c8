"""What becomes of a title: cleaned, or a reason to drop its item. Nothing but text here."""

from __future__ import annotations

import html
import re

from recbole_prunerec.settings import Rules
from recbole_prunerec.text.catalogue import tidy

UNTITLED, MARKUP, SINGLE, LONG = "untitled", "markup", "single", "long"

ELEMENTS = (
    "a|abbr|b|body|br|center|div|em|font|h[1-6]|head|hr|html|i|img|input|label|li|link|meta|ol|option|p|script|select|small|span|strong|style|sub|"
    "sup|table|tbody|td|th|tr|u|ul"
)
MARKED = re.compile(rf"<(?:/?(?:{ELEMENTS})\s*/?>|(?:{ELEMENTS})\s+[\w:-]+\s*=|span id|!--|!doctype)", re.IGNORECASE)  # not <3, nor <Import>


def cleaned(title: str | None, rules: Rules) -> tuple[str, str | None]:
    """The title as models see it, and why its item is dropped, None where it stays. White space collapses to single spaces, whatever the rules."""
    return _by_d3(title, rules.title_words) if rules.title_rules == "d3" else _by_ours(title, rules.title_words)


def _by_ours(title: str | None, most: int) -> tuple[str, str | None]:
    text = tidy(html.unescape(title or ""))
    if not text:
        return "", UNTITLED
    if MARKED.search(text):
        return text, MARKUP
    return text, LONG if len(text.split()) > most else None


def _by_d3(title: str | None, most: int) -> tuple[str, str | None]:
    """As https://github.com/SAI990323/DecodingMatters cleans it."""
    if title is None:
        return "", UNTITLED
    if "<span id" in title:
        return title, MARKUP
    text = title.replace("&quot;", '"').replace("&amp;", "&").strip(" ").strip('"')
    if not tidy(text):
        return "", UNTITLED
    if len(text) == 1:
        return text, SINGLE
    return tidy(text), LONG if len(text.split(" ")) > most else None
