"""Log-probabilities of given tokens from hidden states, without the logits of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Logits that are in memory at once.
_LOGITS_BYTES = 64 << 20


def token_scores(
    hidden: Tensor, targets: Sequence[int], logits: Callable[[Tensor], Tensor], vocabulary: int
) -> tuple[list[float], list[bool]]:
    """Return the natural log-probability of each target, and whether it is the likeliest token.

    Args:
        hidden: (N, H), the hidden states that the targets follow.
        targets: N token ids.
        logits: maps hidden states (M, H) to logits (M, V) in at least float32.
        vocabulary: V.
    """
    ids = torch.tensor(targets, device=hidden.device)
    rows = max(2, _LOGITS_BYTES // (4 * vocabulary))
    logprobs: list[Tensor] = []
    is_likeliest: list[Tensor] = []
    for start in range(0, len(ids), rows):
        part, own = hidden[start : start + rows], ids[start : start + rows]
        if len(part) == 1:  # a single row would be multiplied by another kernel, see `StepLayout`
            part = part.expand(2, -1)
        found = logits(part)[: len(own)]
        greatest, likeliest = found.max(dim=-1)
        chosen = found.gather(1, own[:, None])[:, 0]
        logprobs.append(chosen - found.logsumexp(dim=-1))
        # Of several that are equally likely, the first is the greedy choice.
        is_likeliest.append((chosen == greatest) & (likeliest == own))
    return torch.cat(logprobs).tolist(), torch.cat(is_likeliest).tolist()
