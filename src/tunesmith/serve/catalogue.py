"""Which models a server offers, and under which names. A caller can't name any other file on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.models.embedded import EMBEDDED, embedded_file
from tunesmith.models.resolve import BaseSource, resolve_model
from tunesmith.models.versions import ModelVersion, find_version, list_versions
from tunesmith.record.home import Home
from tunesmith.serve.answering import stays_beside


@dataclass(frozen=True, slots=True)
class Weights:
    """What a model needs in memory. Models that need the same share it.

    Attributes:
        name: for people.
        source: what names the base, or the version that has weights of its own.
        version: whether it is such a version.
        quantisation: how the base's linear layers are kept, as a manifest says it (JSON); None: as they are.
    """

    name: str = field(compare=False)
    source: str
    version: bool = False
    quantisation: str | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on offer.

    Attributes:
        name: what callers know it by: an embedded name, an `ft:` name, a Hub id, a folder's last part.
        source: what `open_model` finds it by.
        created: when it was made, in Unix seconds.
        is_tuned: whether it is a tuned version.
        weights: what must be in memory for it; a tuned version's adapter comes beside them, or is part of them.
    """

    name: str
    source: str
    created: int
    is_tuned: bool
    weights: Weights


class Catalogue:
    """The models on offer: those named, or else every embedded base and every tuned version, also later ones.

    Args:
        home: where tuned versions are kept.
        names: bases and tuned versions to offer, as `resolve_model` takes them.

    Raises:
        ModelError: one of `names` is no model, or two would have the same name.
        StorageError: a conversion doesn't fit on the disk.
    """

    def __init__(self, home: Home, names: Sequence[str] = ()) -> None:
        self._home = home
        self._named: dict[str, ServedModel] = {}
        self._aliases: dict[str, str] = {}
        for asked in names:
            found = resolve_model(asked, home)
            model = _of_base(found.base) if found.version is None else _of_version(found.version)
            other = self._named.setdefault(model.name, model)
            if other != model:
                raise ModelError(
                    f"Two models would both be called {model.name}.",
                    where=asked,
                    fix=f"Rename the folder, or leave out {other.source}.",
                    code="same_name",
                )
            self._aliases[asked] = model.name

    def models(self) -> list[ServedModel]:
        """Return what is on offer: bases first, then tuned versions, the latest first."""
        if self._named:
            return sorted(self._named.values(), key=lambda model: model.is_tuned)
        embedded = [model for name in EMBEDDED if (model := _of_embedded(name)) is not None]
        return [*embedded, *(_of_version(version) for version in list_versions(self._home))]

    def find(self, name: str) -> ServedModel:
        """Return a model by its name; a tuned version also by its id, label, or the start of any.

        Raises:
            ModelError: it isn't on offer (`code="model_not_found"`), or several are called so.
        """
        if self._named:
            model = self._named.get(self._aliases.get(name, name))
            if model is not None:
                return model
        elif name in EMBEDDED:
            model = _of_embedded(name)
            if model is not None:
                return model
        found = _of_version(find_version(name, self._home))
        if self._named and found.name not in self._named:
            raise ModelError(f"The model '{name[:200]}' isn't on offer here.", code="model_not_found", param="model")
        return found


def _of_version(version: ModelVersion) -> ServedModel:
    created = int(datetime.fromisoformat(version.created).timestamp())
    return ServedModel(version.name, version.name, created, True, _weights_of(version))


def _weights_of(version: ModelVersion) -> Weights:
    made = version.made
    if not stays_beside(version):
        return Weights(version.name, version.name, version=True)
    kept = None if made.quantisation is None else json.dumps(made.quantisation, sort_keys=True)
    is_file = Path(made.base).is_absolute()
    return Weights(made.base_short_name if is_file else _without_revision(made.base), made.base, quantisation=kept)


def _of_base(base: BaseSource) -> ServedModel:
    """Return a base under a name that says nothing of this machine's folders."""
    name = base.short_name if base.origin in ("folder", "gguf") else _without_revision(base.name)
    return ServedModel(name, base.name, int(base.folder.stat().st_mtime), False, Weights(name, base.name))


def _of_embedded(name: str) -> ServedModel | None:
    """Return an embedded base, or None where its package isn't installed."""
    try:
        file = embedded_file(EMBEDDED[name])
    except ModelError:
        return None
    return ServedModel(name, name, int(file.stat().st_mtime), False, Weights(name, name))


def _without_revision(name: str) -> str:
    return name.partition("@")[0]
