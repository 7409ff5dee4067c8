"""Errors that a user can act on, several at once, and the nearest known name to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake in what the user gave: the message says what was got, what was expected and what to do. Shown without a traceback."""


class Broken(Exception):
    """A setting was looked at that has a problem of its own, which is reported elsewhere."""


def problems_of(*checks: Callable[[], object]) -> list[str]:
    """What is wrong by each of the checks that raise `UserError`, a line each, so that all can be told at once."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems += str(error).splitlines()
    return problems


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'X'?"` for the known name closest to `name`, or an empty string where none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    match = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[match[0]]!r}?" if match else ""
