"""`SamplingSpec`: how answers are drawn from a model, and what form they must have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.specs.base import Spec


class JsonObjectSpec(Spec):
    """The answer is one JSON object."""

    kind: Literal["json_object"] = Field("json_object", description="The form: a JSON object.")


class JsonSchemaSpec(Spec):
    """The answer is JSON that a schema (draft 2020-12) describes."""

    kind: Literal["json_schema"] = Field("json_schema", description="The form: JSON of a schema.")
    json_schema: dict[str, Any] = Field(description="The schema.")


class RegexSpec(Spec):
    """The whole answer matches a regular expression."""

    kind: Literal["regex"] = Field("regex", description="The form: a text that matches.")
    pattern: str = Field(min_length=1, max_length=10_000, description="The expression; it needs no anchors.")


class GrammarSpec(Spec):
    """The answer follows a grammar."""

    kind: Literal["grammar"] = Field("grammar", description="The form: a text of a grammar.")
    grammar: str = Field(min_length=1, max_length=100_000, description="The grammar, in Lark's form.")


class ChoiceSpec(Spec):
    """The answer is one of a few texts."""

    kind: Literal["choice"] = Field("choice", description="The form: one of some texts.")
    choices: tuple[str, ...] = Field(min_length=1, max_length=10_000, description="The texts.")


OutputSpec = Annotated[
    JsonObjectSpec | JsonSchemaSpec | RegexSpec | GrammarSpec | ChoiceSpec, Field(discriminator="kind")
]


class SamplingSpec(Spec):
    """How tokens are chosen and when an answer ends. The names are those of OpenAI's chat completions."""

    reference_page = "sampling.md"

    temperature: float = Field(0.0, ge=0.0, le=2.0, description="0 always takes the likeliest token; 1 samples as is.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Sample only from the likeliest tokens of this joint mass.")
    top_k: int = Field(0, ge=0, description="Sample only from this many likeliest tokens; 0: from all.")
    min_p: float = Field(
        0.0, ge=0.0, le=1.0, description="Sample only from tokens at least this likely, by the likeliest one."
    )
    presence_penalty: float = Field(
        0.0, ge=-2.0, le=2.0, description="Taken off the logit of every token that the answer holds already."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2.0, le=2.0, description="Taken off a token's logit for each time that the answer holds it."
    )
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=10.0, description="Logits of tokens of prompt and answer are divided by this (if above 0)."
    )
    logit_bias: dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(
        default_factory=dict, max_length=1024, description="Added to the logits of tokens, by token id."
    )
    max_completion_tokens: int = Field(512, ge=1, le=1_000_000, description="Longest answer, in tokens.")
    stop: tuple[str, ...] = Field((), max_length=4, description="Texts that end an answer; they aren't returned.")
    ignore_eos: bool = Field(False, description="Go on to the longest answer, whatever the model says (benchmarks).")
    seed: int | None = Field(None, description="Seed of the sampling; the same seed gives the same answer.")
    n: int = Field(1, ge=1, le=128, description="Answers for each prompt.")
    logprobs: bool = Field(False, description="Return the log-probability of each token of the answer.")
    top_logprobs: int = Field(0, ge=0, le=20, description="Return this many likeliest tokens at each position.")
    output: OutputSpec | None = Field(None, description="The form that the answer must have; none: free text.")
