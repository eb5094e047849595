"""Which models a server offers, and under which names. A caller can't name any other file on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tunesmith.errors import ModelError
from tunesmith.models.embedded import EMBEDDED, embedded_file
from tunesmith.models.resolve import BaseSource, resolve_model
from tunesmith.models.versions import ModelVersion, find_version, list_versions
from tunesmith.record.home import Home


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on offer.

    Attributes:
        name: what callers know it by: an embedded name, an `ft:` name, a Hub id, a folder's last part.
        source: what `open_model` finds it by.
        created: when it was made, in Unix seconds.
        is_tuned: whether it is a tuned version.
    """

    name: str
    source: str
    created: int
    is_tuned: bool


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
    return ServedModel(version.name, version.name, int(datetime.fromisoformat(version.created).timestamp()), True)


def _of_base(base: BaseSource) -> ServedModel:
    """Return a base under a name that says nothing of this machine's folders."""
    name = base.short_name if base.origin in ("folder", "gguf") else base.name.partition("@")[0]
    return ServedModel(name, base.name, int(base.folder.stat().st_mtime), False)


def _of_embedded(name: str) -> ServedModel | None:
    """Return an embedded base, or None where its package isn't installed."""
    try:
        file = embedded_file(EMBEDDED[name])
    except ModelError:
        return None
    return ServedModel(name, name, int(file.stat().st_mtime), False)
