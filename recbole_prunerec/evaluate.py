"""Ranking test or validation rows with a model as it is: a step's folder, or any Hugging Face model, by all tables' protocol. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recbole_prunerec.arguments import Arguments, load_arguments
from recbole_prunerec.backbone.files import backbone_config
from recbole_prunerec.errors import UserError
from recbole_prunerec.text.wording import Wording

# A finetune step stands in for none while settings are judged: an empty list is a mistake everywhere else.
ONE_MODEL = {"model": ["PruneRec"], "compare": [], "teacher": None, "packing": False, "steps": [{"do": "finetune"}]}


def evaluate(name: str, argv: Sequence[str]) -> str:
    """Rank the test rows of the dataset in `argv`, settings as run_recbole.py takes them, and return the table: popularity and the model `name`.

    With `--ranked=valid` these are validation rows. `name` is a folder, a name on the Hugging Face hub, or a .gguf file. Results and ranks go into a
    run's folder of their own. A model that was made here is asked in the words that it was trained with, unless `argv` names others. Raises
    `UserError` with all that is wrong.
    """
    arguments = evaluation(name, argv, Path(name))
    if backbone_config("backbone", name) is None:
        from recbole_prunerec.backbone.hub import hub_folder

        arguments = evaluation(name, argv, hub_folder(name, revision=arguments.settings.revision))
    from recbole_prunerec.quick_start import run  # takes seconds to import; mistakes are answered before

    return run(arguments)


def evaluation(name: str, argv: Sequence[str], folder: Path) -> Arguments:
    """The arguments of a run without steps on the model `name`, whose files lie in `folder`."""
    if name == "tiny":
        raise UserError("tiny starts from random weights, which say nothing; name a model to evaluate, such as saved/latest/4-depth")
    wording = Wording.load(folder)
    below = {"preset": "tiny", **(wording.model_dump() if wording else {})}
    arguments = load_arguments(argv, below, {**ONE_MODEL, "backbone": name})
    if arguments.dry_run:
        raise UserError("--dry_run tells what training takes, and nothing is trained here; leave it out")
    return arguments._replace(settings=arguments.settings.model_copy(update={"steps": ()}))
