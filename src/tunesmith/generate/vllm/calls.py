"""What is sent to vLLM's completions endpoint and what comes back, in the generator's own words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tunesmith.generate.sampling import Choice
from tunesmith.specs.generation import (
    ChoiceSpec,
    GrammarSpec,
    JsonObjectSpec,
    JsonSchemaSpec,
    OutputSpec,
    RegexSpec,
    SamplingSpec,
)

#: How vLLM writes a token that it was asked to name by its id.
_ID_PREFIX = "token_id:"
#: Seeds that fit into vLLM's 64 bits, as the torch engine counts them.
_SEEDS = 2**63


def completion_body(
    model: str, prompt_ids: Sequence[int], sampling: SamplingSpec, *, limit_tokens: int, end_ids: Collection[int]
) -> dict[str, Any]:
    """Return the body of a streamed request for one answer.

    Every setting is said, so that nothing depends on the server's defaults. Stop texts aren't: the text is made from
    the tokens here, by the same code as with the torch engine.

    Args:
        model: the base's name or an adapter's.
        prompt_ids: the rendered prompt.
        sampling: the settings; `n` is 1.
        limit_tokens: most tokens to generate.
        end_ids: tokens that end an answer.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt_ids),
        "max_tokens": limit_tokens,
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": sorted(end_ids),
    }
    if sampling.ignore_eos and sampling.output is None:
        body["min_tokens"] = limit_tokens  # until then no end may be chosen; `ignore_eos` would choose them and go on
    if sampling.logit_bias:
        body["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias.items()}
    if sampling.seed is not None:
        body["seed"] = sampling.seed % _SEEDS
    if sampling.logprobs:
        body["logprobs"] = sampling.top_logprobs
    if sampling.output is not None:
        body["structured_outputs"] = structured_outputs(sampling.output)
    return body


def structured_outputs(output: OutputSpec) -> dict[str, Any]:
    """Return vLLM's words for the form that an answer must have."""
    match output:
        case JsonObjectSpec():
            return {"json_object": True}
        case JsonSchemaSpec():
            return {"json": output.json_schema}
        case RegexSpec():
            return {"regex": output.pattern}
        case GrammarSpec():
            return {"grammar": output.grammar}
        case ChoiceSpec():
            return {"choice": list(output.choices)}


def score_body(model: str, prompt_ids: Sequence[int], continuation_ids: Sequence[int], top: int = 0) -> dict[str, Any]:
    """Return the body of a request for the log-probabilities of a continuation; one token is generated besides."""
    return {
        "model": model,
        "prompt": [*prompt_ids, *continuation_ids],
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": top,
        "ignore_eos": True,
    }


def choices_of(choice: Mapping[str, Any], top_logprobs: int) -> list[Choice]:
    """Return the tokens of one streamed piece (`choices[0]`), with log-probabilities if they were asked for.

    Args:
        choice: the piece.
        top_logprobs: how many likeliest tokens were asked for; vLLM adds the chosen one if it isn't among them.
    """
    token_ids: list[int] = choice.get("token_ids") or []
    logprobs = choice.get("logprobs")
    if not logprobs:
        return [Choice(token_id) for token_id in token_ids]
    found = []
    for token_id, logprob, top in zip(token_ids, logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        likeliest = sorted(((_id_of(name), value) for name, value in (top or {}).items()), key=lambda pair: -pair[1])
        found.append(Choice(token_id, logprob, tuple(likeliest[:top_logprobs])))
    return found


def continuation_scores(
    prompt_logprobs: Sequence[Mapping[str, Any] | None], continuation_ids: Sequence[int], top: int = 0
) -> tuple[tuple[float, ...], tuple[bool, ...], tuple[tuple[tuple[int, float], ...], ...]]:
    """Return log-probability, and whether it is the likeliest, of each token of a continuation; and the likeliest.

    Args:
        prompt_logprobs: vLLM's, one entry for each token of prompt and continuation, by token id.
        continuation_ids: the last of those tokens.
        top: how many of the likeliest tokens were asked for.
    """
    scored = prompt_logprobs[len(prompt_logprobs) - len(continuation_ids) :]
    entries = [(entry or {})[str(token_id)] for entry, token_id in zip(scored, continuation_ids, strict=True)]
    logprobs = tuple(float(entry["logprob"]) for entry in entries)
    likeliest = tuple(_likeliest(one or {}, top) for one in scored) if top else ()
    return logprobs, tuple(entry["rank"] == 1 for entry in entries), likeliest


def _likeliest(entry: Mapping[str, Any], top: int) -> tuple[tuple[int, float], ...]:
    ranked = sorted(entry.items(), key=lambda pair: int(pair[1]["rank"]))
    return tuple((int(token_id), float(facts["logprob"])) for token_id, facts in ranked[:top])


def _id_of(name: str) -> int:
    return int(name.removeprefix(_ID_PREFIX))
