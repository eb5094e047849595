"""Putting lean layers in the place of a model's own, after both were held against each other.

Each layer is watched while the model computes a few tokens as it is; a lean layer that gives the same from the same
input takes over whenever the pass is one of ours. Passes of anybody else (training, for one) go through the original,
for as long as it has its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.generate.chain import Chain
from tunesmith.generate.lean_layer import AttentionCall, LeanLayer, Step
from tunesmith.generate.linear_map import LinearMap, original_forward
from tunesmith.models.adapters.frozen import is_adaptable
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.native.layers import LayerParts

#: Tokens on which lean layers are tried.
_TRIED_TOKENS = 6
#: Relative error that rounding may make in one layer; of coarser number formats `_COARSE_ROUNDING`.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}
_COARSE_ROUNDING = 0.03
#: Where a model keeps who takes its calls.
_ACTIVE = "_tunesmith_exchanged"


@dataclass(eq=False)
class Exchanged:
    """What takes over in a model: lean layers by name, and the maps of linear layers, those in lean layers too."""

    layers: dict[str, LeanLayer] = field(default_factory=dict)
    maps: dict[str, LinearMap] = field(default_factory=dict)

    def take_over(self, model: PreTrainedModel, step: Step) -> None:
        """Take the model's calls, from whatever else took them before; see `has_taken_over`."""
        inside = {name for lean in self.layers.values() for made in lean.maps for name in made.names}
        for name, lean in self.layers.items():
            _take_over_layer(model.get_submodule(name), lean, step)
        for name, made in self.maps.items():
            if name not in inside:
                _take_over_linear(model.get_submodule(name), made, step)
        vars(model)[_ACTIVE] = ref(self)

    def has_taken_over(self, model: PreTrainedModel) -> bool:
        """Whether the model's calls come here: several can be made of one model, and take turns."""
        active = vars(model).get(_ACTIVE)
        return active is not None and active() is self

    def weight(self, name: str) -> Tensor:
        """Return the weight (out, in) of a layer whose original was freed."""
        return self.maps[name].weight(name)


@torch.inference_mode()
def exchange(model: PreTrainedModel, step: Step, *, pack: bool, free: bool) -> Exchanged:
    """Let `model` decode with lean layers and packed maps.

    What is returned holds everything that was made; when it goes, the model is as it was, but for what was freed.

    Args:
        model: a causal model, with its attention by layout.
        step: tells the layers what the pass is about; they take over in its passes alone.
        pack: whether copies of the weights may be made.
        free: whether the originals of what was copied are given up.
    """
    found = Exchanged()
    watched = _watched(model)
    for name, module, seen in watched:
        try:
            lean = LeanLayer(name, module, seen.call, step, pack=pack)
            right = _same(lean, seen, step)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            continue  # other parts, or parts of other shapes: the layer stays
        if right:
            found.layers[name] = lean
            found.maps |= {part: made for made in lean.maps for part in made.names}
    _chain([(found.layers.get(name), seen) for name, _, seen in watched])
    inner = {module.linear for module in model.modules() if isinstance(module, LoraLinear)}
    for name, module in model.get_decoder().named_modules(prefix=_decoder_name(model)):
        if name not in found.maps and module not in inner and (is_adaptable(module) or isinstance(module, LoraLinear)):
            found.maps[name] = LinearMap({name: module}, pack=pack)
    found.take_over(model, step)
    for made in found.maps.values():
        # Other layers than those with a LoRA, too: an adapter beside the model changes how all of them round.
        made.may_fuse = not inner
    if free:
        for name, made in found.maps.items():
            plain = model.get_submodule(name)
            if type(plain) in (nn.Linear, Conv1D) and made.is_copy:
                plain.weight = nn.Parameter(torch.empty(0, dtype=plain.weight.dtype), requires_grad=False)
    return found


@dataclass(frozen=True)
class _Seen:
    """What one layer did in the watched pass: (1, T, H) in and out."""

    hidden: Tensor
    embeddings: Any
    result: Tensor
    call: AttentionCall


