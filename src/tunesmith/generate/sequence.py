"""One text that the engine computes: an answer that grows, or a continuation that is scored."""

from __future__ import annotations

from collections.abc import Sequence as Texts
from dataclasses import dataclass, field

from tunesmith.generate.answer import Answer
from tunesmith.generate.lookahead import Lookahead
from tunesmith.generate.pages import PAGE_TOKENS
from tunesmith.generate.prefixes import Node
from tunesmith.generate.request import Score, ScoreRequest


class Scoring:
    """A score request in flight: what is known of its continuation so far."""

    def __init__(self, request_id: int, request: ScoreRequest) -> None:
        self.request_id = request_id
        self._prompt_tokens = len(request.prompt_ids)
        self._targets = request.continuation_ids
        self._logprobs: list[float] = []
        self._is_likeliest: list[bool] = []
        self._top: list[tuple[tuple[int, float], ...]] = []
        #: How many of the likeliest tokens are wanted at each place.
        self.top = request.top

    @property
    def next_position(self) -> int:
        """Position of the token whose hidden state gives the next log-probability."""
        return self._prompt_tokens - 1 + len(self._logprobs)

    def targets(self, end: int) -> tuple[int, ...]:
        """Return the tokens that the positions from `next_position` up to `end` are scored on."""
        return self._targets[len(self._logprobs) : max(0, end - self._prompt_tokens + 1)]

    def take(
        self, logprobs: Texts[float], is_likeliest: Texts[bool], top: Texts[tuple[tuple[int, float], ...]]
    ) -> None:
        """Add what is known of the next tokens; `top` may hold more of the likeliest than are wanted, or nothing."""
        self._logprobs += logprobs
        self._is_likeliest += is_likeliest
        if self.top:
            self._top += [likeliest[: self.top] for likeliest in top]

    @property
    def score(self) -> Score | None:
        """The score, once it is complete."""
        if len(self._logprobs) < len(self._targets):
            return None
        return Score(tuple(self._logprobs), tuple(self._is_likeliest), tuple(self._top))


@dataclass(eq=False, slots=True)
class Sequence:
    """A request's tokens, and where their keys and values are.

    Attributes:
        adapter: the request's.
        tokens: all tokens so far: the prompt, and what was answered or is scored.
        prompt_tokens: how many of them are the prompt.
        job: what becomes of the hidden states.
        computed: tokens whose keys and values are stored.
        pages: the pages that hold them, in order; the last ones may still be empty.
        node: the prefix cache's node of the last page that was filed there; None before the first admission.
        filed: pages filed so far.
        tail: the node of the part of a page behind them, if this sequence filed one.
        has_begun: whether it was in flight before.
        lookahead: guesses its next tokens.
    """

    adapter: str | None
    tokens: list[int]
    prompt_tokens: int
    job: Answer | Scoring
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    node: Node | None = None
    filed: int = 0
    tail: Node | None = None
    has_begun: bool = False
    lookahead: Lookahead = field(init=False)

    def __post_init__(self) -> None:
        """Look ahead in its own tokens."""
        self.lookahead = Lookahead(self.tokens)

    def begin(self) -> None:
        """Note that it is admitted; only the first time counts."""
        if not self.has_begun and isinstance(self.job, Answer):
            self.job.begin()
        self.has_begun = True

    @property
    def request_id(self) -> int:
        """The request's id; a later request has a greater one."""
        return self.job.request_id

    @property
    def missing(self) -> int:
        """Tokens that aren't computed."""
        return len(self.tokens) - self.computed

    @property
    def is_decoding(self) -> bool:
        """Whether all that is missing is the token that was chosen last."""
        return self.missing == 1 and len(self.tokens) > self.prompt_tokens and isinstance(self.job, Answer)

    @property
    def guessable(self) -> int:
        """Tokens that may be guessed at most: the last one of an answer isn't computed."""
        return self.prompt_tokens + self.job.limit_tokens - len(self.tokens) - 1 if isinstance(self.job, Answer) else 0

    @property
    def reusable(self) -> int:
        """Tokens that needn't be computed again where a cache holds them: not the one whose hidden state is next."""
        return len(self.tokens) - 1 if isinstance(self.job, Answer) else self.job.next_position

    @property
    def room(self) -> int:
        """Tokens that its pages hold."""
        return len(self.pages) * PAGE_TOKENS
