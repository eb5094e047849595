"""`ServeSpec`: which models a server answers with, where it listens, and who may ask."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator

from tunesmith.specs.base import Spec

#: Holds the keys of a server, separated by commas.
KEY_VARIABLE = "TUNESMITH_API_KEY"

#: What computes answers.
Backend = Literal["torch", "vllm"]

_ALIAS = re.compile(r"[!-~]{1,100}")
#: How a process writes what it logs.
LogFormat = Literal["text", "json"]

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class ServeSpec(Spec):
    """What a server is asked for. A server that other machines can reach only starts when there is a key."""

    reference_page = "serving.md"

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 is every address.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys: tuple[SecretStr, ...] = Field(
        (),
        description="Further keys that callers may send, beside those of `tunesmith keys`. Without any key anybody on "
        "this machine may ask, and nobody else.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Further names under which a server without a key may be called (`Host` and `Origin`)."
    )
    models: tuple[str, ...] = Field(
        (),
        description="Serve these models only: any base or tuned model. None: embedded bases, all tuned models. What "
        "fine-tuning jobs make is served in any case.",
    )
    aliases: tuple[str, ...] = Field(
        (),
        description="Further names of models, as NAME=MODEL: `gpt-4o-mini-2024-07-18=smollm2-135m` lets scripts of a "
        "hosted service run unchanged. Answers, jobs and the list of models say which model it is.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of weights and activations. `auto`: bfloat16 where it is fast."
    )
    backend: Backend = Field(
        "torch",
        description="What computes: Tunesmith's own engine, or a vLLM server that it starts in the environment whose "
        "Python `TUNESMITH_VLLM_PYTHON` names.",
    )
    max_loaded_models: int = Field(
        2,
        ge=1,
        le=64,
        description="Bases in memory at once; the least recently used one makes room. A tuned model shares its base, "
        "unless it was trained whole.",
    )
    max_loaded_adapters: int = Field(
        32, ge=1, le=10_000, description="Adapters of tuned models in memory at once, for each base."
    )
    max_batch: int = Field(32, ge=1, le=1024, description="Answers that one model computes side by side.")
    cache_bytes: Literal["auto"] | Annotated[int, Field(ge=1 << 20)] = Field(
        "auto",
        description="Memory for the keys and values of one base's answers, and of what later ones may begin with. "
        "`auto`: a quarter of the free memory, of a GPU's 60 %. On CPUs it is taken as it is used.",
    )
    lookahead_rows: int = Field(
        8,
        ge=0,
        le=1024,
        description="While few answers grow, their next tokens are guessed from their texts and computed in the same "
        "step, up to this many tokens in all; answers stay the same. 0: never.",
    )
    max_waiting: int = Field(
        256,
        ge=0,
        le=100_000,
        description="Answers that may wait for one base, or for room in memory; more are refused with status 429.",
    )
    default_max_tokens: int = Field(
        1024, ge=1, le=1_000_000, description="Longest answer, in tokens, where a request sets no limit of its own."
    )
    max_body_bytes: int = Field(16 << 20, ge=1024, description="Largest request, but for uploads of files.")
    max_file_bytes: int = Field(512 << 20, ge=1024, description="Largest file that is uploaded in one request.")
    workers: int = Field(
        1,
        ge=0,
        le=64,
        description="Workers for fine-tuning jobs that are started with the server and end with it. 0: none; "
        "`tunesmith worker` starts one by itself.",
    )
    shutdown_seconds: int = Field(
        20, ge=1, le=3600, description="How long answers in progress may still take when the server is stopped."
    )
    log_format: LogFormat = Field(
        "text",
        description="How the server and its workers log, on standard error: lines for people, or a JSON object a line. "
        "Neither holds keys, or text of requests and answers.",
    )

    @field_validator("api_keys")
    @classmethod
    def _keys_are_sendable(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        """Refuse a key that no HTTP header can carry."""
        for key in keys:
            text = key.get_secret_value()
            if not text or not all("!" <= c <= "~" for c in text):
                raise ValueError("a key holds at least one visible ASCII character, and no spaces")
        return keys

    @field_validator("aliases")
    @classmethod
    def _aliases_are_pairs(cls, aliases: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse an alias without its model, or given twice."""
        names = set()
        for alias in aliases:
            name, _, model = alias.partition("=")
            if not _ALIAS.fullmatch(name) or not model:
                raise ValueError("an alias is NAME=MODEL, its name 1 to 100 visible ASCII characters")
            if name in names:
                raise ValueError(f"{name} is given twice")
            names.add(name)
        return aliases

    @property
    def alias_table(self) -> dict[str, str]:
        """The model that each alias stands for."""
        return {name: model for name, _, model in (alias.partition("=") for alias in self.aliases)}

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def own_hosts(self) -> frozenset[str]:
        """Host names, in lower case, under which a server without a key may be called."""
        return frozenset(name.lower().strip("[]") for name in (*_LOOPBACK_NAMES, self.host, *self.allowed_hosts))


def keys_from(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys that `TUNESMITH_API_KEY` holds."""
    return tuple(key for part in environment.get(KEY_VARIABLE, "").split(",") if (key := part.strip()))
