"""Opening models to answer: weights with their adapter, the renderer they were trained with, and an engine.

The server, `chat`, `generate` and the evaluation all open models here, so that all of them give the same answers. A
version's adapter stays beside the base's weights, as in training, wherever it can: also alone, so that a model says the
same whether it has its base for itself or shares it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import ModelError
from tunesmith.generate.vllm.adapters import adapter_files, adapter_rank
from tunesmith.models.adapters.lora import load_lora
from tunesmith.models.adapters.served import ServedAdapter, read_served
from tunesmith.models.load import DtypeName, LoadedModel, describe_base, load_base
from tunesmith.models.quantised import Nf4
from tunesmith.models.resolve import BaseSource, resolve_model
from tunesmith.models.versions import ModelVersion, verify
from tunesmith.record.home import Home
from tunesmith.serve.opened import EngineLimits, OpenBase, OpenModel

__all__ = ["EngineLimits", "OpenModel", "open_base", "open_model", "open_version", "stays_beside"]


def open_model(name: str, home: Home, *, dtype: DtypeName = "auto", limits: EngineLimits | None = None) -> OpenModel:
    """Load a base or a tuned version by any of its names and make it ready to answer.

    Args:
        name: an embedded name, a folder, a `.gguf` file, a Hub id, or a tuned version's `ft:` name, id or label.
        home: where tuned versions and converted bases are kept.
        dtype: number format; `auto` is bfloat16 where the hardware multiplies it quickly, and for a version that was
            trained on weights in 4 bits the format that it was trained in.
        limits: of its engine.

    Raises:
        ModelError: there is no such model, its files were changed, or its chat template isn't the one that it was
            trained with (`code="template_mismatch"`).
        StorageError: a conversion doesn't fit on the disk.
    """
    found = resolve_model(name, home)
    version = found.version
    limits = limits or EngineLimits()
    if version is None:
        return open_base(found.base, dtype=dtype, limits=replace(limits, max_adapters=0))
    verify(version)
    if not stays_beside(version):
        return _open_folded(found.base, version, dtype, limits)
    if limits.backend == "vllm":
        limits = replace(limits, max_adapters=1, max_adapter_rank=adapter_rank(version.folder))
    opened = open_base(found.base, dtype=dtype, limits=limits, quantisation=_quantisation(version))
    tuned, adapter = open_version(version, opened.base)
    opened.base.add_adapter(version.name, adapter)
    return tuned


def open_base(
    source: BaseSource, *, dtype: DtypeName, limits: EngineLimits, quantisation: Nf4 | None = None
) -> OpenModel:
    """Load a base, for itself and for the versions that share it.

    Args:
        source: what `resolve_base` found.
        dtype: see `open_model`.
        limits: of its engine.
        quantisation: keep its linear layers in 4 bits.

    Raises:
        ModelError: see `open_model`.
    """
    base = OpenBase(_load(source, dtype, limits, quantisation), limits)
    return OpenModel(source.name, base, ChatRenderer(base.loaded.tokenizer))


def open_version(version: ModelVersion, base: OpenBase) -> tuple[OpenModel, ServedAdapter]:
    """Read a version that stays beside its base (see `stays_beside`). The engine isn't touched: give it the adapter.

    Any thread may call it, also while the engine computes.

    Raises:
        ModelError: its files are broken, or the base isn't the one that it was tuned from.
    """
    verify(version)
    loaded = base.loaded
    if loaded.source.sha256 != version.made.base_sha256:
        raise ModelError(
            f"The base of this model has changed since it was tuned: {version.made.base}.",
            where=version.name,
            fix="Bring back the base that it was tuned from, or tune it again.",
            code="base_changed",
        )
    with base.rendering:  # which reads the tokenizer
        renderer = _renderer(loaded, version)
    adapter = (
        adapter_files(version.folder)
        if base.limits.backend == "vllm"
        else read_served(version.folder, loaded.model, loaded.dtype, loaded.device, base.engine.weight)
    )
    return OpenModel(version.name, base, renderer, version, adapter=version.name), adapter


def _load(source: BaseSource, dtype: DtypeName, limits: EngineLimits, quantisation: Nf4 | None) -> LoadedModel:
    """Load a base for the backend that computes with it; vLLM reads the weights itself.

    Raises:
        ModelError: see `open_model`, or the backend can't keep the weights as they were in training.
    """
    if limits.backend == "torch":
        return load_base(source, dtype, quantisation=quantisation)
    if quantisation is not None:
        raise ModelError(
            "The backend vllm doesn't keep weights in 4 bits as they were when this model was trained.",
            where=source.name,
            fix="Use the backend torch for this model.",
            code="unsupported_model",
        )
    return describe_base(source, dtype)


def stays_beside(version: ModelVersion) -> bool:
    """Whether a version is an adapter that can share its base with others: one of linear layers alone.

    What was trained whole is another model. A broken configuration is told when it is read for good.
    """
    if version.made.kind != "adapter":
        return False
    try:
        config = json.loads((version.folder / "adapter_config.json").read_bytes())
        return not config.get("modules_to_save")
    except (OSError, ValueError, AttributeError):
        return True


def _open_folded(source: BaseSource, version: ModelVersion, dtype: DtypeName, limits: EngineLimits) -> OpenModel:
    """Load weights that are the version's own: trained whole, or with modules that were."""
    if limits.backend == "vllm" and version.made.kind == "adapter":
        adapter_rank(version.folder)  # tells why it can't be
    limits = replace(limits, max_adapters=0)
    loaded = _load(source, dtype, limits, _quantisation(version))
    renderer = _renderer(loaded, version)
    if version.made.kind == "adapter":
        # Weights in 4 bits stay so, as they were when the model was proved.
        load_lora(loaded.model, version.folder).settle()
    return OpenModel(version.name, OpenBase(loaded, limits), renderer, version)


def _quantisation(version: ModelVersion) -> Nf4 | None:
    """Return how the base was kept when the version was trained.

    Raises:
        ModelError: this release can't keep it so.
    """
    kept = version.made.quantisation
    return None if kept is None else Nf4.from_json(kept, version.name)


def _renderer(loaded: LoadedModel, version: ModelVersion) -> ChatRenderer:
    """Return the renderer that the model was trained with.

    Raises:
        ModelError: rendering would differ from training.
    """
    file: Path = version.folder / "chat_template.jinja"
    try:
        # Bytes: reading as text would turn line ends of another system into "\n", and the hash would differ.
        renderer = ChatRenderer(loaded.tokenizer, file.read_bytes().decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            "The chat template of this model can't be read.",
            where=str(file),
            fix="Bring it back from a backup, or train the model again.",
            code="template_mismatch",
        ) from error
    if renderer.template_hash != version.made.template_sha256:
        raise ModelError(
            "The chat template and special tokens aren't those that this model was trained with.",
            where=version.name,
            fix="Bring back the base and the template that it was trained with, or train it again.",
            code="template_mismatch",
        )
    return renderer
