"""From what a user calls a model to files on this machine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tunesmith.errors import ModelError
from tunesmith.models.embedded import EMBEDDED, embedded_file
from tunesmith.models.folder import check_folder, fingerprint
from tunesmith.models.gguf import convert_gguf
from tunesmith.models.hub import HUB_ID, hub_snapshot
from tunesmith.models.versions import ModelVersion, find_version, list_versions
from tunesmith.record.home import Home

_SHORT_NAME_LENGTH = 40


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base on this machine.

    Attributes:
        name: what names it again later: an embedded name, a Hub id with its revision, or an absolute path.
        folder: config, tokenizer and safetensors.
        origin: where it came from; `version`: a tuned model that is whole in itself.
        sha256: identifies the content: of the GGUF file, or the folder's fingerprint.
        short_name: a plain word for `ft:` names, such as `smollm2-135m`.
        revision: the Hub's commit.
    """

    name: str
    folder: Path
    origin: Literal["embedded", "folder", "gguf", "hub", "version"]
    sha256: str
    short_name: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What to load, and the tuned version if one was named: an adapter on top of it, or the model itself."""

    base: BaseSource
    version: ModelVersion | None


def resolve_base(name: str, home: Home) -> BaseSource:
    """Find a base by an embedded name, a folder, a `.gguf` file or a Hub id, and make it ready to load.

    Raises:
        ModelError: there is no such base, or it can't be used; the message says why and what to do.
        StorageError: a conversion or download doesn't fit on the disk.
    """
    if name in EMBEDDED:
        converted = convert_gguf(embedded_file(EMBEDDED[name]), home.bases, name)
        return BaseSource(name, converted.folder, "embedded", converted.sha256, name)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        path = path.absolute()
        converted = convert_gguf(path, home.bases, short_name(path.stem))
        return BaseSource(str(path), converted.folder, "gguf", converted.sha256, short_name(path.stem))
    if path.is_dir():
        path = path.resolve()
        check_folder(path)
        return BaseSource(str(path), path, "folder", fingerprint(path), short_name(path.name))
    # `./model` and `models/` can only be meant as folders; `org/name` can be either.
    if path.exists() or name.startswith((".", "/", "~", "\\")) or name.endswith("/"):
        raise ModelError(
            "This is neither a model folder nor a .gguf file." if path.exists() else "There is no such folder.",
            where=name,
            fix="Give a folder with config.json, the tokenizer's files and *.safetensors, or a .gguf file.",
            code="model_not_found",
        )
    if HUB_ID.match(name):
        snapshot = hub_snapshot(name)
        check_folder(snapshot.folder)
        repository = name.partition("@")[0]
        return BaseSource(
            name=f"{repository}@{snapshot.revision}",
            folder=snapshot.folder,
            origin="hub",
            sha256=fingerprint(snapshot.folder),
            short_name=short_name(repository.partition("/")[2]),
            revision=snapshot.revision,
        )
    raise _unknown_name(name, list(EMBEDDED), "base")


def resolve_model(name: str, home: Home) -> ResolvedModel:
    """Find a tuned model or a base, wherever either may be given.

    An embedded base's name comes first, then tuned models (id, `ft:` name, label, start of any), then bases.

    Raises:
        ModelError: there is no such model, or a tuned model's base isn't the one that it was tuned from.
        StorageError: a conversion or download doesn't fit on the disk.
    """
    if name in EMBEDDED:
        return ResolvedModel(resolve_base(name, home), None)
    try:
        version = find_version(name, home)
    except ModelError as error:
        is_other_kind = "/" in name or name.lower().endswith(".gguf") or Path(name).is_dir()
        if error.code == "model_not_found" and not name.startswith("ft:"):
            if is_other_kind:
                return ResolvedModel(resolve_base(name, home), None)
            raise _unknown_name(name, [*(v.label for v in list_versions(home)), *EMBEDDED], "model") from error
        raise
    made = version.made
    if made.kind == "model":
        return ResolvedModel(
            BaseSource(made.base, version.folder, "version", made.base_sha256, made.base_short_name), version
        )
    base = resolve_base(made.base, home)
    if base.sha256 != version.made.base_sha256:
        raise ModelError(
            f"The base of this model has changed since it was tuned: {version.made.base}.",
            where=version.name,
            fix="Bring back the base that it was tuned from, or tune it again.",
            code="base_changed",
        )
    return ResolvedModel(base, version)


def resolve_start(name: str, home: Home) -> ResolvedModel:
    """Find what tuning starts from: a base, or a tuned model by its `ft:` name, whose adapter is then tuned further.

    A tuned model that is whole in itself is a base of its own.

    Raises:
        ModelError: see `resolve_base` and `resolve_model`.
        StorageError: a conversion or download doesn't fit on the disk.
    """
    if not name.startswith("ft:"):
        return ResolvedModel(resolve_base(name, home), None)
    version = find_version(name, home)
    if version.made.kind == "adapter":
        return resolve_model(version.name, home)
    whole = resolve_base(str(version.folder), home)
    return ResolvedModel(replace(whole, short_name=version.made.base_short_name), None)


def _unknown_name(name: str, known: list[str], kind: str) -> ModelError:
    """Return the error for a word that names no model, with the nearest names that do."""
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    return ModelError(
        f"There is no {kind} called '{name}'.",
        where=name,
        fix=f"{guess}Known names: {', '.join(known)}. A folder, a .gguf file or a Hub id (org/name) works too.",
        code="model_not_found",
    )


def short_name(text: str) -> str:
    """Return `text` as a word that can be part of an `ft:` name: lower case, digits, `.` and `-`."""
    plain = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    return plain[:_SHORT_NAME_LENGTH].strip("-.") or "model"
