"""The registry of tuned models: one folder for each version under `models/`, found by many names. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import ModelError
from tunesmith.models.card import model_card
from tunesmith.record.atomic import new_folder, remove_folder, write_json, write_text
from tunesmith.record.hashing import sha256_file, sha256_json
from tunesmith.record.home import Home

_MANIFEST = "manifest.json"
_ID_LENGTH = 8
_ID = re.compile(f"[0-9a-f]{{{_ID_LENGTH}}}")
_DIGEST = re.compile("[0-9a-f]{64}")
_WHOLE_NAME = re.compile(r"ft:.+:(?P<id>[0-9a-f]{8})(:ckpt-step-[0-9]+)?", re.ASCII)
#: Manifests that are kept as they were read, until their file changes: who asks a model needs one of them.
_MANIFESTS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a finished run offers for registration.

    Attributes:
        base: the base's name, as `resolve_base` finds it again.
        base_sha256: identifies the base's content.
        base_short_name: the base's part of the `ft:` name.
        run: id of the run that made it.
        label: the user's name for it, or None.
        spec_sha256: hash of the resolved spec.
        data_sha256: hash of the data set with its split.
        template_sha256: hash of the chat renderer that it was trained with; serving insists on the same.
        summary: counts and results (`data`, `train`, `evaluation`, `verdict`) and the `system` prompt of the training
            rows, for people and for `chat`.
        kind: what is registered: an `adapter` for the base, or a whole `model`.
        quantisation: how the base's weights are kept in fewer bits under the adapter; None: they are plain.
        organization: whose it is, part of the name; None: nobody's but the user's of this machine (`local`).
        checkpoint_step: the step of its run that these weights are of; None: they are the run's result.
    """

    base: str
    base_sha256: str
    base_short_name: str
    run: str
    label: str | None
    spec_sha256: str
    data_sha256: str
    template_sha256: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["adapter", "model"] = "adapter"
    quantisation: Mapping[str, Any] | None = None
    organization: str | None = None
    checkpoint_step: int | None = None

    def name_of(self, version_id: str) -> str:
        """Return the name for the API's `model` field."""
        # OpenAI's names leave the suffix empty where the user gave none.
        label = self.label or ("" if self.organization else self.run)
        end = "" if self.checkpoint_step is None else f":ckpt-step-{self.checkpoint_step}"
        return f"ft:{self.base_short_name}:{self.organization or 'local'}:{label}:{version_id}{end}"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered model.

    Attributes:
        id: eight hexadecimal digits, made from what it is.
        name: `ft:<base>:local:<label or run>:<id>`, for the API's `model` field.
        created: ISO 8601, UTC.
        files: SHA-256 of each file by name.
        folder: where it is kept.
        made: what the run said about it.
    """

    id: str
    name: str
    created: str
    files: Mapping[str, str]
    folder: Path
    made: Candidate

    @property
    def label(self) -> str:
        """The user's name for it, or its run's id: several versions may share it, the latest counts."""
        return self.made.label or self.made.run


def register(candidate: Candidate, fill: Callable[[Path], None], chat_template: str, home: Home) -> ModelVersion:
    """Add a model to the registry: listed when it is whole on the disk, never before.

    Registering the same weights of the same run again (after a resume) returns the version that is there.

    Args:
        candidate: what the run says about it.
        fill: writes `adapter_model.safetensors` and `adapter_config.json` (PEFT's format), or a whole model, into a
            folder.
        chat_template: the template that it was trained with, in Jinja.
        home: where models are kept.

    Raises:
        StorageError: the disk is full or the folder can't be written; nothing half-listed remains.
    """
    # The id is known only once the weights are written, the folder's name only with the id.
    staged = home.models / f"staging-{candidate.run}"
    version: ModelVersion | None = None
    with new_folder(staged, rename_to=lambda: _required(version).folder, if_exists="keep") as part:
        fill(part)
        write_text(part / "chat_template.jinja", chat_template)
        version_id = _id_of(candidate, {path.name: sha256_file(path) for path in part.glob("*.safetensors")})
        label = candidate.label or candidate.run
        name = candidate.name_of(version_id)
        write_text(part / "README.md", model_card(name, candidate.base, label, candidate.summary, candidate.kind))
        files = {path.name: sha256_file(path) for path in sorted(part.iterdir())}
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        version = ModelVersion(version_id, name, created, files, home.models / f"{label}-{version_id}", candidate)
        write_json(
            part / _MANIFEST,
            {"id": version_id, "name": name, "created": created, "files": files, "made": asdict(candidate)},
        )
    return _read(_required(version).folder)


def list_versions(home: Home) -> list[ModelVersion]:
    """Return the registered models, the latest first. Folders that `damaged_versions` names are left out."""
    found = []
    for folder in _folders(home):
        try:
            found.append(_read(folder))
        except ModelError:
            continue
    return sorted(found, key=lambda version: (version.created, version.id), reverse=True)


def damaged_versions(home: Home) -> list[ModelError]:
    """Return, for each folder that should hold a model but whose manifest can't be read, the error that says why."""
    found = []
    for folder in _folders(home):
        try:
            _read(folder)
        except ModelError as error:
            found.append(error)
    return found


def find_version(name: str, home: Home, *, short_names_of_jobs: bool = True) -> ModelVersion:
    """Return a model by its id, its `ft:` name, its label (the latest of them), or the unambiguous start of any.

    Args:
        name: any of these.
        home: where models are kept.
        short_names_of_jobs: whether models that jobs made have other names than their whole ones, and beginnings of
            names count. On a server they don't: labels of other projects' jobs would stand before what a caller means.

    Raises:
        ModelError: no model, or more than one, is called so; the message lists what there is.
    """
    named = _find_by_whole_name(name, home)
    if named is not None:
        return named
    versions = [v for v in list_versions(home) if short_names_of_jobs or v.made.organization is None]
    for version in versions:
        if name in (version.id, version.name, version.folder.name):
            return version
    for version in versions:
        if name == version.label:
            return version
    begun = [
        v
        for v in versions
        if name and short_names_of_jobs and any(n.startswith(name) for n in (v.id, v.name, v.folder.name))
    ]
    if len(begun) == 1:
        return begun[0]
    for error in damaged_versions(home):
        if Path(error.where or "").parent.name == name:
            raise error
    if begun:
        raise ModelError(
            f"'{name}' may mean {len(begun)} models: {', '.join(v.name for v in begun)}.",
            where=name,
            fix="Give more of the name.",
            code="ambiguous_model",
        )
    known = ", ".join(version.name for version in versions)
    raise ModelError(
        f"There is no tuned model called '{name}'.",
        where=name,
        fix=f"Known models: {known}." if known else "No model has been tuned yet; `tunesmith tune DATA` makes one.",
        code="model_not_found",
    )


def verify(version: ModelVersion) -> None:
    """Check that each file of a model is as it was registered; call it before the files are used.

    Raises:
        ModelError: a file is missing or was changed (`code="digest_mismatch"`).
    """
    for name, sha256 in version.files.items():
        file = version.folder / name
        try:
            found = sha256_file(file)
        except OSError as error:
            raise _changed(file, "is missing") from error
        if found != sha256:
            raise _changed(file, "isn't the file that was registered")
    if version.id != _id_of(version.made, version.files):
        raise _changed(version.folder / _MANIFEST, "isn't the one that was registered")


def delete_version(version: ModelVersion) -> None:
    """Remove a model; it is gone from the list before its files are.

    Raises:
        StorageError: the folder can't be written.
    """
    remove_folder(version.folder)


def _id_of(candidate: Candidate, files: Mapping[str, str]) -> str:
    """Return the id of a model: a hash over its weights (of `files`, hashes by name) and what they came from."""
    facts = asdict(candidate)
    # What was measured and how it is called don't make it another model.
    del facts["summary"], facts["label"], facts["base"], facts["base_short_name"], facts["organization"]
    if candidate.checkpoint_step is None:
        # Ids of versions that were made before there were checkpoints stay what they are.
        del facts["checkpoint_step"]
    weights = {name: sha256 for name, sha256 in files.items() if name.endswith(".safetensors")}
    return sha256_json([facts, weights])[:_ID_LENGTH]


def _folders(home: Home) -> list[Path]:
    """Return the folders of the registry; names that start with a dot aren't whole yet."""
    return sorted(path for path in home.models.iterdir() if path.is_dir() and not path.name.startswith("."))


def _find_by_whole_name(name: str, home: Home) -> ModelVersion | None:
    """Return the model of an `ft:` name without looking at the others; None where that doesn't find one."""
    match = _WHOLE_NAME.fullmatch(name)
    for folder in home.models.glob(f"*-{match['id']}") if match else ():
        try:
            version = _read(folder)
        except ModelError:
            continue
        if version.name == name:
            return version
    return None


def _read(folder: Path) -> ModelVersion:
    """Return the model in a folder.

    Raises:
        ModelError: its manifest is missing or damaged.
    """
    manifest = folder / _MANIFEST
    try:
        status = manifest.stat()
        return _parsed(folder, (status.st_ino, status.st_mtime_ns, status.st_size))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            "The manifest of this model is missing or damaged.",
            where=str(manifest),
            fix="Delete the folder, or bring it back from a backup.",
            code="damaged_manifest",
        ) from error


@lru_cache(_MANIFESTS_KEPT)
def _parsed(folder: Path, _state: tuple[int, int, int]) -> ModelVersion:
    """Return the model in a folder whose manifest is in that state.

    Raises:
        ValueError: an id or a hash isn't one.
    """
    value = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    return ModelVersion(
        id=_matching(_ID, value["id"]),
        name=str(value["name"]),
        created=str(value["created"]),
        files={Path(name).name: _matching(_DIGEST, sha256) for name, sha256 in value["files"].items()},
        folder=folder,
        made=Candidate(**value["made"]),
    )


def _matching(form: re.Pattern[str], value: str) -> str:
    if not form.fullmatch(value):
        raise ValueError("not of the form that it should have")
    return value


def _required(version: ModelVersion | None) -> ModelVersion:
    """Return the version that the block above has made by now."""
    assert version is not None
    return version


def _changed(file: Path, how: str) -> ModelError:
    """Return the error for a registered file that isn't what it was."""
    return ModelError(
        f"A file of this model {how}, so it isn't used.",
        where=str(file),
        fix="Bring it back from a backup, or delete the model and train it again.",
        code="digest_mismatch",
    )
