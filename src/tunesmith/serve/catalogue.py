"""Which models a server offers, and under which names. A caller can't name any other file on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.models.embedded import EMBEDDED, ENCODERS, embedded_file
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
        job: the fine-tuning job that made it; None for bases, and for what was tuned by hand on this machine.
    """

    name: str
    source: str
    created: int
    is_tuned: bool
    weights: Weights
    job: str | None = None


@dataclass(frozen=True, slots=True)
class ServedEncoder:
    """A sentence encoder on offer: it makes embeddings and can't be chatted with. `created` is in Unix seconds."""

    name: str
    created: int


class Catalogue:
    """The models on offer: those named, or else every embedded base and every tuned version, also later ones.

    What fine-tuning jobs make is always on offer; whose it is, the record knows.

    Args:
        home: where tuned versions are kept.
        names: bases and tuned versions to offer, as `resolve_model` takes them.
        aliases: further names, and the model that each stands for, which is on offer too.

    Raises:
        ModelError: one of `names` or of the aliases' models is no model, or two would have the same name.
        StorageError: a conversion doesn't fit on the disk.
    """

    def __init__(self, home: Home, names: Sequence[str] = (), aliases: Mapping[str, str] | None = None) -> None:
        self._home = home
        self._is_open = not names
        self._bases: dict[str, ServedModel] = {}
        self._encoders: dict[str, ServedEncoder] = {}
        self._tuned: set[str] = set()
        # What models were called when the server was started, which may be a folder.
        self._called: dict[str, str] = {}
        for asked in names:
            self._called[asked] = self._offer(asked)
        #: Further names of models, with the name of the model that each stands for.
        self.aliases: Mapping[str, str] = {alias: self._offer(asked) for alias, asked in (aliases or {}).items()}
        for alias in self.aliases:
            if alias in self._bases or alias in self._tuned or alias in EMBEDDED or alias in ENCODERS:
                raise _same_name(alias, "an alias and a model")

    def models(self) -> list[ServedModel]:
        """Return what is on offer: bases first, then tuned versions, the latest first."""
        embedded = [model for name in EMBEDDED if (model := _of_embedded(name)) is not None] if self._is_open else []
        bases = {model.name: model for model in (*embedded, *self._bases.values())}
        tuned = [_of_version(version) for version in list_versions(self._home) if self._offers(version)]
        return [*bases.values(), *tuned]

    def encoders(self) -> list[ServedEncoder]:
        """Return the sentence encoders on offer, those of packages that are installed included."""
        installed = [found for name in ENCODERS if (found := _of_encoder(name)) is not None] if self._is_open else []
        return list({one.name: one for one in (*installed, *self._encoders.values())}.values())

    def find_encoder(self, name: str) -> ServedEncoder | None:
        """Return a sentence encoder by its name or an alias, None if there is none on offer."""
        name = self.aliases.get(name, name)
        return next((one for one in self.encoders() if one.name == name), None)

    def find(self, name: str) -> ServedModel:
        """Return a model by its name or an alias; what was tuned by hand also by its id or label.

        Raises:
            ModelError: it isn't on offer (`code="model_not_found"`), or several are called so.
        """
        name = self.aliases.get(name, name)
        name = self._called.get(name, name)
        base = self._bases.get(name)
        if base is None and self._is_open and name in EMBEDDED:
            base = _of_embedded(name)
        if base is not None:
            return base
        found = find_version(name, self._home, short_names_of_jobs=False)
        if not self._offers(found):
            raise ModelError(f"The model '{name[:200]}' isn't on offer here.", code="model_not_found", param="model")
        return _of_version(found)

    def _offer(self, asked: str) -> str:
        """Put a model on offer, and return its name."""
        if asked in ENCODERS:
            self._encoders[asked] = ServedEncoder(asked, _changed(embedded_file(ENCODERS[asked])))
            return asked
        embedded = _of_embedded(asked) if asked in EMBEDDED else None
        if embedded is not None:  # it is converted when it is first asked
            self._bases[asked] = embedded
            return asked
        found = resolve_model(asked, self._home)
        if found.version is not None:
            self._tuned.add(found.version.name)
            return found.version.name
        base = _of_base(found.base)
        other = self._bases.setdefault(base.name, base)
        if other != base:
            raise _same_name(base.name, f"{asked} and {other.source}")
        return base.name

    def _offers(self, version: ModelVersion) -> bool:
        return self._is_open or version.name in self._tuned or _job_of(version) is not None


def _of_version(version: ModelVersion) -> ServedModel:
    created = int(datetime.fromisoformat(version.created).timestamp())
    return ServedModel(version.name, version.name, created, True, _weights_of(version), _job_of(version))


def _job_of(version: ModelVersion) -> str | None:
    """Return the job that made a version: only jobs work for an organisation."""
    return version.made.run if version.made.organization is not None else None


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
    return ServedModel(name, name, _changed(file), False, Weights(name, name))


def _of_encoder(name: str) -> ServedEncoder | None:
    """Return an embedded encoder, or None where its package isn't installed."""
    try:
        return ServedEncoder(name, _changed(embedded_file(ENCODERS[name])))
    except ModelError:
        return None


def _changed(file: Path) -> int:
    """Return when a file was written, in Unix seconds."""
    return int(file.stat().st_mtime)


def _without_revision(name: str) -> str:
    return name.partition("@")[0]


def _same_name(name: str, which: str) -> ModelError:
    return ModelError(
        f"Two models would both be called {name}.",
        where=name,
        fix=f"Give one of them another name, or leave it out: {which}.",
        code="same_name",
    )
