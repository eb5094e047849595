"""One forward pass of decoding: transformers' model, with lean layers where they compute the same.

What makes an architecture (embeddings, positions, the order of layers) stays transformers' own. Its decoder layers are
exchanged for lean ones that were put together from their parts and found to give the same on real input (see
`generate.exchange`). Layers that stay compute their linear maps packed, and with adapters, all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.generate.exchange import Exchanged, exchange
from tunesmith.generate.lean_layer import Step
from tunesmith.generate.linear_map import AdapterRows
from tunesmith.generate.products import product_of
from tunesmith.models.adapters.frozen import weight_of
from tunesmith.models.attention import Layout
from tunesmith.models.load import LoadedModel
from tunesmith.models.projection import Projection

__all__ = ["AdapterRows", "Forward"]

#: Copies of a borrowed model's weights may take this much.
_MOST_COPIED_BYTES = 2 << 30

#: Where a model that is owned keeps what it was prepared to, which so lives as long as the model and no longer.
_PREPARED = "_tunesmith_forward"


class Forward:
    """Hidden states and logits of flat batches. One thread at a time may use it; see `of`."""

    def __init__(self, loaded: LoadedModel, *, owned: bool) -> None:
        self._decoder: Any = loaded.model.get_decoder()
        self._model = loaded.model
        self._step = Step()
        pack = owned or sum(p.nbytes for p in self._decoder.parameters()) <= _MOST_COPIED_BYTES
        with torch.inference_mode():
            self._exchanged: Exchanged = exchange(loaded.model, self._step, pack=pack, free=owned)
            self._projection = Projection.of(loaded.model)
            head = self._projection.weight
            self._head = product_of(head, self._projection.bias, pack=pack) if head.dtype == loaded.dtype else None

    @classmethod
    def of(cls, loaded: LoadedModel, *, owned: bool) -> Forward:
        """Prepare a model for decoding; one that is owned already is prepared once.

        Args:
            loaded: the model, with its attention by layout (see `models.attention`).
            owned: nobody else computes with the model from now on: its weights are laid out anew, and the originals
                freed. Else the model stays as it is, and copies are made if it isn't large.
        """
        kept: dict[str, Any] = vars(loaded.model)
        if _PREPARED in kept:
            prepared: Forward = kept[_PREPARED]
            return prepared
        made = cls(loaded, owned=owned)
        if owned:
            kept[_PREPARED] = made
        return made

    @property
    def lean_layers(self) -> int:
        """How many layers were exchanged."""
        return len(self._exchanged.layers)

    def expect_adapters(self) -> None:
        """Compute every row from now on as if others beside it went through adapters, so that company changes nothing.

        Where none do, oneDNN goes on with a product's result, which rounds otherwise.
        """
        for made in self._exchanged.maps.values():
            made.may_fuse = False

    @torch.inference_mode()
    def hidden(self, token_ids: Tensor, layout: Layout, rows: Sequence[AdapterRows] = ()) -> Tensor:
        """Compute a flat batch.

        Args:
            token_ids: (T,).
            layout: who attends to whom; its `positions` (T,) are the tokens' places in their texts.
            rows: which rows go through which adapters; the others through none.

        Returns:
            The last hidden states (T, H).
        """
        if not self._exchanged.has_taken_over(self._model):
            self._exchanged.take_over(self._model, self._step)
        self._step.begin(layout, rows)
        try:
            output = self._decoder(
                input_ids=token_ids[None],
                position_ids=layout.positions[None],  # type: ignore[attr-defined]
                use_cache=False,
                layout=layout,
            )
        finally:
            self._step.begin(None, ())
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Map (M, H) hidden states to (M, V) logits in at least float32."""
        if self._head is None:
            return self._projection.logits(hidden)
        out = self._head.wide(hidden)
        self._projection.shape(out)
        return out

    def weight(self, name: str) -> Tensor:
        """Return the weight (out, in) of a linear layer by its dotted name, wherever it is kept by now.

        Raises:
            AttributeError: there is no such layer.
        """
        kept = weight_of(self._model.get_submodule(name))
        return kept if kept.numel() else self._exchanged.weight(name)
