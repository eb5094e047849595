"""Whether a model computes several texts side by side as it computes each alone: tried, not believed.

A token tree and the generator's batches lay tokens of many texts in one flat row and leave it to attention who sees
whom. That is right only where attention is all that joins tokens and where all of it comes through the hook of
`models.attention`. Hundreds of architectures say so in hundreds of ways, so a small tree is computed once in both ways.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.models.attention import NoLayout, use_layout_attention
from tunesmith.models.projection import Projection

#: A beginning that two texts share, then an end for each: three segments of this many tokens.
_TOKENS = 6
#: Relative error that rounding may make, by number format; of coarser ones, as little as a wrong result would make.
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-2}
_COARSE_ROUNDING = 0.15

_known: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()


def why_one_by_one(model: PreTrainedModel) -> str | None:
    """Return why `model` must compute one text at a time, for a sentence ("it has ..."), or None.

    The first call for a model computes a few tokens; a model that must be computed alone keeps its own attention.

    Raises:
        ModelError: its logits aren't a projection of its last hidden states, so neither way would be right.
    """
    if model not in _known:
        _known[model] = _try_out(model)
    return _known[model]


def _try_out(model: PreTrainedModel) -> str | None:
    own, was_training = model.config._attn_implementation, model.training
    first, second, positions = _two_texts(model)
    layout = _SmallTree()
    model.eval()
    try:
        with torch.no_grad():
            alone = _alone(model, second)
            use_layout_attention(model)
            together = model.get_decoder()(
                input_ids=torch.cat([first, second[:, _TOKENS:]], dim=1),
                position_ids=positions,
                use_cache=False,
                layout=layout,
            ).last_hidden_state[0, 2 * _TOKENS :]
    except NoLayout as error:
        reason: str | None = error.what
    # Whatever an unknown architecture trips over here is told with the reason.
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = f"layers that refuse it ({(str(error).splitlines() or [''])[0]})"
    else:
        reason = _difference(model, alone, together, layout)
    finally:
        model.train(was_training)
    if reason is not None and model.config._attn_implementation != own:
        model.set_attn_implementation(own)
    return reason


def _alone(model: PreTrainedModel, text: Tensor) -> Tensor:
    """Return the last hidden states of the text's second half, computed as transformers does.

    Raises:
        ModelError: see `why_one_by_one`.
    """
    logits = model(input_ids=text, use_cache=False).logits[0, _TOKENS:]
    output = model.get_decoder()(input_ids=text, use_cache=False)
    hidden: Tensor | None = getattr(output, "last_hidden_state", None)
    if hidden is None or _error(Projection.of(model).logits(hidden[0, _TOKENS:]), logits) > _tolerance(logits):
        raise ModelError(
            f"The architecture {model.config.model_type!r} computes its logits in a way of its own.",
            fix="Choose a base of the Llama, Qwen, Mistral, Gemma or Phi families.",
            code="unsupported_architecture",
        )
    return hidden[0, _TOKENS:]


def _error(one: Tensor, other: Tensor) -> float:
    """Return the relative error, the greatest over tokens.

    In coarse number formats it is the median: with mixtures of experts, rounding sends a token to another expert.
    """
    error = (one - other).float().norm(dim=-1) / other.float().norm(dim=-1).clamp_min(1e-12)
    return float(error.max() if other.dtype in _ROUNDING else error.median())


def _tolerance(x: Tensor) -> float:
    return _ROUNDING.get(x.dtype, _COARSE_ROUNDING)


def _difference(model: PreTrainedModel, alone: Tensor, together: Tensor, layout: _SmallTree) -> str | None:
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    slides = getattr(config, "sliding_window", None) is not None if kinds is None else "sliding_attention" in kinds
    if slides and not layout.saw_window:  # the small tree is too short to show it
        return "sliding windows of its own"
    if _error(together, alone) > _tolerance(alone):
        return "layers through which texts that lie side by side change each other"
    return None


def _two_texts(model: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """Return two texts (1, 2 x tokens) that begin alike, and the positions (1, 3 x tokens) of both in one row."""
    device = model.get_input_embeddings().weight.device
    size = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(3 * _TOKENS, device=device) * 7 + 3).remainder(size)[None]
    places = torch.arange(2 * _TOKENS, device=device)
    first, second = ids[:, : 2 * _TOKENS], torch.cat([ids[:, :_TOKENS], ids[:, 2 * _TOKENS :]], dim=1)
    return first, second, torch.cat([places, places[_TOKENS:]])[None]


class _SmallTree:
    """The `Layout` of the two texts, written out."""

    def __init__(self) -> None:
        self.saw_window = False

    def attend(
        self,
        layer: int,  # noqa: ARG002
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window_tokens: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See `Layout.attend`."""
        self.saw_window |= window_tokens is not None
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        flat = torch.arange(3 * _TOKENS, device=query.device)
        place = torch.where(flat < 2 * _TOKENS, flat, flat - _TOKENS)
        distance = place[:, None] - place
        other = (flat[:, None] >= 2 * _TOKENS) & (flat >= _TOKENS) & (flat < 2 * _TOKENS)
        hidden = (distance < 0) | (flat[:, None] < flat) | other
        if window_tokens is not None:
            hidden |= distance >= window_tokens
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1).to(value.dtype)
        return (weights @ value).transpose(1, 2)
