"""From logits to tokens: greedy choice, temperature, nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.specs.generation import SamplingSpec


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; its log-probability and the likeliest tokens with theirs, where they were asked for.

    Log-probabilities are those of the model itself, before temperature and nucleus.
    """

    token_id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses one request's tokens; with a seed, the same ones each time, whatever else is in the batch."""

    def __init__(self, spec: SamplingSpec) -> None:
        self._spec = spec
        self._random = torch.Generator()
        if spec.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(spec.seed % 2**63)

    def choose(self, logits: Tensor, likeliest: int) -> Choice:
        """Choose from logits (V,), float32, whose greatest is at `likeliest`."""
        spec = self._spec
        if spec.temperature == 0 and not spec.logprobs:
            return Choice(likeliest)
        logits = logits.cpu()
        token_id = likeliest if spec.temperature == 0 else self._draw(logits)
        if not spec.logprobs:
            return Choice(token_id)
        logprobs = torch.log_softmax(logits, dim=-1)
        top: tuple[tuple[int, float], ...] = ()
        if spec.top_logprobs:
            values, ids = logprobs.topk(spec.top_logprobs)
            top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Choice(token_id, float(logprobs[token_id]), top)

    def _draw(self, logits: Tensor) -> int:
        # Minus the greatest: a temperature close to zero would else make infinite numbers.
        probabilities = torch.softmax((logits - logits.max()) / self._spec.temperature, dim=-1)
        if self._spec.top_p < 1.0:
            ordered, ids = probabilities.sort(descending=True)
            # A token stays while the mass before it is below top_p; the likeliest always stays.
            ordered[ordered.cumsum(0) - ordered >= self._spec.top_p] = 0.0
            return int(ids[torch.multinomial(ordered, 1, generator=self._random)])
        return int(torch.multinomial(probabilities, 1, generator=self._random))
