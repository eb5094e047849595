"""How well a model foretells unseen text: perplexity and bits per byte, passage by passage.

A passage is a run of tokens of a test document, each foretold from what comes before it. An arm's score is the mean
log-likelihood of a token (natural log, so higher is better, and 0 is best): differences between arms are then paired
and tested like any other score. People read it as perplexity, exp(-score), where lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.evaluate.comparison import ArmResult, Cost
from tunesmith.evaluate.measure import Measure, perplexity
from tunesmith.evaluate.statistics import Floats, bootstrap_interval

PERPLEXITY = Measure(
    "perplexity",
    "Documents ask nothing, so what counts is how well each next token of unseen text is foretold: perplexity says "
    "among how many equally likely tokens the model is torn, on average. Bits per byte tell the same whatever the "
    "tokenizer.",
)


@dataclass(frozen=True, slots=True)
class PassageLoss:
    """What one passage came to.

    Attributes:
        nats: sum of the losses of its tokens, natural log.
        tokens: how many tokens were foretold.
        bytes: how long they are as text, in UTF-8.
        context_tokens: how many tokens before them the first one was foretold from.
        seconds: how long it took.
    """

    nats: float
    tokens: int
    bytes: int
    context_tokens: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """Exp of the mean loss."""
        return perplexity(self.nats / self.tokens)


def score_passages(name: str, description: str, passages: Sequence[PassageLoss], confidence: float = 0.95) -> ArmResult:
    """Score one arm's losses on the test passages.

    The intervals are bootstrapped over the passages. A row's score is its log-likelihood by the passages' mean length,
    so that the mean of the rows' scores is the mean over all tokens.

    Args:
        name: the arm's short name.
        description: what it does, in a few words.
        passages: at least one.
        confidence: level of the intervals.
    """
    losses = np.array([[passage.nats, passage.tokens, passage.bytes] for passage in passages], dtype=np.float64)
    mean_tokens = losses[:, 1].mean()
    seconds = np.array([passage.seconds for passage in passages])
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    return ArmResult(
        name=name,
        description=description,
        measure=PERPLEXITY,
        score=bootstrap_interval(losses, _log_likelihood_of_a_token, confidence=confidence),
        secondary={"bits per byte": bootstrap_interval(losses, _bits_per_byte, confidence=confidence)},
        fields=(),
        row_scores=tuple((-losses[:, 0] / mean_tokens).tolist()),
        answers=tuple(f"perplexity {passage.perplexity:.1f}" for passage in passages),
        cost=Cost(
            mean_prompt_tokens=float(np.mean([passage.context_tokens + passage.tokens for passage in passages])),
            mean_completion_tokens=0.0,
            mean_seconds=float(seconds.mean()),
            p50_seconds=float(p50),
            p95_seconds=float(p95),
        ),
    )


def _log_likelihood_of_a_token(sums: Floats) -> Floats:
    return -sums[:, 0] / sums[:, 1]


def _bits_per_byte(sums: Floats) -> Floats:
    return sums[:, 0] / math.log(2) / sums[:, 2]
