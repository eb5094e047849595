"""Weights in memory with the engine that computes with them, and the models that answer through it.

Several tuned versions share one base: each brings its adapter and its chat template, nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tunesmith.chat.call_probe import find_format
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.chat.tool_calls import ToolCallFormat
from tunesmith.data.examples import Conversation
from tunesmith.errors import DataError, RequestError
from tunesmith.generate.choice import decoder_for, vllm_decoder
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.engine import LOOKAHEAD_ROWS
from tunesmith.generate.request import Request
from tunesmith.generate.vllm.decoder import VllmLimits
from tunesmith.models.adapters.served import ServedAdapter
from tunesmith.models.load import LoadedModel
from tunesmith.models.versions import ModelVersion
from tunesmith.record.hashing import sha256_json
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.serving import Backend


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What computes, and how much at once.

    Attributes:
        max_batch: answers side by side.
        cache_bytes: memory for keys and values; None: a share of what is free.
        backend: Tunesmith's own engine, or a vLLM server.
        max_adapters: with vLLM, adapters that the server holds; 0 for none, which is faster.
        max_adapter_rank: with vLLM, the largest rank among them.
        lookahead_rows: with Tunesmith's engine, tokens of growing answers in a step, up to which some are guessed.
    """

    max_batch: int = 32
    cache_bytes: int | None = None
    backend: Backend = "torch"
    max_adapters: int = 8
    max_adapter_rank: int = 64
    lookahead_rows: int = LOOKAHEAD_ROWS


class OpenBase:
    """Weights in memory and their engine; whoever uses the engine does so in one thread at a time.

    Attributes:
        loaded: the weights, which the engine may lay out anew: nobody else computes with them.
        limits: of the engine.
        rendering: held while a prompt is rendered: tokenizers refuse to be changed by two threads at once.
    """

    def __init__(self, loaded: LoadedModel, limits: EngineLimits) -> None:
        self.loaded = loaded
        self.limits = limits
        self.rendering = threading.Lock()
        # Which tokens end a turn and what they spell are the tokenizer's; templates only write prompts.
        self._renderer = ChatRenderer(loaded.tokenizer)
        self._adapters: dict[str, ServedAdapter] = {}
        self._exchanging = threading.RLock()
        self._engine: Decoder | None = self._new_engine()

    @property
    def engine(self) -> Decoder:
        """Computes answers, with the adapters that it was given.

        Raises:
            ModelError: there is no memory for a fresh one.
        """
        with self._exchanging:
            if self._engine is None:
                engine = self._new_engine()
                for name, adapter in self._adapters.items():
                    engine.add_adapter(name, adapter)
                self._engine = engine
            return self._engine

    def add_adapter(self, name: str, adapter: ServedAdapter) -> None:
        """Let requests go through an adapter; call it in the engine's thread."""
        self.engine.add_adapter(name, adapter)
        self._adapters[name] = adapter

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter that no request in flight uses; call it in the engine's thread."""
        self.engine.remove_adapter(name)
        del self._adapters[name]

    def renew_engine(self) -> None:
        """Let go of the engine; a fresh one is made for the next who asks.

        After a fault, nobody knows what the old one's cache holds.
        """
        with self._exchanging:
            self._engine = None

    @cached_property
    def longest_token(self) -> int:
        """Characters (bytes, for most tokenizers) of the longest token."""
        return max(map(len, self.loaded.tokenizer.get_vocab()))

    def _new_engine(self) -> Decoder:
        limits = self.limits
        if limits.backend == "vllm":
            sizes = VllmLimits(limits.max_batch, limits.cache_bytes, limits.max_adapters, limits.max_adapter_rank)
            return vllm_decoder(self.loaded, self._renderer, sizes)
        return decoder_for(
            self.loaded,
            self._renderer,
            max_batch=limits.max_batch,
            cache_bytes=limits.cache_bytes,
            owned=True,
            lookahead_rows=limits.lookahead_rows,
        )


