"""From settings to what RecBole works with: the dataset and its samples, a model, and loaders of training, validation and ranked test rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from recbole.data.dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import init_seed
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PretrainedConfig

from recbole_prunerec.amazon.atomic import Fields
from recbole_prunerec.amazon.store import cached_dataset
from recbole_prunerec.backbone.load import load_config_and_tokenizer, source_of
from recbole_prunerec.backbone.origin import origin_of
from recbole_prunerec.compared.systems import NEEDS, helpers_of
from recbole_prunerec.config import RunConfig, recbole_values
from recbole_prunerec.data.dataset import NextItemDataset, part_of
from recbole_prunerec.data.samples import Samples, TestRows, choose_rows, training_popularity
from recbole_prunerec.distributed import by_first, told
from recbole_prunerec.errors import UserError
from recbole_prunerec.lookup import model_class
from recbole_prunerec.model.prunerec import Assistant, PruneRec
from recbole_prunerec.model.theirs import use_binary_cross_entropy
from recbole_prunerec.ranking.seen import without_seen
from recbole_prunerec.restore.tutor import ItemProbabilities
from recbole_prunerec.settings import Rules, Settings
from recbole_prunerec.shipped import properties, read_yaml_file
from recbole_prunerec.statement import statement
from recbole_prunerec.text.catalogue import Catalogue
from recbole_prunerec.text.prompts import Prompts, texts_as_tokens
from recbole_prunerec.validation.preflight import use_device

CONFIG = "config.yaml"

logger = logging.getLogger(__name__)


class Data(NamedTuple):
    """What all models of a run share."""

    dataset: NextItemDataset
    parts: list[NextItemDataset]  # train, valid, test
    samples: Samples
    rows: dict[TestRows, np.ndarray]  # numbers of the samples that are ranked for tables, in their part

    @property
    def catalogue(self) -> Catalogue:
        """The items, as a language model reads them."""
        return self.dataset.catalogue(training_popularity(self.samples.train, self.dataset.item_num))


class Built(NamedTuple):
    """One model, ready to be trained or ranked with; "all" and "few" are the loaders of the rows in tables, beside "train" and "valid"."""

    config: RunConfig
    model: AbstractRecommender
    loaders: dict[str, AbstractDataLoader]


def load_data(settings: Settings, folder: Path, cache: Path) -> Data:
    """Dataset and samples. `folder` is the run's, where RecBole would put checkpoints; nothing is written there.

    Under `settings.rules` the files are filtered first, into `cache`, where they stay.
    """
    config = RunConfig(settings, model_class("Popularity"), folder, cache)
    init_seed(settings.seed, True)
    if settings.rules is not None:
        _filter(config, settings.rules)
    dataset = NextItemDataset(config)
    check_catalogue(settings, dataset.item_num - 1)
    parts = dataset.build()
    parts[0] = parts[0].copy(parts[0].inter_feat[np.arange(len(parts[0]))[: settings.training_rows]])
    samples = Samples(part_of(parts[0]), part_of(parts[1]), part_of(parts[2]))
    counts: dict[TestRows, int | None] = {"all": settings.test_rows, "few": settings.step_test_rows}
    rows = {kind: choose_rows(len(samples.ranked(settings.ranked)), count, settings.seed) for kind, count in counts.items()}
    logger.info("%s", dataset.statistics(samples))
    _tell_of_seen(settings, samples)
    return Data(dataset, parts, samples, rows)


def _tell_of_seen(settings: Settings, samples: Samples) -> None:
    """What `exclude_seen` means for these data."""
    ranked, whose = samples.ranked(settings.ranked), "its own history"
    if settings.exclude_seen and ranked.repeated:
        lost, there = f"{ranked.repeated:,}", f"{len(ranked):,} {settings.ranked}"
        logger.warning("exclude_seen=true: of %s samples %s have a target in %s, which nothing can find; false leaves it in", there, lost, whose)
    elif not settings.exclude_seen and not samples.train.repeated + samples.valid.repeated:
        logger.info("no target of training or validation is in %s; exclude_seen=true leaves what is there out of the rankings", whose)


def _filter(config: RunConfig, rules: Rules) -> None:
    """Have RecBole read what `rules` leave of the dataset, which process 0 makes in the cache where it is not there."""
    settings, source, made = config.settings, Path(config["data_path"]), list[Path]()
    inter, items = (source / f"{settings.dataset}.{kind}" for kind in ("inter", "item"))
    fields = Fields(config["USER_ID_FIELD"], config["ITEM_ID_FIELD"], config["TIME_FIELD"], settings.title_field)
    by_first(lambda: made.append(cached_dataset(inter, items, rules, config.cache, settings.dataset, fields, settings.show_progress)))
    config["data_path"] = told("".join(f"{folder / settings.dataset}" for folder in made))


def check_catalogue(settings: Settings, items: int) -> None:
    """Raises `UserError` where the settings ask for more items than the data have, which is known once they are read."""
    searched = "PruneRec" in settings.model and settings.ranking.search != "grounding"
    asked = {"topk": max(settings.topk)} | ({"ranking.beams": settings.ranking.beams} if searched else {})
    if "DLLM2Rec" in (*settings.model, *settings.compare):
        asked["list_length"] = recbole_values(settings, "DLLM2Rec", Path())["list_length"]
    problems = [
        f"{key}={count} is more than the {items:,} items that dataset={settings.dataset} has after filtering; choose at most {items}"
        for key, count in asked.items()
        if count > items
    ]
    if problems:
        raise UserError("\n".join(problems))


def build(settings: Settings, data: Data, name: str, folder: Path, cache: Path) -> Built:
    """The model called `name` on `data`, and its loaders. Prepared tokens are kept in `cache`; the run's `folder` has PruneRec's assistant."""
    helpers = helpers_of(settings) if name == "PruneRec" else []
    assistant = load_assistant(settings, data, folder, cache) if settings.ranking.assistant in helpers else None
    tutor = load_tutor(settings, data, folder, cache) if settings.tutor.model in helpers else None
    config = RunConfig(settings, model_class(name), folder, cache)
    config.helpers = {helper: load_trained(settings, data, helper, f"{helper} for {name}", folder, cache) for helper in NEEDS.get(name, ())}
    train, valid, test = data.parts
    samplers = create_samplers(config, data.dataset, data.parts)
    loaders = {
        "train": get_dataloader(config, "train")(config, train, samplers[0], shuffle=config["shuffle"]),
        "valid": get_dataloader(config, "valid")(config, valid, samplers[1], shuffle=False),
    }
    ranked, sampler = (test, samplers[2]) if settings.ranked == "test" else (valid, samplers[1])
    for kind, rows in data.rows.items():
        loaders[kind] = get_dataloader(config, "test")(config, ranked.copy(ranked.inter_feat[rows]), sampler, shuffle=False)
    init_seed(config["seed"], config["reproducibility"])
    try:
        model = model_class(name)(config, train)
        if config.binary:
            use_binary_cross_entropy(model)
        model = model.to(config["device"])
    except (ValueError, NotImplementedError, AssertionError, TypeError, KeyError) as error:  # RecBole's own checks of its models' settings
        if name == "PruneRec":
            raise
        raise UserError(f"model={name} cannot be built from its settings: {' '.join(str(error).split()) or type(error).__name__}") from error
    if isinstance(model, PruneRec):
        model.valid, model.assistant, model.tutor = data.samples.valid, assistant, tutor
        if not settings.steps:  # nothing is trained, so it can rank at once
            model.rank_with(model.backbone.model, model.prompts)
    return Built(config, model, loaders)


def weights_file(name: str) -> str:
    """Where a run's folder has the weights of a model called `name` that helps another, as D3's assistant does."""
    return f"rows/{name}.safetensors"


def load_assistant(settings: Settings, data: Data, folder: Path, cache: Path) -> Assistant:
    """D3's assistant, as `load_trained` has it."""
    wanted = f"ranking.assistant={settings.ranking.assistant}"
    model = load_trained(settings, data, str(settings.ranking.assistant), wanted, folder, cache)
    return partial(item_probabilities, model, wanted=wanted, exclude_seen=settings.exclude_seen)


