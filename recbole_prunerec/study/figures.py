"""What `python baselines/paper.py` is asked, judged without a heavy import; paper.py draws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recbole_prunerec.errors import UserError, problems_of
from recbole_prunerec.study.command import Question, compare, judged
from recbole_prunerec.study.systems import REFERENCE
from recbole_prunerec.validation.sentences import unknown

NAMES = ("table1", "table2", "table3", "fig1a", "fig1b", "fig2", "fig3", "fig4", "fig5a", "fig5b", "fig5c")
COMPARED = "table2"  # is a comparison of these
TABLE2 = (
    *("SASRec-BCE", "GRU4Rec-BCE", "Caser-BCE", "DLLM2Rec-SASRec", "DLLM2Rec-GRU4Rec", "DLLM2Rec-Caser"),
    *("SLMRec-prunerec", "BIGRec", "D3", REFERENCE),
)
DECIDED = ("systems", "page", "dry_run")

USAGE = """python baselines/paper.py <names> [--dataset=ml-100k] [--key=value ...]

  <names>                     {names}; or all, fig1, fig5
  --seeds=1                   of the runs that a figure is made of, from --seed on (2020)
  --out=<folder>              for <name>.csv, .png, .svg and tensorboard/ (saved/paper-<dataset>)
  --preset=tiny --device=cpu  and whatever run_recbole.py takes

Finished runs are kept: the same command goes on where it was cut. docs/compare.md says what each figure shows.
"""


def named(words: Sequence[str]) -> list[str]:
    """The tables and figures that `words` name, in the paper's order. Raises `UserError` with every word that names none."""
    groups = {"all": NAMES, "fig1": ("fig1a", "fig1b"), "fig5": ("fig5a", "fig5b", "fig5c")}
    known = [*NAMES, *groups]
    problems = [unknown(word, word, known) for word in dict.fromkeys(words) if word not in known]
    if not words:
        problems.append(f"no table or figure is named; there are {', '.join(known)}")
    if problems:
        raise UserError("\n".join(problems))
    wanted = {name for word in words for name in groups.get(word, (word,))}
    return [name for name in NAMES if name in wanted]


def _judged(given: Sequence[str]) -> Question:
    """PruneRec's runs with what is given; a figure takes one seed where no number is named."""
    refused = [f"{argument}: a figure decides on that itself; leave it out" for argument in given if argument[2:].partition("=")[0] in DECIDED]
    kept = [argument for argument in given if argument[2:].partition("=")[0] not in DECIDED]
    seeds = [] if any(argument.startswith("--seeds=") for argument in kept) else ["--seeds=1"]
    found: list[Question] = []
    problems = [*refused, *problems_of(lambda: found.append(judged([*kept, *seeds, f"--systems={REFERENCE}"])))]
    if problems:
        raise UserError("\n".join(problems))
    (question,) = found
    named_out = any(argument.startswith("--out=") for argument in kept)
    return question if named_out else question._replace(out=question.out.with_name(question.out.name.replace("compare-", "paper-", 1)))


def paper(argv: Sequence[str], script: Path) -> str:
    """Make what `argv` names, with runs that `script` starts. Returns what is printed."""
    words, given = [[word for word in argv if word.startswith("-") == option] for option in (False, True)]
    names: list[str] = []
    questions: list[Question] = []
    problems = problems_of(lambda: names.extend(named(words)), lambda: questions.append(_judged(given)))
    if problems:
        raise UserError("\n".join(problems))
    (question,) = questions
    said = ""
    if names != [COMPARED]:
        from recbole_prunerec.quick_start import start_log  # takes seconds to import; mistakes are answered before
        from recbole_prunerec.study.paper import draw

        start_log(None)
        said = draw([name for name in names if name != COMPARED], question, script, argv)
    if COMPARED in names:
        rest = [argument for argument in given if argument.partition("=")[0] not in ("--out", "--seeds")]
        said += compare([*rest, f"--seeds={len(question.seeds)}", f"--systems={','.join(TABLE2)}", f"--out={question.out / COMPARED}"], script)
    return said
