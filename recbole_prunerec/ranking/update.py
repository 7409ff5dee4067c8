"""Items added to the catalogue of a model, and removed from it, without training: a new title can be recommended as soon as the tree has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from recbole_prunerec.backbone.load import load_config_and_tokenizer
from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.ranking.recommender import load_prompts
from recbole_prunerec.ranking.serving import model_folder, title_problem
from recbole_prunerec.run_folder import MANIFEST, Manifest
from recbole_prunerec.settings import Settings
from recbole_prunerec.storage import read_json
from recbole_prunerec.text.catalogue import Catalogue, tidy
from recbole_prunerec.text.prompts import Prompts
from recbole_prunerec.validation.sentences import listed, short


def update_catalogue(folder: str | Path, add: Mapping[str, str] | None = None, remove: Iterable[str] = ()) -> None:
    """Add items, by name with their titles, to the catalogue in a model's `folder`, and remove items by name; both for one name replace its title.

    After a kill at any point the folder has the old catalogue or the new. New items have popularity 0 and follow the others. Without `add` and
    `remove` a prefix tree that a kill left behind is mended. Raises `UserError` with all that is wrong, and for a folder within a run's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give that of a model, such as a copy of saved/latest/4-depth")
    model_folder(str(folder))
    _check_owner(folder)
    tokenizer = load_config_and_tokenizer(str(folder), {}, (), "model", weights=False)[1]
    prompts, wording = load_prompts(folder, tokenizer)
    old, added = prompts.catalogue, {str(name): title for name, title in (add or {}).items()}
    removed = [remove] if isinstance(remove, str) else list(map(str, remove))
    known, gone = set(old.tokens[1:]), set(removed)
    twice = [short(str(name)) for name in (add or {}) if not isinstance(name, str) and str(name) in (add or {})]
    nameless = ["''"] * any(not name.strip() for name in added)
    unknown = [f"{short(name)}{nearest(name, known)}" for name in removed if name not in known]
    there = [short(name) for name in added if name in known - gone]
    wrong = [f"{short(name)} ({problem})" for name, title in added.items() if (problem := title_problem(title))]
    added = {name: title for name, title in added.items() if name not in known - gone and not title_problem(title)}
    longest = Settings.default("max_title_tokens")
    lengths = {title: len(prompts.spell(title)) for title in added.values()}
    long = [f"{short(title)} ({length})" for title, length in lengths.items() if length > longest]
    found = (
        (unknown, "items to remove are not in the catalogue", "look at their names"),
        (there, "items to add are in the catalogue already", "remove them in the same call, or leave them out"),
        (twice, "items to add are there as a number and as text", "keep one of each"),
        (nameless, "items to add have no name", "name them"),
        (wrong, "items to add have no title that can be written", "give text"),
        (long, f"titles have more than {longest} tokens", "shorten them"),
    )
    problems = [f"{len(names)} {what}, for example {listed(names)}; {todo}" for names, what, todo in found if names]
    kept = [item for item in range(1, len(old)) if old.tokens[item] not in gone]
    tokens, titles, written = ([values[item] for item in kept] for values in (old.tokens, old.titles, old.written))
    popularity = [old.popularity[item] for item in kept]
    texts = [old.text_of.get(tidy(title), tidy(title)) for title in added.values()]
    try:
        catalogue = Catalogue.build(
            ["[PAD]", *tokens, *added], ["", *titles, *added.values()], [0, *popularity, *[0] * len(added)], ["", *written, *texts]
        )
        updated = Prompts(tokenizer, catalogue, wording.template, wording.max_prompt_tokens)
    except UserError as error:
        problems += str(error).replace(" in the .item file", "").splitlines()
    if problems:
        raise UserError("\n".join(problems))
    updated.save(folder, wording.softmax)


def _check_owner(folder: Path) -> None:
    """Raises `UserError` for the folder of a step within its run's, which is refused when anything in it has changed."""
    step = folder.resolve()
    file = step.parent / MANIFEST
    if file.is_file() and any(name.startswith(f"{step.name}/") for name in read_json(file, Manifest).files):
        raise UserError(f"{folder} belongs to the run in {step.parent}, which refuses changed files; copy it first: cp -r {folder} my-model")
