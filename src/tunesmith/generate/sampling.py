"""From logits to tokens, for all requests of a step at once.

The order of what changes a row of logits is that of vLLM and transformers: the request's biases, penalties for
repetition (Keskar et al. 2019, arXiv:1909.05858), presence and frequency (OpenAI's), the form that the answer must
have, temperature, top-k, top-p, min-p. Log-probabilities are the model's own, before all of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.errors import ModelError, RequestError, TunesmithError
from tunesmith.generate.constraints import Matcher
from tunesmith.generate.drawing import Wishes, draw, weight_sums
from tunesmith.generate.leading import leading
from tunesmith.generate.logit_edits import Edits, TokenCounts, apply_edits, forbid
from tunesmith.native.calls import kernels
from tunesmith.specs.generation import SamplingSpec

#: A top-k above every vocabulary.
_ALL = 2**40


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; its log-probability and the likeliest tokens with theirs, where they were asked for.

    Log-probabilities are those of the model itself, before anything that the request changes. With an `error` there was
    nothing to choose: the answer can't go on, and the token means nothing.
    """

    token_id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    error: TunesmithError | None = None


class Sampler:
    """What choosing one request's tokens needs to remember; with a seed they are the same each time.

    Each token takes one uniform number from the request's own generator, so neither the other requests of a batch nor a
    pause changes what is chosen.

    Args:
        spec: how tokens are chosen.
        prompt_ids: the prompt's tokens, for the penalty on repetition.
        matcher: the form that the answer must have; None for free text.
        end_ids: tokens that end an answer. One of them follows when the matcher has finished; without a matcher,
            `ignore_eos` forbids them.
    """

    def __init__(
        self,
        spec: SamplingSpec,
        prompt_ids: Sequence[int] = (),
        matcher: Matcher | None = None,
        end_ids: Collection[int] = (),
    ) -> None:
        self.spec = spec
        self.matcher = matcher
        self.end_ids = frozenset(end_ids)
        self._random = np.random.default_rng(None if spec.seed is None else spec.seed % 2**64)
        biases = dict(spec.logit_bias)
        if spec.ignore_eos and matcher is None:
            biases |= dict.fromkeys(self.end_ids, -torch.inf)
        has_penalty = spec.presence_penalty or spec.frequency_penalty or spec.repetition_penalty != 1.0
        counts = None
        if has_penalty:
            counts = TokenCounts(prompt_ids if spec.repetition_penalty != 1.0 else ())
        self._counts = counts
        #: What is done to this request's logits besides the matcher's mask; None for nothing.
        self.edits = Edits.of(spec, biases, counts) if biases or counts is not None else None

    def wish(self) -> tuple[float, float, float, float, float]:
        """Return a row of `Wishes`, with the next uniform number."""
        spec = self.spec
        return spec.temperature, float(min(spec.top_k, _ALL)), spec.top_p, spec.min_p, self._random.random()

    def accept(self, token_id: int) -> None:
        """Go on with a token of the answer."""
        if self._counts is not None:
            self._counts.add(token_id)
        if self.matcher is not None and token_id not in self.end_ids:
            self.matcher.accept(token_id)


@torch.inference_mode()
def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[Choice]:
    """Choose the next token of every row.

    Args:
        logits: (rows, V) float32. Overwritten where a request changes them.
        samplers: one for each row; they remember what was chosen.

    Returns:
        One choice for each row. A row that holds NaN or plus infinity, or whose form allows no token, gets an error and
        leaves the others alone.
    """
    if logits.device.type not in ("cpu", "cuda"):  # some devices have no float64
        logits = logits.cpu()
    measured = [row for row, sampler in enumerate(samplers) if sampler.spec.logprobs]
    own = _own_logits(logits, measured, samplers) if measured else None
    errors = _edit(logits, samplers)
    token_ids = _token_ids(logits, samplers)
    logprobs = dict(zip(measured, own.logprobs(token_ids, measured), strict=True)) if own else {}
    choices = []
    for row, (token_id, sampler) in enumerate(zip(token_ids, samplers, strict=True)):
        error = errors.get(row) or (_nothing_to_choose(sampler) if token_id < 0 else None)
        if error is None:
            try:
                sampler.accept(token_id)
            except TunesmithError as refusal:
                error = refusal
        if error is not None:
            choices.append(Choice(min(sampler.end_ids, default=0), error=error))
        else:
            choices.append(Choice(token_id, *logprobs.get(row, ())))
    return choices