@dataclass(eq=False)
class OpenModel:
    """A model in memory, ready to answer.

    Attributes:
        name: the base's name or the tuned version's `ft:` name.
        base: the weights and their engine; a version's adapter is beside them, or folded in where it can't be.
        renderer: turns conversations into tokens exactly as training did.
        version: the tuned version; None for a base.
        adapter: the adapter's name in the engine; None: there is none, or it is folded in.
    """

    name: str
    base: OpenBase
    renderer: ChatRenderer
    version: ModelVersion | None = None
    adapter: str | None = None

    @property
    def loaded(self) -> LoadedModel:
        """The weights."""
        return self.base.loaded

    @property
    def limits(self) -> EngineLimits:
        """The engine's."""
        return self.base.limits

    @property
    def engine(self) -> Decoder:
        """The engine, for a caller that answers in its own thread; other models may share it."""
        return self.base.engine

    @cached_property
    def fingerprint(self) -> str:
        """Identify the weights, their number format and the rendering: the same answers need the same one."""
        version_id = None if self.version is None else self.version.id
        facts = [self.loaded.source.sha256, version_id, str(self.loaded.dtype), self.renderer.template_hash]
        if self.limits.backend != "torch":  # it adds up in another order
            facts.append(self.limits.backend)
        return f"fp_{sha256_json(facts)[:12]}"

    @cached_property
    def call_format(self) -> ToolCallFormat | None:
        """How the model writes tool calls; None if its chat template can't."""
        with self.base.rendering:
            return find_format(self.renderer)

    def renew_engine(self) -> None:
        """See `OpenBase.renew_engine`."""
        self.base.renew_engine()

    def request(self, conversation: Conversation, sampling: SamplingSpec) -> Request:
        """Render a prompt for the engine; any thread may call it.

        Raises:
            RequestError: the template refuses the messages, or they are longer than the context.
        """
        self._refuse_far_too_long(conversation)
        try:
            with self.base.rendering:
                # Tools and the template's own words count too, which only the whole text shows.
                prompt_ids = self.renderer.for_generation(conversation, most_characters=self._most_characters)
        except DataError as error:
            raise RequestError(error.message, fix=error.fix, code=error.code, param="messages") from error
        request = Request(prompt_ids, sampling, self.adapter)
        self.engine.check(request.expand()[0])
        return request

    def text_request(self, text: str | Sequence[int], sampling: SamplingSpec) -> Request:
        """Return a request to go on with a text, or with tokens, as they are: no chat template is used.

        Any thread may call it.

        Raises:
            RequestError: it is longer than the context, or a token isn't one of this model's.
        """
        if isinstance(text, str):
            self._refuse_characters(len(text))
            with self.base.rendering:
                prompt_ids = self.renderer.text_ids(text)
        else:
            prompt_ids = tuple(text)
            self._refuse_foreign_ids(prompt_ids)
        request = Request(prompt_ids or (self.renderer.text_start_id,), sampling, self.adapter, is_middle=True)
        self.engine.check(request.expand()[0])
        return request

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return tokens as text, special ones by their names; any thread may call it."""
        return b"".join(map(self.renderer.token_bytes, token_ids)).decode(errors="replace")

    def continuation_ids(self, conversation: Conversation, reply: str) -> tuple[int, ...]:
        """Render a reply to a prompt, up to the end of the turn, as training would learn it; any thread may call it.

        Raises:
            RequestError: the template refuses the messages, or the reply can't be told from its prompt.
        """
        try:
            with self.base.rendering:
                return self.renderer.continuation_ids(conversation, reply)
        except DataError as error:
            raise RequestError(error.message, fix=error.fix, code=error.code, param="continuations") from error

    def _refuse_far_too_long(self, conversation: Conversation) -> None:
        """Refuse a prompt whose characters can't fit, however they are cut: counting its tokens would take long.

        Raises:
            RequestError: it is too long.
        """
        self._refuse_characters(sum(len(message.content or "") for message in conversation.messages))

    def _refuse_foreign_ids(self, prompt_ids: Sequence[int]) -> None:
        """Refuse tokens that the model's table doesn't have.

        Raises:
            RequestError: there is one.
        """
        count = self.loaded.model.get_input_embeddings().weight.shape[0]
        foreign = next((one for one in prompt_ids if not 0 <= one < count), None)
        if foreign is not None:
            raise RequestError(
                f"{foreign} isn't the id of a token; this model's go up to {count - 1:,}.",
                fix="Look the ids up with the model's own tokenizer.",
                code="invalid_value",
                param="messages",
            )

    @property
    def _most_characters(self) -> int:
        """Characters of the longest text that could fit, however it is cut."""
        return self.loaded.context_tokens * self.base.longest_token

    def _refuse_characters(self, characters: int) -> None:
        if characters > self._most_characters:
            raise RequestError(
                f"The prompt has {characters:,} characters; this model takes {self.loaded.context_tokens:,} tokens.",
                fix="Shorten the messages.",
                code="context_length_exceeded",
                param="messages",
            )
