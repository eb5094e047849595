"""No adapter: every weight of the model is trained, and the result is a whole model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.models.adapters.adapter import ParameterGroup
from tunesmith.models.folder import companion_files
from tunesmith.models.quiet import quiet_libraries
from tunesmith.models.resolve import BaseSource
from tunesmith.models.weights import weight_writing
from tunesmith.specs.tune import FullSpec

#: Larger models are written in parts of this size.
_PART_SIZE = "5GB"


@dataclass(frozen=True)
class FullAdapter:
    """All weights of one model. Weights that the architecture ties together count, move and are kept once."""

    model: PreTrainedModel
    spec: FullSpec

    def parameter_groups(self) -> list[ParameterGroup]:
        """See `Adapter`."""
        return [ParameterGroup(list(self.model.parameters()), rounding=self.spec.rounding)]

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights under the model's own names."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Take over weights under the model's own names.

        Raises:
            ModelError: names or shapes differ from this model's.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys()) or sorted(
            name for name in own if own[name].shape != tensors[name].shape
        )
        if wrong:
            raise ModelError(
                f"The weights don't fit this base; the first that differs is {wrong[0]}.",
                where=where,
                fix="Use the base that they were trained from.",
                code="adapter_mismatch",
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def save(self, folder: Path, base: BaseSource) -> None:
        """Write a whole model folder: weights, config, and the tokenizer's files as the base has them."""
        own = self.model.generation_config
        with weight_writing(folder), quiet_libraries():
            try:
                # transformers refuses to write some models' settings for sampling as they came; the base's file does.
                self.model.generation_config = GenerationConfig()
                self.model.save_pretrained(folder, max_shard_size=_PART_SIZE)
            finally:
                self.model.generation_config = own
            (folder / "generation_config.json").unlink(missing_ok=True)
            for file in companion_files(base.folder):
                shutil.copyfile(file, folder / file.name)

    def merge(self) -> None:
        """See `Adapter`: the model is a plain one already."""
        self.model.requires_grad_(False)

    def settle(self) -> None:
        """See `Adapter`."""
        self.merge()


def train_fully(model: PreTrainedModel, spec: FullSpec) -> FullAdapter:
    """Let every weight of `model` be trained, in place."""
    model.requires_grad_(True)
    return FullAdapter(model, spec)
