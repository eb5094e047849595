"""Log-probabilities of given tokens from hidden states, without the logits of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Logits that are in memory at once.
_LOGITS_BYTES = 64 << 20


def token_scores(
    hidden: Tensor, targets: Sequence[int], logits: Callable[[Tensor], Tensor], vocabulary: int, top: int = 0
) -> tuple[list[float], list[bool], list[tuple[tuple[int, float], ...]]]:
    """Return the natural log-probability of each target, whether it is the likeliest token, and the likeliest ones.

    Args:
        hidden: (N, H), the hidden states that the targets follow.
        targets: N token ids.
        logits: maps hidden states (M, H) to logits (M, V) in at least float32.
        vocabulary: V.
        top: how many of the likeliest tokens to return.
    """
    ids = torch.tensor(targets, device=hidden.device)
    rows = max(2, _LOGITS_BYTES // (4 * vocabulary))
    logprobs: list[Tensor] = []
    is_likeliest: list[Tensor] = []
    likeliest_ones: list[tuple[tuple[int, float], ...]] = []
    for start in range(0, len(ids), rows):
        part, own = hidden[start : start + rows], ids[start : start + rows]
        if len(part) == 1:  # a single row would be multiplied by another kernel, see `StepLayout`
            part = part.expand(2, -1)
        found = logits(part)[: len(own)]
        greatest, likeliest = found.max(dim=-1)
        chosen = found.gather(1, own[:, None])[:, 0]
        norms = found.logsumexp(dim=-1)
        logprobs.append(chosen - norms)
        if top:
            values, names = found.topk(top, dim=-1)
            shares = (values - norms[:, None]).tolist()
            likeliest_ones += [tuple(zip(*row, strict=True)) for row in zip(names.tolist(), shares, strict=True)]
        # Of several that are equally likely, the first is the greedy choice.
        is_likeliest.append((chosen == greatest) & (likeliest == own))
    return torch.cat(logprobs).tolist(), torch.cat(is_likeliest).tolist(), likeliest_ones
