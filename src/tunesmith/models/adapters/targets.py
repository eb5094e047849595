"""Which modules of a model are adapted, and which are trained whole.

A name stands for every module that has it: `q_proj` for all of them, `model.layers.0.self_attn.q_proj` for one.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, SpecError
from tunesmith.models.adapters.frozen import is_adaptable
from tunesmith.specs.tune import LoraSpec


def is_named(name: str, wanted: str) -> bool:
    """Whether a module's dotted name is `wanted` or ends with it."""
    return name == wanted or name.endswith(f".{wanted}")


def last_part(name: str) -> str:
    """Return a dotted name's last part."""
    return name.rsplit(".", 1)[-1]


def linears_of(model: PreTrainedModel) -> list[str]:
    """Return the names of the layers that an adapter can sit on: all linear ones but the output layer.

    Raises:
        ModelError: there are none.
    """
    output, past = model.get_output_embeddings(), _read_past(model)
    found = [
        name
        for name, module in model.named_modules()
        if is_adaptable(module) and module is not output and name not in past
    ]
    if not found:
        raise ModelError(
            f"The architecture {model.config.model_type!r} has no linear layers that an adapter could sit on.",
            fix="Choose a base of the Llama, Qwen, Mistral, Gemma, Phi or GPT-2 families.",
            code="unsupported_architecture",
        )
    return found


def _read_past(model: PreTrainedModel) -> set[str]:
    """Return the linear layers whose weight state-space mixers read without calling the layer.

    An adapter on them would be passed by in silence; PEFT refuses `out_proj` in these mixers too.
    """
    mixers = [name for name, module in model.named_modules() if hasattr(module, "ssm_state_size")]
    return {f"{name}.{layer}" for name in mixers for layer in ("dt_proj", "out_proj")}


def adapted_layers(model: PreTrainedModel, spec: LoraSpec) -> list[str]:
    """Return the names of the layers that `spec` adapts; what is trained whole isn't adapted too.

    Raises:
        SpecError: `target_modules` names a layer that the model doesn't have, or leaves none.
        ModelError: the model has no linear layers.
    """
    linears = linears_of(model)
    if spec.target_modules != "all-linear":
        for wanted in spec.target_modules:
            if not any(is_named(name, wanted) for name in linears):
                raise SpecError(
                    f"This base has no linear layer named {wanted!r}.",
                    fix=f"Choose from {', '.join(sorted({last_part(name) for name in linears}))}, or all-linear.",
                    param="adapter.target_modules",
                    code="unknown_module",
                )
        linears = [name for name in linears if any(is_named(name, wanted) for wanted in spec.target_modules)]
    chosen = [name for name in linears if not any(is_named(name, whole) for whole in spec.modules_to_save)]
    if not chosen:
        raise SpecError(
            "Every layer to adapt is trained whole already, so nothing is left for the adapter.",
            fix="Name other layers in adapter.target_modules, or fewer in adapter.modules_to_save.",
            param="adapter.modules_to_save",
            code="nothing_to_adapt",
        )
    return chosen


def whole_modules(model: PreTrainedModel, wanted: Iterable[str]) -> list[str]:
    """Return the names of the modules that are trained whole.

    Raises:
        SpecError: the model has no such module, or it can't be trained as one.
    """
    modules = dict(model.named_modules())
    chosen: list[str] = []
    for name in wanted:
        found = [path for path in modules if path and is_named(path, name)]
        unfit = [path for path in found if not _is_simple(modules[path])]
        if not found or unfit:
            simple = sorted({last_part(path) for path, module in modules.items() if _is_simple(module)})
            raise SpecError(
                f"{name!r} can't be trained whole: it is made of several modules, or its weights are quantised."
                if unfit
                else f"This base has no module named {name!r}.",
                fix=f"Choose from {', '.join(simple)}.",
                param="adapter.modules_to_save",
                code="unknown_module",
            )
        chosen += [path for path in found if path not in chosen]
    return sorted(chosen)


def _is_simple(module: nn.Module) -> bool:
    """Whether a module has weights of its own, all of them plain numbers, and no modules inside it."""
    parameters = list(module.parameters())
    simple = not any(True for _ in module.children()) and bool(parameters)
    return simple and all(p.is_floating_point() for p in parameters) and "packed" not in dict(module.named_buffers())