class PlainLayout:
    """The `Layout` of one short text, which notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window_tokens: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See `Layout.attend`."""
        self.calls.append(AttentionCall(layer, scale, window_tokens, softcap))
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        tokens = scores.shape[-1]
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1)
        weights = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
        return (weights.to(value.dtype) @ value).transpose(1, 2)


def _watched(model: PreTrainedModel) -> list[tuple[str, nn.Module, _Seen]]:
    """Compute a few tokens as the model is; return what went into and came out of each decoder layer."""
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return []
    layout = PlainLayout()
    notes: list[tuple[Any, Any, Any, int]] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, named, result: notes.append((inputs, named, result, len(layout.calls))), with_kwargs=True
        )
        for layer in layers
    ]
    device, words = model.get_input_embeddings().weight.device, model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(_TRIED_TOKENS, device=device) * 7 + 3).remainder(words)[None]
    places = torch.arange(_TRIED_TOKENS, device=device)[None]
    try:
        decoder(input_ids=ids, position_ids=places, use_cache=False, layout=layout)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    names = {module: name for name, module in model.named_modules()}
    for index, (layer, (inputs, named, result, calls)) in enumerate(zip(layers, notes, strict=False)):
        if calls == index + 1 and inputs and isinstance(result, Tensor) and "position_embeddings" in named:
            seen = _Seen(inputs[0], named["position_embeddings"], result, layout.calls[index])
            found.append((names[layer], layer, seen))
    return found


def _chain(layers: Sequence[tuple[LeanLayer | None, _Seen]]) -> None:
    """Let layers between which the model does nothing be computed in one call, where the kernels can."""
    chains: list[list[tuple[LeanLayer, LayerParts]]] = []
    before: _Seen | None = None
    for lean, seen in layers:
        parts = None if lean is None else lean.parts()
        if lean is None or parts is None:
            before = None
            continue
        goes_on = before is not None and seen.hidden is before.result and seen.embeddings is before.embeddings
        if goes_on and parts.can_follow(chains[-1][-1][1]):
            chains[-1].append((lean, parts))
        else:
            chains.append([(lean, parts)])
        before = seen
    for links in chains:
        chain = Chain([parts for _, parts in links], [lean.maps for lean, _ in links])
        for position, (link, _) in enumerate(links):
            link.chain, link.is_first = chain, position == 0


def _same(lean: LeanLayer, seen: _Seen, step: Step) -> bool:
    """Whether a lean layer gives what the original gave, but for rounding."""
    step.begin(PlainLayout(), ())
    try:
        result = lean(seen.hidden, seen.embeddings)
    finally:
        step.begin(None, ())
    # What the layer adds to its input is compared: the input itself would hide much.
    expected, got = (x.double() - seen.hidden.double() for x in (seen.result, result))
    error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
    return error <= _ROUNDING.get(seen.hidden.dtype, _COARSE_ROUNDING)


def _take_over_layer(module: nn.Module, lean: LeanLayer, step: Step) -> None:
    lean_ref = ref(lean)
    original = original_forward(module)

    def forward(hidden_states: Tensor, *inputs: Any, **named: Any) -> Any:
        lean = lean_ref()
        if lean is None or step.layout is None or named.get("layout") is not step.layout:
            return original(hidden_states, *inputs, **named)
        return lean(hidden_states, named["position_embeddings"])

    _set_forward(module, forward, original)


def _take_over_linear(module: nn.Module, made: LinearMap, step: Step) -> None:
    map_ref = ref(made)
    original = original_forward(module)

    def forward(x: Tensor) -> Any:
        made = map_ref()
        if made is None or step.layout is None:
            return original(x)
        return made(x.reshape(-1, x.shape[-1]), step.rows).view(*x.shape[:-1], -1)

    _set_forward(module, forward, original)


def _set_forward(module: nn.Module, forward: Any, original: Callable[..., Any]) -> None:
    forward.original = original
    module.forward = forward


def _decoder_name(model: PreTrainedModel) -> str:
    decoder = model.get_decoder()
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[decoder]
