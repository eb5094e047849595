"""How likely given answers are: scores of continuations, and classification by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tunesmith.data.examples import Conversation
from tunesmith.errors import RequestError
from tunesmith.generate.request import Score, ScoreRequest
from tunesmith.serve.answering import OpenModel
from tunesmith.specs.generation import SamplingSpec

#: What a log-likelihood is divided by before choices of different length are compared.
Normalisation = Literal["none", "tokens", "bytes"]


@dataclass(frozen=True, slots=True)
class ScoredContinuation:
    """How likely a model is to say `text`.

    Attributes:
        text: the answer.
        token_ids: its tokens, with the end of the turn where that was scored too.
        logprobs: each token's natural log-probability after the prompt and the tokens before it.
        is_likeliest: whether each token is the likeliest at its place.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_likeliest: tuple[bool, ...]

    @property
    def logprob(self) -> float:
        """Natural log-probability of the whole."""
        return math.fsum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Classification:
    """The likeliest of a few answers.

    Attributes:
        choice: that answer.
        probabilities: of each choice among the choices; they add up to 1.
        scores: of each choice, in the order in which they were given.
    """

    choice: str
    probabilities: Mapping[str, float]
    scores: tuple[ScoredContinuation, ...]


def score_requests(
    opened: OpenModel, conversation: Conversation, continuations: Sequence[str], *, with_end: bool
) -> list[ScoreRequest]:
    """Render a prompt and what may follow it, as training renders replies; any thread may call it.

    Args:
        opened: who scores.
        conversation: the prompt.
        continuations: the replies.
        with_end: with the end of the turn.

    Raises:
        RequestError: there is nothing to score, the template refuses the messages, or they are longer than the context.
    """
    if isinstance(continuations, str) or not continuations:
        raise RequestError("Continuations are a list of texts.", fix='Write ["yes", "no"].', param="continuations")
    prompt = opened.request(conversation, SamplingSpec())
    requests = []
    for text in continuations:
        token_ids = opened.continuation_ids(conversation, text)
        if not with_end and token_ids and token_ids[-1] in opened.renderer.end_of_turn_ids:
            token_ids = token_ids[:-1]
        if not token_ids:
            raise RequestError(
                f"There is nothing to score in {text!r}.",
                fix="Write at least one letter, or count the end of the turn (with_end).",
                code="empty_continuation",
                param="continuations",
            )
        requests.append(ScoreRequest(prompt.prompt_ids, token_ids, prompt.adapter))
    return requests


def scored_continuations(
    texts: Sequence[str], requests: Sequence[ScoreRequest], scores: Sequence[Score]
) -> list[ScoredContinuation]:
    """Return what was asked and what came out, together."""
    return [
        ScoredContinuation(text, request.continuation_ids, score.logprobs, score.is_likeliest)
        for text, request, score in zip(texts, requests, scores, strict=True)
    ]


def check_choices(choices: Sequence[str], normalise: Normalisation) -> None:
    """Refuse choices that can't be compared.

    Raises:
        RequestError: there are none or two alike, or there is no such normalisation.
    """
    if isinstance(choices, str) or not choices or len(set(choices)) < len(choices):
        raise RequestError("Choices are a list of different texts.", fix='Write ["yes", "no"].', param="choices")
    if normalise not in get_args(Normalisation):
        known = ", ".join(get_args(Normalisation))
        raise RequestError(f"There is no normalisation {normalise!r}.", fix=f"Write one of {known}.", param="normalise")


def classification(scores: Sequence[ScoredContinuation], normalise: Normalisation) -> Classification:
    """Share a probability of 1 among choices: the softmax of their log-likelihoods, divided as `normalise` says."""
    weighed = [score.logprob / _length(score, normalise) for score in scores]
    most = max(weighed)
    shares = [math.exp(one - most) for one in weighed]
    total = math.fsum(shares)
    probabilities = {score.text: share / total for score, share in zip(scores, shares, strict=True)}
    return Classification(scores[weighed.index(most)].text, probabilities, tuple(scores))


def _length(score: ScoredContinuation, normalise: Normalisation) -> int:
    match normalise:
        case "none":
            return 1
        case "tokens":
            return len(score.token_ids)
        case "bytes":
            return max(1, len(score.text.encode()))
