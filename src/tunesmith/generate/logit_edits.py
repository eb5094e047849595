"""What requests change about their rows of logits before a token is chosen: biases, penalties, forbidden tokens.

Biases and penalties touch few tokens of a row, so all rows' entries are gathered, changed and put back at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.specs.generation import SamplingSpec

_Ids = npt.NDArray[np.int64]
_Numbers = npt.NDArray[np.float32]


class TokenCounts:
    """The tokens of a prompt and its answer, and how often the answer holds each."""

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        known = list(dict.fromkeys(prompt_ids))
        self._place = {token_id: place for place, token_id in enumerate(known)}
        self._ids = np.array(known, dtype=np.int64)
        self._counts = np.zeros(len(known), dtype=np.float32)

    def add(self, token_id: int) -> None:
        """Count a token of the answer."""
        place = self._place.setdefault(token_id, len(self._place))
        if place == len(self._ids):  # room is doubled, so a long answer costs no more for each token than a short one
            self._ids = np.concatenate([self._ids, np.zeros(place + 16, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(place + 16, dtype=np.float32)])
        self._ids[place] = token_id
        self._counts[place] += 1

    @property
    def ids(self) -> _Ids:
        """The tokens, each once."""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> _Numbers:
        """How often the answer holds each."""
        return self._counts[: len(self._place)]


@dataclass(frozen=True, slots=True)
class Edits:
    """What one request changes about its logits.

    Attributes:
        bias_ids: tokens with a bias.
        biases: what is added to their logits; minus infinity forbids one.
        counts: the tokens that penalties apply to; None for no penalty.
        presence: taken off a token's logit if the answer holds it.
        frequency: taken off for each time that it does.
        repetition: divides a logit above 0 of a token of prompt or answer, and multiplies one below.
    """

    bias_ids: _Ids
    biases: _Numbers
    counts: TokenCounts | None
    presence: float
    frequency: float
    repetition: float

    @classmethod
    def of(cls, spec: SamplingSpec, biases: Mapping[int, float], counts: TokenCounts | None) -> Edits:
        """Take a request's penalties, with all of its biases by token id."""
        return cls(
            bias_ids=np.array(list(biases), dtype=np.int64),
            biases=np.array(list(biases.values()), dtype=np.float32),
            counts=counts,
            presence=spec.presence_penalty,
            frequency=spec.frequency_penalty,
            repetition=spec.repetition_penalty,
        )


def apply_edits(logits: Tensor, edits: Mapping[int, Edits]) -> None:
    """Change logits (rows, V), float32, in place; `edits` by row. Tokens outside the vocabulary are passed over."""
    biased = {row: one for row, one in edits.items() if len(one.bias_ids)}
    if biased:
        entries = _Entries.of(logits, {row: one.bias_ids for row, one in biased.items()})
        entries.put(entries.values + entries.column([one.biases for one in biased.values()]))
    penalised = {row: one.counts for row, one in edits.items() if one.counts is not None and len(one.counts.ids)}
    if penalised:
        entries = _Entries.of(logits, {row: counts.ids for row, counts in penalised.items()})
        factors, amounts = [], []
        for row, counts in penalised.items():
            one = edits[row]
            factors.append(np.full(len(counts.ids), one.repetition, dtype=np.float32))
            amounts.append(one.frequency * counts.counts + one.presence * (counts.counts > 0))
        factor, values = entries.column(factors), entries.values
        entries.put(torch.where(values > 0, values / factor, values * factor) - entries.column(amounts))


def forbid(logits: Tensor, rows: Sequence[int], allowed: Tensor) -> None:
    """Set the logits of tokens that a bit mask doesn't allow to minus infinity, in place.

    Args:
        logits: (all rows, V) float32.
        rows: the rows that have a mask.
        allowed: (rows, ceil(V/32)) int32 on the CPU; bit `i % 32` of word `i // 32` is token i.
    """
    if logits.device.type == "cpu":
        bits = np.unpackbits(allowed.numpy().view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
        for row, forbidden in zip(rows, torch.from_numpy(bits == 0), strict=True):
            logits[row].masked_fill_(forbidden, -torch.inf)
        return
    words = allowed.to(logits.device)[:, :, None]
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    forbidden = ((words >> shifts) & 1 == 0).flatten(1)[:, : logits.shape[1]]
    where = torch.tensor(rows, device=logits.device)
    logits[where] = logits[where].masked_fill(forbidden, -torch.inf)


@dataclass(frozen=True, slots=True)
class _Entries:
    """Some entries of some rows, each once."""

    logits: Tensor
    places: Tensor
    is_known: npt.NDArray[np.bool_]
    values: Tensor

    @classmethod
    def of(cls, logits: Tensor, ids: Mapping[int, _Ids]) -> _Entries:
        """Gather entries by row and token id."""
        columns = np.concatenate(list(ids.values()))
        rows = np.repeat(np.fromiter(ids, dtype=np.int64), [len(one) for one in ids.values()])
        is_known = (columns >= 0) & (columns < logits.shape[1])
        flat = torch.from_numpy((rows * logits.shape[1] + columns)[is_known]).to(logits.device)
        return cls(logits, flat, is_known, logits.view(-1)[flat])

    def column(self, parts: Sequence[npt.NDArray[np.floating]]) -> Tensor:
        """Return a number for each entry, given row by row."""
        return torch.from_numpy(np.concatenate(parts, dtype=np.float32)[self.is_known]).to(self.logits.device)

    def put(self, values: Tensor) -> None:
        """Write the entries back."""
        self.logits.view(-1)[self.places] = values
