"""`SamplingSpec`: how answers are drawn from a model."""

from __future__ import annotations

from pydantic import Field

from tunesmith.specs.base import Spec


class SamplingSpec(Spec):
    """How tokens are chosen and when an answer ends. The names are those of OpenAI's chat completions."""

    reference_page = "sampling.md"

    temperature: float = Field(0.0, ge=0.0, le=2.0, description="0 always takes the likeliest token; 1 samples as is.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Sample only from the likeliest tokens of this joint mass.")
    max_completion_tokens: int = Field(512, ge=1, le=1_000_000, description="Longest answer, in tokens.")
    stop: tuple[str, ...] = Field((), max_length=4, description="Texts that end an answer; they aren't returned.")
    seed: int | None = Field(None, description="Seed of the sampling; the same seed gives the same answer.")
    n: int = Field(1, ge=1, le=128, description="Answers for each prompt.")
    logprobs: bool = Field(False, description="Return the log-probability of each token of the answer.")
    top_logprobs: int = Field(0, ge=0, le=20, description="Return this many likeliest tokens at each position.")
