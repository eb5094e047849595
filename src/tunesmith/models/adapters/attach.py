"""The one place that knows every kind of adapter."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from tunesmith.models.adapters.adapter import Adapter
from tunesmith.models.adapters.full import train_fully
from tunesmith.models.adapters.lora import add_lora, load_lora, read_lora
from tunesmith.models.quantised import Nf4, quantise_linears
from tunesmith.specs.tune import AdapterSpec, FullSpec, QloraSpec


def base_quantisation(spec: AdapterSpec) -> Nf4 | None:
    """Return how the base is loaded for an adapter of this kind; None: plain."""
    return Nf4(spec.double_quantisation) if isinstance(spec, QloraSpec) else None


def add_adapter(model: PreTrainedModel, spec: AdapterSpec) -> Adapter:
    """Put a fresh adapter of the spec's kind on `model`, in place.

    For `qlora`, linear layers that aren't quantised yet are; a base loaded for it has its layers quantised already.

    Raises:
        SpecError: it names a layer that the model doesn't have.
        ModelError: the model can't take one, or a package that this kind needs isn't installed.
    """
    if isinstance(spec, FullSpec):
        return train_fully(model, spec)
    if isinstance(spec, QloraSpec):
        quantise_linears(model, double_quantisation=spec.double_quantisation)
    return add_lora(model, spec)


def adapter_in(folder: Path, model: PreTrainedModel, kept: Nf4 | None) -> AdapterSpec:
    """Return the settings of the adapter in a folder, as it stands on a base that is kept in 4 bits, or plain.

    Raises:
        ModelError: the files are missing or broken, or of another kind.
    """
    spec = read_lora(folder, model)[0]
    if kept is None:
        return spec
    return QloraSpec(**spec.model_dump(exclude={"kind"}), double_quantisation=kept.double_quantisation)


def go_on_with_adapter(model: PreTrainedModel, folder: Path) -> Adapter:
    """Put the adapter in a folder on `model`, in place, to be tuned further.

    Raises:
        ModelError: the files are missing or broken, of another kind, or don't fit the base.
    """
    return load_lora(model, folder)
