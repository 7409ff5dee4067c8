"""`python -m recbole_prunerec recommend | evaluate | export | plan | doctor | atomic | amazon`: what there is beside runs.

A command is a row of COMMANDS, and imports for itself.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.exits import guarded


class Command(NamedTuple):
    """One command. With `settings` it also takes `--key=value` as run_recbole.py does, in a list called `settings`."""

    name: str
    help: str
    add: Callable[[argparse.ArgumentParser], None]  # gives the parser its arguments
    run: Callable[[argparse.Namespace], str]  # does the work, and returns what is printed
    settings: bool = False


def _add_recommend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="of a model with its catalogue, such as saved/latest/4-depth, or a name on the hub")
    parser.add_argument("--history", action="append", metavar="TITLE", help="one title of the history; once for each, the oldest first")
    parser.add_argument("--file", help='users instead, as JSON lines: a list of titles, or an object with one as its "history"; - is standard input')
    parser.add_argument("--out", help="a file for the answers as JSON lines, instead of the screen")
    parser.add_argument("--include_seen", action="store_true", help="recommend titles of the history, too")
    parser.epilog = (
        "Also --k=20 items, --device=auto, --dtype=float32 or bfloat16, --revision of a model on the hub, and how to search, as in "
        "run_recbole.py's ranking: --search=beam or exact, --beams=20, --budget=4096, --length_penalty=0, --memory_mib=1024."
    )


def _recommend(arguments: argparse.Namespace) -> str:
    from recbole_prunerec.recommend import recommend

    return recommend(**{key: value for key, value in vars(arguments).items() if key != "command"})


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a folder with a Hugging Face model, such as saved/latest/4-depth, a name on the hub, or a .gguf file")
    parser.epilog = "Any setting of run_recbole.py as --key=value, such as --dataset=ml-100k --test_rows=1000; --fresh ranks again what is done."


def _evaluate(arguments: argparse.Namespace) -> str:
    from recbole_prunerec.evaluate import evaluate

    return evaluate(arguments.folder, arguments.settings)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="tiny", help="a name on the hub, a folder, which needs no weights, a .gguf file, or tiny (%(default)s)")
    parser.add_argument("--teacher", metavar="FOLDER", help="a fine-tuned model that is pruned instead")
    parser.add_argument("--budget", metavar="SHARE", help="of the backbone's parameters, which stays (0.05)")
    parser.add_argument("--count", metavar="WHICH", help="parameters the budget counts: total, or non_embedding as in the paper (total)")
    parser.add_argument("--kv_policy", metavar="POLICY", help="which key/value heads stay: group, balanced, expand or merge (group)")
    parser.add_argument("--round_to", metavar="COUNT", help="hidden and MLP are multiples of it; matrix units work on tiles of 8 or 16 numbers (16)")
    parser.add_argument("--dataset", metavar="NAME", help="whose titles tell how many tokens stay, and what a user reads")
    parser.add_argument("--vocab", metavar="COUNT", help="of tokens to reckon with, where no dataset tells it")
    parser.add_argument("--shapes", metavar="COUNT", help="how many are shown (10), or tried by a probe (4)")
    parser.add_argument("--probe", action="store_true", help="prune and shortly restore the best shapes, and rank them by validation NDCG")
    parser.epilog = (
        "Any setting of run_recbole.py as --key=value, such as --restore.epochs=2; with --probe also --dry_run, and --fresh to start it anew."
    )


def _plan(arguments: argparse.Namespace) -> str:
    from recbole_prunerec.planning.command import plan

    return plan(**{key: value for key, value in vars(arguments).items() if key != "command"})


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _doctor(arguments: argparse.Namespace) -> str:
    from recbole_prunerec.doctor import doctor

    return doctor()


def _add_atomic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("interactions", type=Path, help="a CSV file: user, item, time")
    parser.add_argument("items", type=Path, help="a CSV file: item, title")
    parser.add_argument("--name", required=True, help="of the dataset")
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="where datasets lie (%(default)s)")
    for role in ("user", "item", "time", "title"):
        parser.add_argument(f"--{role}", metavar="COLUMN", help=f"the column of the {role}, where it has no common name")
    parser.add_argument("--field_separator", default=",", metavar="SIGN", help="between columns (%(default)s)")
    parser.add_argument("--encoding", default="utf-8", help="of both files (%(default)s)")


def _atomic(arguments: argparse.Namespace) -> str:
    from recbole_prunerec.data.csv_files import to_atomic

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = to_atomic(**{key: value for key, value in vars(arguments).items() if key not in ("command", "settings")})
    place = "" if arguments.data_path == Path("dataset") else f" --data_path={arguments.data_path}"
    return f"{folder}: written; now: python run_recbole.py --model=PruneRec --dataset={arguments.name}{place}\n"


def _add_amazon(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reviews", type=Path, required=True, help="JSON lines, plain or .gz, such as Video_Games.json.gz")
    parser.add_argument("--meta", type=Path, required=True, help="those of the items, such as meta_Video_Games.json.gz")
    parser.add_argument("--out", type=Path, default=Path("dataset"), help="where datasets lie (%(default)s)")
    parser.add_argument("--name", help="of the dataset (that of the reviews, such as Video_Games)")
    parser.add_argument("--no_progress", action="store_false", dest="show_progress", help="no bar on the screen")
    parser.epilog = "Any of the paper's rules otherwise, as --rules.key=value, such as --rules.core=3; docs/amazon.md has them all."


def _amazon(arguments: argparse.Namespace) -> str:
    from recbole_prunerec.amazon.command import amazon

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return amazon(**{key: value for key, value in vars(arguments).items() if key != "command"})


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="of a model with its catalogue, such as saved/latest/4-depth, or a name on the hub")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="gguf, a file for llama.cpp; or onnx, a folder for onnxruntime")
    parser.add_argument("--out", help="what is written is called so (as the folder, with .gguf or -onnx behind, and is put here)")
    parser.add_argument("--revision", help="of a model on the hub: a branch, a tag or a commit")


def _export(arguments: argparse.Namespace) -> str:
    from recbole_prunerec.export.command import export

    return export(arguments.folder, arguments.to, arguments.out, arguments.revision)


COMMANDS = (
    Command("recommend", "recommend from the catalogue of a model for histories of titles", _add_recommend, _recommend, settings=True),
    Command("evaluate", "rank the test rows with any model, as it is, and print the table", _add_evaluate, _evaluate, settings=True),
    Command("export", "write a model as GGUF or ONNX, and check what was written", _add_export, _export),
    Command("plan", "find the shapes of a backbone that meet a budget of parameters, and the steps to them", _add_plan, _plan, settings=True),
    Command("doctor", "show versions, devices and free disk, and what is missing or untested", _add_nothing, _doctor),
    Command("atomic", "make a dataset of two CSV files, one of interactions and one of items", _add_atomic, _atomic),
    Command("amazon", "make a dataset of the raw files of one of Amazon's categories, by the paper's rules", _add_amazon, _amazon, settings=True),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str]) -> None:
    """Run the command that `argv` names. Raises `UserError` for a mistake in it."""
    known = {command.name: command for command in COMMANDS}
    parser = _Parser(prog="python -m recbole_prunerec", description="What there is beside run_recbole.py.", allow_abbrev=False)
    parsers = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add(parsers.add_parser(command.name, help=command.help, description=command.help, allow_abbrev=False))
    if argv and not argv[0].startswith("-") and argv[0] not in known:
        raise UserError(f"{argv[0]} is no command; there are {', '.join(known)}{nearest(argv[0], known)}")
    arguments, settings = parser.parse_known_args(argv)
    arguments.settings = settings
    if arguments.settings and not known[arguments.command].settings:
        raise UserError(f"unexpected {' '.join(arguments.settings)}; see {parser.prog} {arguments.command} --help")
    sys.stdout.write(known[arguments.command].run(arguments))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), again="give the same command again"))
