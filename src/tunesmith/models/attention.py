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
    attention_mask: Tensor | None,  # noqa: ARG001  (the layout decides who sees whom)
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    layout: Layout,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if s_aux is not None:
        raise _unsupported("attention sinks")
    layer: int = module.layer_idx  # type: ignore[assignment]
    output = layout.attend(
        layer,
        query,
        key,
        value,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window_tokens=sliding_window,
        softcap=softcap,
    )
    return output, None


AttentionInterface.register(_NAME, _attend)


def use_layout_attention(model: PreTrainedModel) -> None:
    """Switch `model` to attention by layout, in place.

    Raises:
        ModelError: the architecture computes its attention in a way of its own (state-space layers, for example).
    """
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if layers - _LAYERS:
        raise _unsupported(f"layers of the kind {min(layers - _LAYERS)}")
    # A convolution over the sequence (Mamba, gated delta nets) would mix rows that lie side by side.
    if any(isinstance(module, torch.nn.Conv1d) for module in model.get_decoder().modules()):
        raise _unsupported("convolutions over the sequence")
    with quiet_libraries():  # transformers only warns where it can't switch
        model.set_attn_implementation(_NAME)
    if model.config._attn_implementation != _NAME:
        raise _unsupported("an attention of its own")


def _unsupported(what: str) -> ModelError:
    return ModelError(
        f"This architecture has {what}, which Tunesmith can't compute yet.",
        fix="Choose a base of the Llama, Qwen, Mistral, Gemma or Phi families.",
        code="unsupported_architecture",
    )
