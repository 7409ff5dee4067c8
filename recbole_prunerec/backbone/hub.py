"""A model on the Hugging Face hub: from the local cache where it is there, else asked for once, with a short patience, and fetched."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

from recbole_prunerec.backbone.files import folder_config
from recbole_prunerec.backbone.weights import PICKLES
from recbole_prunerec.errors import UserError
from recbole_prunerec.validation.on_disk import disk_problems

PATIENCE = 10.0  # seconds until the hub must have answered
FETCHED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]  # no pickles, and no code; the card has the licence
COPY = "consolidated"  # what the names of mistralai's second copy of all weights, in a layout of its own, begin with
ELSEWHERE = ["*/*", f"{COPY}*"]  # folders hold the same model in other formats


def hub_folder(name: str, key: str = "backbone", weights: bool = True, revision: str | None = None) -> Path:
    """The local folder of the model `name` on the hub, which was given as `key`. What the cache holds whole is taken without a word to the hub.

    `revision` is a branch, a tag or a commit; None: the main branch. Without `weights` config and tokenizer alone are fetched.
    Raises `UserError` where the hub cannot be reached, or does not have the model, or not for everybody, or not as safetensors.
    """
    got, broken = f"{key}={name}" + (f" at revision={revision}" if revision else ""), None
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        try:
            folder_config(got, Path(cached).parent)
            return Path(cached).parent
        except UserError as error:  # perhaps not whole
            broken = error
    api = HfApi()
    try:
        info = api.model_info(name, revision=revision, timeout=PATIENCE, files_metadata=True)
        if info.gated:
            api.auth_check(name)
        if weights:
            _check_files(got, {file.rfilename: file.size or 0 for file in info.siblings or []})
        left_out = ELSEWHERE if weights else [*ELSEWHERE, "*.safetensors"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FETCHED, ignore_patterns=left_out))
    except OfflineModeIsEnabled as error:
        raise broken or UserError(
            f"{got} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it; unset that, or give a folder"
        ) from error
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{name}"
        raise UserError(f"{got} is gated: accept its terms at {page}, then log in with: hf auth login (or set HF_TOKEN)") from error
    except RevisionNotFoundError as error:
        branches = f"{constants.ENDPOINT}/{name}/tree/main"
        raise UserError(f"{got} is not on {constants.ENDPOINT}; choose a branch, a tag or a commit of the model, listed at {branches}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{got} is not on {constants.ENDPOINT}, nor a folder here; look at the spelling, or, where it is private, log in with: hf auth login"
        ) from error
    except (HTTPError, OSError, ValueError) as error:  # no network, no room, or an answer that is none of the hub's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise broken or UserError(
            f"{got} is not in the local cache, and cannot be fetched from {constants.ENDPOINT} ({reason}); look at the network, or give a folder"
        ) from error
    if weights:
        folder_config(got, folder)
    return folder


def _check_files(got: str, sizes: dict[str, int]) -> None:
    """Raises `UserError` where the files of a model, by name with their bytes, have no safetensors, or do not fit on the disk."""
    top = {name: size for name, size in sizes.items() if "/" not in name and not name.startswith(COPY)}
    if not any(name.endswith(".safetensors") for name in top):
        pickles = [name for name in top if name.endswith(PICKLES)]
        only = f" but as a pickle ({', '.join(pickles)}), which can run code when it is read" if pickles else ""
        raise UserError(f"{got} has no weights as safetensors{only}; choose a model that has")
    wanted = sum(size for name, size in top.items() if name.endswith((".json", ".safetensors")))
    problems = disk_problems(constants.HF_HUB_CACHE, wanted, "HF_HUB_CACHE")
    if problems:
        raise UserError("\n".join(problems))