def load_tutor(settings: Settings, data: Data, folder: Path, cache: Path) -> ItemProbabilities:
    """The tutor of the fine-tuning. Raises `UserError` for a model that reads more than histories."""
    name = str(settings.tutor.model)
    wanted = f"tutor.model={name}"
    model, longest = load_trained(settings, data, name, wanted, folder, cache), settings.longest_history

    def probabilities(histories: Sequence[np.ndarray]) -> np.ndarray:
        items, lengths = np.zeros((len(histories), longest), dtype=np.int64), np.array([min(len(history), longest) for history in histories])
        for row, history in zip(items, histories, strict=True):
            row[: len(history)] = history[-longest:]  # a chunk may be longer than what is ranked for
        interaction = Interaction({model.ITEM_SEQ: torch.from_numpy(items), model.ITEM_SEQ_LEN: torch.from_numpy(lengths)})
        return item_probabilities(model, interaction, wanted, settings.exclude_seen)

    try:
        probabilities([np.array([1])])
    except KeyError as error:
        raise UserError(f"{wanted} reads more than a history: {error.args[0]}; choose another, such as SASRec or GRU4Rec") from error
    return probabilities


def load_trained(settings: Settings, data: Data, name: str, wanted: str, folder: Path, cache: Path) -> AbstractRecommender:
    """The model called `name` as it was trained for its row of the run in `folder`, for evaluation; `wanted` says what for.

    Raises `UserError` where its weights are missing or damaged.
    """
    model, path = build(settings, data, name, folder, cache).model, folder / weights_file(name)
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected the weights of {wanted}, which its row of the run leaves") from None
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or belongs to another model: {' '.join(str(error).split())}") from error
    return model.eval()


