"""The one hook through which Tunesmith's engines compute attention inside transformers' models.

`use_layout_attention(model)` makes every attention layer hand its query, key and value (after positions are applied)
to the `layout` object that the caller passed to `model(..., layout=...)`. Training passes a token tree, generation
passes its cache; neither needs transformers' masks or caches.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.models.quiet import quiet_libraries

_NAME = "tunesmith_layout"
_SINKS = "attention sinks"

#: Kinds of layers whose tokens depend on each other through attention alone.
_LAYERS = {"full_attention", "sliding_attention"}


class Layout(Protocol):
    """Which token attends to which, and where keys and values are kept."""

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
        """Return the attention's output.

        Args:
            layer: index of the layer, from 0.
            query: (B, query heads, T, head size).
            key: (B, key heads, T, head size); query heads are a multiple of key heads.
            value: as `key`.
            scale: factor on the scores.
            window_tokens: a token sees itself and at most `window_tokens - 1` tokens before it; None: all.
            softcap: scores are bent to `softcap * tanh(score / softcap)`; None: not.

        Returns:
            (B, T, query heads, head size).
        """
        ...


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    layout: Layout | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if layout is None:
        raise NoLayout("layers that don't pass a layout on")
    # Left out, each of these would change the result without a word. transformers makes no mask of its own here.
    if s_aux is not None:
        raise NoLayout(_SINKS)
    if attention_mask is not None or position_bias is not None:
        raise NoLayout("a mask or a bias of its own on attention's scores")
    if value.shape[-1] > query.shape[-1]:
        raise NoLayout("values that are wider than its keys")
    layer: int = module.layer_idx  # type: ignore[assignment]
    # Layouts take one head size; zeros beside narrower values (multi-head latent attention) change nothing.
    missing = query.shape[-1] - value.shape[-1]
    output = layout.attend(
        layer,
        query,
        key,
        torch.nn.functional.pad(value, (0, missing)) if missing else value,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window_tokens=sliding_window,
        softcap=softcap,
    )
    return output[..., : value.shape[-1]] if missing else output, None


AttentionInterface.register(_NAME, _attend)


class NoLayout(ModelError):
    """The architecture's layers can't take a layout; `what` says which part of it, for a sentence."""

    def __init__(self, what: str) -> None:
        """Make the whole error of it."""
        super().__init__(
            f"This architecture has {what}, so tokens of several texts can't be computed side by side.",
            fix="Choose a base of the Llama, Qwen, Mistral, Gemma or Phi families.",
            code="unsupported_architecture",
        )
        self.what = what


def use_layout_attention(model: PreTrainedModel) -> None:
    """Switch `model` to attention by layout, in place.

    `models.side_by_side` says beforehand, by trying, whether results stay right.

    Raises:
        NoLayout: the architecture computes its attention in a way of its own (state-space layers, for example).
    """
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if layers - _LAYERS:
        raise NoLayout(f"layers of the kind {min(layers - _LAYERS)}")
    modules = list(model.get_decoder().modules())
    # A convolution over the sequence (Mamba, gated delta nets) would mix rows that lie side by side.
    if any(isinstance(module, torch.nn.Conv1d) for module in modules):
        raise NoLayout("convolutions over the sequence")
    if any(isinstance(getattr(module, "sinks", None), torch.nn.Parameter) for module in modules):
        raise NoLayout(_SINKS)
    with quiet_libraries():  # transformers only warns where it can't switch
        model.set_attn_implementation(_NAME)
    if model.config._attn_implementation != _NAME:
        raise NoLayout("an attention of its own")
