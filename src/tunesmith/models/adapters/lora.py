"""LoRA (Hu et al. 2021, arXiv:2106.09685) on a whole model: `y = W x + (alpha / rank) B A x`, in PEFT's form on disk.

The adapter's matrices are kept in float32 and cast to the base's number format at use, so that small updates are not
lost in bfloat16's eight bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, SpecError
from tunesmith.models.adapters.adapter import ParameterGroup
from tunesmith.models.adapters.frozen import FrozenLinear
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.models.adapters.peft_form import PREFIX, read_config, tensor_names, write_config
from tunesmith.models.adapters.targets import adapted_layers, whole_modules
from tunesmith.models.adapters.whole import WholeModule
from tunesmith.models.resolve import BaseSource
from tunesmith.models.weights import save_tensors
from tunesmith.record.atomic import write_json
from tunesmith.specs.tune import LoraSpec

__all__ = ["LoraAdapter", "LoraLinear", "add_lora", "load_lora", "mismatch", "read_lora"]


@dataclass(frozen=True)
class LoraAdapter:
    """The adapted layers of one model and the modules that are trained whole, by their module's name."""

    model: PreTrainedModel
    layers: Mapping[str, LoraLinear]
    spec: LoraSpec
    whole: Mapping[str, WholeModule] = field(default_factory=dict)

    def parameter_groups(self) -> list[ParameterGroup]:
        """See `Adapter`; B may learn faster than all else (LoRA+, Hayou et al. 2024, arXiv:2402.12354)."""
        trained = self._trained()
        if self.spec.b_rate_ratio == 1.0:
            return [ParameterGroup(list(trained.values()))]
        fast = {tensor_names(layer)["lora_b"] for layer in self.layers}
        return [
            ParameterGroup([p for name, p in trained.items() if name not in fast]),
            ParameterGroup([p for name, p in trained.items() if name in fast], self.spec.b_rate_ratio),
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Return what is trained under PEFT's names, and what PiSSA's matrices began as."""
        return {name: p.detach() for name, p in self._trained().items()} | self._initial()

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Take over what `tensors()` gave.

        Raises:
            ModelError: names or shapes differ from this adapter's.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys()) or sorted(
            name for name in own if own[name].shape != tensors[name].shape
        )
        if wrong:
            raise mismatch(f"The adapter's tensors don't fit this base; the first that differs is {wrong[0]}.", where)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def save(self, folder: Path, base: BaseSource) -> None:
        """See `Adapter`; the files are PEFT's, and fit the base as it was before training."""
        tensors = {name: p.detach() for name, p in self._trained().items()}
        for name, layer in self.layers.items():
            names = tensor_names(name)
            tensors[names["lora_a"]], tensors[names["lora_b"]] = layer.learnt()
        save_tensors(folder / "adapter_model.safetensors", tensors)
        write_json(folder / "adapter_config.json", self.peft_config(base.name))

    @torch.no_grad()
    def merge(self) -> None:
        """See `Adapter`."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.merged())
        self._merge_whole()

    def settle(self) -> None:
        """See `Adapter`; the layers stay adapted, as rounding their sum would take from what was learnt."""
        for layer in self.layers.values():
            layer.settle()
        self._merge_whole()

    def _merge_whole(self) -> None:
        """Put the modules that were trained whole in their places."""
        for name, module in self.whole.items():
            self.model.set_submodule(name, module.merged())
        if self.whole:
            # Tied embeddings of which one was trained are two tables now.
            first, last = self.model.get_input_embeddings(), self.model.get_output_embeddings()
            self.model.config.tie_word_embeddings = first.weight is last.weight

    def peft_config(self, base: str) -> dict[str, Any]:
        """Return `adapter_config.json` as PEFT reads it."""
        return write_config(base, self.spec, self.layers, self.whole, self.model)

    def _trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters under PEFT's names, in order."""
        found: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            for own, theirs in tensor_names(name).items():
                if (parameter := getattr(layer, own)) is not None:
                    found[theirs] = parameter
        for name, module in self.whole.items():
            found |= {f"{PREFIX}{name}.{own}": cast(nn.Parameter, p) for own, p in module.trained.items()}
        return dict(sorted(found.items()))

    def _initial(self) -> dict[str, Tensor]:
        found = {}
        for name, layer in sorted(self.layers.items()):
            if layer.initial is not None:
                found[f"{PREFIX}{name}.initial_A.weight"], found[f"{PREFIX}{name}.initial_B.weight"] = layer.initial
        return found


def add_lora(model: PreTrainedModel, spec: LoraSpec) -> LoraAdapter:
    """Put a fresh adapter on `model`'s linear layers, in place; the base's weights are frozen.

    Random numbers (A, PiSSA's directions) are torch's own of the device that the weights lie on.

    Raises:
        SpecError: `target_modules` or `modules_to_save` names what the model doesn't have.
        ModelError: the model has no linear layers.
    """
    whole = whole_modules(model, spec.modules_to_save)
    return _attach(model, spec, dict.fromkeys(adapted_layers(model, spec), spec), whole)


def load_lora(model: PreTrainedModel, folder: Path) -> LoraAdapter:
    """Put the adapter in `folder` (PEFT's files) on `model`, in place.

    Raises:
        ModelError: the files are missing or broken, of another kind, or don't fit the base.
    """
    spec, layers, tensors = read_lora(folder, model)
    try:
        whole = whole_modules(model, spec.modules_to_save)
    except SpecError as error:
        raise mismatch(error.message, str(folder)) from error
    adapter = _attach(model, spec, layers, whole)
    adapter.load_tensors(tensors, where=str(folder))
    return adapter


def read_lora(folder: Path, model: PreTrainedModel) -> tuple[LoraSpec, dict[str, LoraSpec], dict[str, Tensor]]:
    """Read an adapter's files: its settings, those of each layer that it adapts, and its tensors by PEFT's names.

    Raises:
        ModelError: the files are missing or broken, or of another kind.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        spec, layers = read_config(config, model)
        return spec, layers, load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"This adapter can't be read: {error}",
            where=str(folder),
            fix="An adapter folder holds adapter_config.json and adapter_model.safetensors in PEFT's form.",
            code="broken_adapter",
        ) from error


def _attach(
    model: PreTrainedModel, spec: LoraSpec, layers: Mapping[str, LoraSpec], whole: Sequence[str]
) -> LoraAdapter:
    model.requires_grad_(False)
    adapted, copied = {}, {}
    for name, own in layers.items():
        linear = cast(FrozenLinear, model.get_submodule(name))
        adapted[name] = LoraLinear(linear, own).train(linear.training)
        model.set_submodule(name, adapted[name])
    for name in whole:
        module = model.get_submodule(name)
        copied[name] = WholeModule(module).train(module.training)
        model.set_submodule(name, copied[name])
    return LoraAdapter(model, adapted, spec, copied)


def mismatch(message: str, where: str) -> ModelError:
    """Return the error for an adapter that doesn't fit the base."""
    return ModelError(
        message, where=where, fix="Use the base that the adapter was trained on.", code="adapter_mismatch"
    )
