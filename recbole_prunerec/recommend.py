"""`python -m recbole_prunerec recommend`: from histories of titles to recommendations, for one user as a table, for any number as JSON lines."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from os.path import isdir, isfile  # unlike those of Path, False for a name that no file can have
from typing import TYPE_CHECKING, Any

from recbole_prunerec.arguments import parse
from recbole_prunerec.errors import UserError, problems_of
from recbole_prunerec.ranking.serving import count_problem, history_problem, model_folder, ranking_options
from recbole_prunerec.shipped import read_yaml
from recbole_prunerec.storage import writing
from recbole_prunerec.validation.sentences import short

if TYPE_CHECKING:
    from recbole_prunerec.ranking.recommender import Recommended

ANSWER = ("recommendations", "proven")  # fields of an answer
SHOWN = 20  # bad lines of a file that are listed
EXPECTED = 'expected a list of titles, the oldest first, or an object with one as its "history"'

User = tuple[dict[str, Any], list[str]]  # other fields than the history, and that

logger = logging.getLogger(__name__)


def recommend(folder: str, history: list[str] | None, file: str | None, out: str | None, include_seen: bool, settings: Sequence[str]) -> str:
    """Recommend for one `history`, or for the users in `file` ("-": standard input), and return what is printed in the end.

    The answers to `file` are written to standard output, or to `out`, atomically. `settings` are further options as `--key=value`. Raises `UserError`
    with all that is wrong before a model is loaded.
    """
    problems: list[str] = []
    options = _options(settings, problems)
    k, device, dtype = options.pop("k", 20), options.pop("device", "auto"), options.pop("dtype", "float32")
    revision = str(options.pop("revision")) if "revision" in options else None
    total = _judge(history, file, out, problems)
    problems += filter(None, [count_problem(k)])
    problems += problems_of(lambda: ranking_options(options, device, dtype), lambda: model_folder(folder, False, revision))
    if problems:
        raise UserError("\n".join(problems))
    from transformers.utils.logging import disable_progress_bar  # takes seconds to import; mistakes are answered before

    from recbole_prunerec.ranking.recommender import Recommender

    disable_progress_bar()
    with writing(out) if out else nullcontext() as sink:
        bar = file is not None and (out is not None or not sys.stdout.isatty())
        recommender = Recommender.from_pretrained(folder, device, bar, dtype, revision, **options)
        waiting: deque[dict[str, Any]] = deque()
        histories = _histories(_users(file) if file else iter([({}, history or [])]), waiting, recommender.catalogue.position)
        answers = recommender.stream(histories, k, not include_seen, total)
        if file is None and sink is None:
            return _table(next(answers))
        lines = sys.stdout.buffer if sink is None else sink
        try:
            for answer in answers:
                proven = {"proven": answer.proven} if options.get("search") == "exact" else {}
                fields = waiting.popleft() | {"recommendations": [item._asdict() for item in answer.items]} | proven
                lines.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
            lines.flush()
        except BrokenPipeError:  # who reads, such as head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ""


def _options(settings: Sequence[str], problems: list[str]) -> dict[str, Any]:
    """Values by key of `--key=value`, read as YAML; what is none is added to `problems`."""
    values = {}
    for key, text in parse(settings, problems).items():
        try:
            values[key] = read_yaml(text, f"--{key}={text}")
        except UserError as error:
            problems.append(str(error))
    return values


def _judge(history: list[str] | None, file: str | None, out: str | None, problems: list[str]) -> int | None:
    """Add to `problems` what is wrong with what is read and written. Returns the number of users, where it can be known before."""
    if (history is None) == (file is None):
        problems.append('give either --history="a title", once for each and the oldest first, or --file=users.jsonl')
    if out is not None and isdir(out):
        problems.append(f"--out={out} is a folder; name a file in it")
    if history is not None and (problem := history_problem(history)):
        problems.append(f"--history: {problem}")
    if file is None or file == "-":
        return None
    if not isfile(file):
        problems.append(f"--file={file} is not a file; give one of JSON lines, or - for standard input")
        return None
    count, wrong, bad = 0, 0, []
    for where, value in _lines(file):
        count += 1
        wrong += isinstance(value, str)
        bad += [f"{where}: {value}"] if isinstance(value, str) and wrong <= SHOWN else []
    if not count:
        problems.append(f"{file} is empty; {EXPECTED}")
    problems += bad + [f"{file} has {wrong - SHOWN} more such lines"] * (wrong > SHOWN)
    return count


def _users(file: str) -> Iterator[User]:
    """The users in `file`. Raises `UserError` at a line that is none."""
    for where, value in _lines(file):
        if isinstance(value, str):
            raise UserError(f"{where}: {value}")
        yield value


def _lines(file: str) -> Iterator[tuple[str, User | str]]:
    """Every line that is not blank: where it stands, and its user, or what is wrong with it."""
    with nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{'standard input' if file == '-' else file}, line {number}", _user(line)


def _user(line: bytes) -> User | str:
    """The user in a line of JSON, or what is wrong with it."""
    shown = short(line.decode(errors="replace").strip())
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # what cannot be written back is no JSON, or no text
    except (ValueError, RecursionError) as error:
        return f"got {shown}, which is no JSON in UTF-8 ({error}); {EXPECTED}"
    fields = value if isinstance(value, dict) else {"history": value}
    if "history" not in fields:
        return f"got {shown} without a history; {EXPECTED}"
    taken = [field for field in ANSWER if field in fields]
    if taken:
        return f"got a field {taken[0]}, which the answer brings; leave it out"
    history = fields.pop("history")
    return history_problem(history) or (fields, history)


def _histories(users: Iterator[User], waiting: deque[dict[str, Any]], known: Mapping[str, int]) -> Iterator[list[str]]:
    """The history of each user, whose other fields are put into `waiting`. In the end, a word on titles that are not `known`."""
    from recbole_prunerec.text.catalogue import tidy

    count, empty, strange = 0, 0, ""
    for fields, history in users:
        waiting.append(fields)
        foreign = [title for title in history if tidy(title) not in known]
        count, empty, strange = count + len(foreign), empty + (not history), strange or next(iter(foreign), "")
        yield history
    if count:
        logger.warning("%d titles of histories are not in the catalogue, for example %s; they are read as text", count, short(strange))
    if empty:
        logger.warning("%d histories are empty: nothing is known of these users, and all are recommended the same", empty)


def _table(answer: Recommended) -> str:
    """One user's recommendations, to be read."""
    if not answer.items:
        return "Nothing is left to recommend: all titles of the catalogue are in the history.\n"
    heads = ("Rank", "Item", "Title", "Log-probability")
    rows = [(str(rank), item.item, item.title, f"{item.log_probability:.3f}") for rank, item in enumerate(answer.items, 1)]
    rank, name, title, score = (max(map(len, column)) for column in zip(heads, *rows, strict=True))
    return "".join(f"{a:>{rank}}  {b:{name}}  {c:{title}}  {d:>{score}}\n" for a, b, c, d in (heads, *rows))
