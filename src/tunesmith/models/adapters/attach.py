"""The one place that knows every kind of adapter."""

from __future__ import annotations

from transformers import PreTrainedModel

from tunesmith.models.adapters.adapter import Adapter
from tunesmith.models.adapters.lora import add_lora
from tunesmith.specs.tune import AdapterSpec, LoraSpec


def add_adapter(model: PreTrainedModel, spec: AdapterSpec) -> Adapter:
    """Put a fresh adapter of the spec's kind on `model`, in place.

    Raises:
        SpecError: it names a layer that the model doesn't have.
        ModelError: the model can't take one.
    """
    assert isinstance(spec, LoraSpec)
    return add_lora(model, spec)