@dataclass(frozen=True, slots=True)
class _Own:
    """The model's own distribution of some rows, kept before their logits are changed."""

    logits: Tensor
    log_mass: Tensor
    top: list[tuple[tuple[int, float], ...]]

    def logprobs(
        self, token_ids: Sequence[int], rows: Sequence[int]
    ) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
        """Return each row's log-probability of the token that was chosen, with the likeliest tokens."""
        chosen = torch.tensor([max(token_ids[row], 0) for row in rows], device=self.logits.device)
        values = self.logits.gather(1, chosen[:, None])[:, 0].double() - self.log_mass
        return list(zip(values.tolist(), self.top, strict=True))


def _own_logits(logits: Tensor, rows: Sequence[int], samplers: Sequence[Sampler]) -> _Own:
    """Keep what log-probabilities need: a copy of the rows, their log-sum-exp, the likeliest tokens."""
    kept = logits[torch.tensor(rows, device=logits.device)]
    most = max(samplers[row].spec.top_logprobs for row in rows)
    order = leading(kept, most + 1)
    if bool(((order.counts < most) & ~order.is_whole).any()):  # many equal ones
        order = leading(kept, None)
    ones = torch.ones(len(rows), dtype=torch.float64, device=logits.device)
    log_mass = weight_sums(kept, order.peaks, ones).log() + order.peaks.double()
    values = (order.values[:, :most].double() - log_mass[:, None]).tolist()
    pairs = [tuple(zip(ids, row, strict=True)) for ids, row in zip(order.ids[:, :most].tolist(), values, strict=True)]
    return _Own(kept, log_mass, [top[: samplers[row].spec.top_logprobs] for row, top in zip(rows, pairs, strict=True)])


def _edit(logits: Tensor, samplers: Sequence[Sampler]) -> dict[int, TunesmithError]:
    """Change the logits as the requests wish; return the errors of rows whose form can't be followed."""
    apply_edits(logits, {row: sampler.edits for row, sampler in enumerate(samplers) if sampler.edits is not None})
    errors: dict[int, TunesmithError] = {}
    rows = [row for row, sampler in enumerate(samplers) if sampler.matcher is not None]
    if not rows:
        return errors
    masks = torch.zeros(len(rows), -(-logits.shape[1] // 32), dtype=torch.int32)
    for row, mask in zip(rows, masks, strict=True):
        sampler = samplers[row]
        assert sampler.matcher is not None
        try:
            if not sampler.matcher.is_finished:
                sampler.matcher.allowed(mask)
            else:
                for end_id in sampler.end_ids:
                    if end_id < logits.shape[1]:
                        _set_bit(mask, end_id)
        except TunesmithError as error:
            errors[row] = error
    forbid(logits, rows, masks)
    return errors


def _set_bit(mask: Tensor, token_id: int) -> None:
    word, bit = divmod(token_id, 32)
    mask[word] |= 1 << bit if bit < 31 else -(1 << 31)


def _token_ids(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Return each row's token; -1 where there is none."""
    drawn = [row for row, sampler in enumerate(samplers) if sampler.spec.temperature > 0]
    if not drawn:
        return _likeliest(logits)
    token_ids = [-1] * len(samplers)
    greedy = [row for row, sampler in enumerate(samplers) if sampler.spec.temperature == 0]
    if greedy:
        for row, token_id in zip(greedy, _likeliest(logits[torch.tensor(greedy)]), strict=True):
            token_ids[row] = token_id
        logits = logits[torch.tensor(drawn)]
    wishes = Wishes.of([samplers[row].wish() for row in drawn], logits.device)
    for row, token_id in zip(drawn, draw(logits, wishes), strict=True):
        token_ids[row] = token_id
    return token_ids


def _likeliest(logits: Tensor) -> list[int]:
    """Return the place of each row's greatest, of equal ones the first; -1 where it isn't finite."""
    found_kernels = kernels() if logits.device.type == "cpu" and logits.dtype == torch.float32 else None
    if found_kernels is not None:
        return [int(one) for one in found_kernels.likeliest(logits).tolist()]
    # NumPy's search is many times faster than PyTorch's.
    ids = torch.from_numpy(logits.numpy().argmax(axis=1)) if logits.device.type == "cpu" else logits.argmax(1)
    found = logits.gather(1, ids[:, None])[:, 0]
    return [int(one) for one in ids.where(found.isfinite(), -1).tolist()]


def _nothing_to_choose(sampler: Sampler) -> TunesmithError:
    """Say why a row has no token."""
    if sampler.matcher is not None:
        return RequestError(
            "No token can go on with this answer in the form that was asked for.",
            fix="Ask for another form, or for free text.",
            code="form_dead_end",
        )
    return ModelError(
        "The model's logits aren't finite numbers (NaN or infinity).",
        fix="Load it in float32 or bfloat16. If that doesn't help, its weights are broken.",
        code="logits_not_finite",
    )
