"""Bases from the Hugging Face Hub: safetensors only, at one pinned revision, and quick to give up without a network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE, is_offline_mode
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of whichever client the Hub uses
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tunesmith.errors import ModelError, storage_errors
from tunesmith.models.folder import check_folder
from tunesmith.models.hub_check import cache_folder, check_downloaded, unchecked_mark
from tunesmith.models.quiet import quiet_libraries

#: `org/name`, or `org/name@revision` with a branch, tag or commit.
HUB_ID = re.compile(r"^(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?$")

_WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_TIMEOUT_SECONDS = 5.0
#: Some of these are errors of the operating system as well.
_FROM_THE_HUB = (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model of the Hub on this machine: its folder in the Hub's own cache, and its commit."""

    folder: Path
    revision: str


def hub_snapshot(name: str) -> Snapshot:
    """Return a model of the Hub, from the local cache if it is there whole, else downloaded.

    `HF_HUB_OFFLINE`, `HF_HOME`, `HF_ENDPOINT` and `HF_TOKEN` mean what they mean for the `hf` command.

    Args:
        name: `org/name` or `org/name@revision`.

    Raises:
        ModelError: there is no such model, it is gated, it has no safetensors, or there is no network.
        StorageError: the disk is full.
    """
    match = HUB_ID.match(name)
    if match is None:
        raise ModelError("A Hub id looks like org/name or org/name@revision.", where=name, code="model_not_found")
    repository, revision = match["id"], match["revision"]
    cached = _cached(repository, revision)
    if cached is not None:
        return cached
    if is_offline_mode():
        raise _unreachable(
            repository, "There is no such folder, the model isn't in the Hub's local cache, and HF_HUB_OFFLINE is set."
        )
    return _download(repository, revision)


def _cached(repository: str, revision: str | None) -> Snapshot | None:
    """Return the snapshot in the local cache, or None if it isn't there or isn't whole."""
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        check_folder(folder)
    except (LocalEntryNotFoundError, ModelError):
        # An incomplete one is completed, or refused for good, after a download.
        return None
    return None if unchecked_mark(repository, folder.name).exists() else Snapshot(folder, folder.name)


def _download(repository: str, revision: str | None) -> Snapshot:
    """Ask for the model's commit, then download that; what is there already isn't downloaded again.

    Raises:
        ModelError: see `hub_snapshot`.
        StorageError: the disk is full.
    """
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        if not any(file.endswith(".safetensors") for file in files):
            raise ModelError(
                "This model has no *.safetensors files; other formats aren't read because they can run code.",
                where=repository,
                fix="Choose a model with safetensors, or download its .gguf file and give that as the base.",
                code="pickled_weights",
            )
        with quiet_libraries(), storage_errors(Path(HF_HUB_CACHE)):
            folder = _download_whole(repository, revision, str(info.sha))
    except GatedRepoError as error:
        raise ModelError(
            "This model is gated: its owner asks you to accept a licence first.",
            where=repository,
            fix=f"Accept it at https://huggingface.co/{repository}, then run `hf auth login`.",
            code="gated_model",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            "The Hub has no such model or revision, or it is private.",
            where=repository if revision is None else f"{repository}@{revision}",
            fix="Check the spelling at https://huggingface.co/models; for a private model run `hf auth login`.",
            code="model_not_found",
        ) from error
    except _FROM_THE_HUB as error:
        raise _unreachable(repository, "the Hub can't be reached") from error
    return Snapshot(folder, folder.name)


def _download_whole(repository: str, revision: str | None, commit: str) -> Path:
    """Download a commit and look whether it came whole; only then is it found in the cache.

    Raises:
        ModelError: a file isn't what the Hub has (`damaged_download`), or its end is missing (`hub_unreachable`).
    """
    mark = unchecked_mark(repository, commit)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        folder = Path(
            snapshot_download(repository, revision=commit, allow_patterns=list(_WANTED), etag_timeout=_TIMEOUT_SECONDS)
        )
    except OSError as error:
        # What the library says of a file that is too short has no number.
        if error.errno is not None or isinstance(error, _FROM_THE_HUB):
            raise
        raise _unreachable(repository, "its download was cut off") from error
    check_downloaded(folder)
    # By this, the name finds the commit without a network.
    named = cache_folder(repository) / "refs" / (revision or "main")
    if commit != revision:
        named.parent.mkdir(parents=True, exist_ok=True)
        named.write_text(commit, encoding="ascii")
    mark.unlink()
    return folder


def _unreachable(repository: str, why: str) -> ModelError:
    """Return the error that says how to get the model by hand."""
    folder = "./" + repository.split("/")[1]
    return ModelError(
        f"There is no such folder, the model isn't in the Hub's local cache, and {why}.",
        where=repository,
        fix=f"On a machine with network: `hf download {repository} --local-dir {folder}`; "
        f"bring the folder here and use `--base {folder}`.",
        code="hub_unreachable",
    )
