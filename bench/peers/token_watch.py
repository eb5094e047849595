"""Hears the tokens of transformers' `generate` while they come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers.generation.streamers import BaseStreamer


class TokenWatch(BaseStreamer):  # type: ignore[misc]
    """A streamer that tells of each step's tokens.

    Args:
        arrived: called with the number of a row of the batch for each of its new tokens.
    """

    def __init__(self, arrived: Callable[[int], None]) -> None:
        self._arrived = arrived
        self._has_prompts = False

    def put(self, value: torch.Tensor) -> None:
        """Hear one token of every row; the first call brings the prompts."""
        if self._has_prompts:
            for row in range(value.numel()):
                self._arrived(row)
        self._has_prompts = True

    def end(self) -> None:
        """Nothing is left to do."""
