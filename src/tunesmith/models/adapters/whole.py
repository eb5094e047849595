"""Modules that are trained whole beside an adapter: embeddings, norms, the output layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call


class WholeModule(nn.Module):
    """A module with trained copies of its parameters, kept in float32 and used in the base's number format.

    The module itself isn't touched, so that weights which it shares with another (tied embeddings) stay as they are
    there, as with PEFT.
    """

    def __init__(self, module: nn.Module) -> None:
        """Copy the parameters of a module that has no modules inside it."""
        super().__init__()
        self.module = module
        self.trained = nn.ParameterDict(
            {name: nn.Parameter(p.detach().to(torch.float32, copy=True)) for name, p in module.named_parameters()}
        )

    @property
    def weight(self) -> Tensor:
        """The trained weight, of a module that has one."""
        return cast(Tensor, self.trained["weight"])

    @property
    def bias(self) -> Tensor | None:
        """The trained bias, of a module that has one."""
        return cast(Tensor, self.trained["bias"]) if "bias" in self.trained else None

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        """Compute what the module does, with the trained parameters."""
        if type(self.module) is nn.Embedding and self.module.max_norm is None:
            # Rows are taken before they are rounded: no copy of the table, and their gradients add up in float32.
            rows = nn.functional.embedding(inputs[0], self.weight, self.module.padding_idx)
            return rows.to(self.module.weight.dtype)
        return functional_call(self.module, self._rounded(), inputs, settings)

    def merged(self) -> nn.Module:
        """Return the module with the trained parameters in the base's number format."""
        for name, parameter in self._rounded().items():
            # New parameters, not new values: another module may share the old ones.
            setattr(self.module, name, nn.Parameter(parameter.detach(), requires_grad=False))
        return self.module

    def _rounded(self) -> dict[str, Tensor]:
        formats = {name: parameter.dtype for name, parameter in self.module.named_parameters()}
        return {name: parameter.to(formats[name]) for name, parameter in self.trained.items()}
