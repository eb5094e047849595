"""The one place that chooses how a model answers."""

from __future__ import annotations

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.engine import LOOKAHEAD_ROWS, Engine
from tunesmith.generate.one_by_one import OneByOne
from tunesmith.generate.vllm.decoder import VllmDecoder, VllmLimits
from tunesmith.models.load import LoadedModel
from tunesmith.models.side_by_side import why_one_by_one


def vllm_decoder(loaded: LoadedModel, renderer: ChatRenderer, limits: VllmLimits) -> Decoder:
    """Return what answers through a vLLM server.

    Args:
        loaded: the base, of which the server reads the files; see `models.load.describe_base`.
        renderer: its chat renderer.
        limits: of the server.

    Raises:
        ModelError: vLLM isn't there (`code="no_vllm"`), doesn't know the model or doesn't start.
    """
    return VllmDecoder(loaded, renderer, limits)


def decoder_for(
    loaded: LoadedModel,
    renderer: ChatRenderer,
    *,
    max_batch: int = 32,
    cache_bytes: int | None = None,
    owned: bool = False,
    lookahead_rows: int = LOOKAHEAD_ROWS,
) -> Decoder:
    """Return what answers with `loaded`: many requests side by side, or one after the other where it must be.

    Args:
        loaded: the model.
        renderer: its chat renderer.
        max_batch: requests computed side by side.
        cache_bytes: memory for keys and values; None: a share of what is free.
        owned: nobody else computes with the model from now on, so its weights may be laid out for answering.
        lookahead_rows: see `Engine`.

    Raises:
        ModelError: its logits aren't a projection of its last hidden states, or `cache_bytes` is too little.
    """
    if why_one_by_one(loaded.model) is None:
        return Engine(
            loaded,
            renderer,
            max_batch=max_batch,
            cache_bytes=cache_bytes,
            owned=owned,
            lookahead_rows=lookahead_rows,
        )
    return OneByOne(loaded, renderer)