@torch.no_grad()
def item_probabilities(model: AbstractRecommender, interaction: Interaction, wanted: str, exclude_seen: bool) -> np.ndarray:
    """Softmax of a RecBole model's scores over all items, 0 for padding and, with `exclude_seen`, for the history. Shape (row, item), float64.

    Raises `UserError` where they are not finite; `wanted` says what they are for.
    """
    scores = model.full_sort_predict(interaction.to(model.device)).view(len(interaction), -1).double().cpu()
    scores[:, 0] = -torch.inf
    if not torch.isfinite(scores[:, 1:]).all():
        raise UserError(f"{wanted} gives scores that are not finite; lower baselines.learning_rate or name another")
    return (without_seen(scores, interaction[model.ITEM_SEQ]) if exclude_seen else scores).softmax(1).numpy()


def load_prompts(settings: Settings, data: Data, cache: Path | None, weights: bool = True) -> tuple[PretrainedConfig, Prompts]:
    """The backbone's config, and the catalogue's prompts, without the model; what it is comes into the log.

    Of a model on the hub nothing else is fetched without `weights`.
    Raises `UserError` where the backbone does not load, or its tokenizer cannot tell the titles apart.
    """
    catalogue = data.catalogue
    key, name = settings.start
    tiny = properties("backbone", "tiny")
    config, tokenizer = load_config_and_tokenizer(name, tiny, catalogue.texts, key, weights, settings.revision, texts_as_tokens(settings, catalogue))
    origin = None if name == "tiny" else origin_of(source_of(name, key, weights, settings.revision))
    logger.info("%s", statement(settings, config, origin))
    return config, Prompts(tokenizer, catalogue, settings.template, settings.max_prompt_tokens, cache, settings.max_title_tokens)


def load_data_and_model(
    folder: str | Path,
) -> tuple[RunConfig, PruneRec, NextItemDataset, AbstractDataLoader, AbstractDataLoader, AbstractDataLoader]:
    """What RecBole's function of this name gives: config, model, dataset, and the loaders of training, validation and test.

    `folder` is a run's, of which the last complete step is loaded, or a step's within it; settings are those of the run's config.yaml. The model's
    `full_sort_predict` ranks, and `test` has the rows that the run ranked the final model on. Raises `UserError` where `folder` is neither.
    """
    folder = Path(folder).resolve()
    run = folder if (folder / CONFIG).is_file() else folder.parent
    if not (run / CONFIG).is_file():
        raise UserError(f"{folder} is neither a run's folder nor a step's: neither it nor {run} has a {CONFIG}; give one such as saved/latest")
    settings = _stored(run / CONFIG)
    steps = [run / f"{number}-{step.do}" for number, step in enumerate(settings.steps, 1)]
    complete = [step for step in steps if step.is_dir() and folder in (run, step)]
    if not complete:
        raise UserError(f"{folder} holds no complete step of PruneRec; expected one of {', '.join(step.name for step in steps) or 'its steps'}")
    settings = settings.model_copy(update={"backbone": str(complete[-1]), "teacher": None, "steps": ()})
    use_device(settings.device)
    cache = run.parent / "cache"
    data = load_data(settings, run, cache)
    config, model, loaders = build(settings, data, "PruneRec", run, cache)
    return config, model, data.dataset, loaders["train"], loaders["valid"], loaders["all"]


def _stored(path: Path) -> Settings:
    """The settings in a run's config.yaml. They were judged when the run began; what they name may since have moved."""
    values = read_yaml_file(path)
    ours = {key: values.pop(key) for key in list(values) if key in Settings.model_fields}
    try:
        return Settings.model_validate({**ours, "recbole": values})
    except ValidationError as error:
        raise UserError(f"{path} is damaged or was written by another version: {' '.join(str(error).split())}") from error
