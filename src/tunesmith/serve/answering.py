"""A model opened to answer: weights with their adapter, the renderer it was trained with, and an engine.

The server, `chat`, `generate` and the evaluation all open models here, so that all of them give the same answers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation
from tunesmith.errors import DataError, ModelError, RequestError
from tunesmith.generate.choice import decoder_for
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.request import Request
from tunesmith.models.adapters.lora import load_lora
from tunesmith.models.load import DtypeName, LoadedModel, load_base
from tunesmith.models.quantised import Nf4
from tunesmith.models.resolve import resolve_model
from tunesmith.models.versions import ModelVersion, verify
from tunesmith.record.hashing import sha256_json
from tunesmith.record.home import Home
from tunesmith.specs.generation import SamplingSpec


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of an engine: answers side by side, and tokens held in its cache."""

    max_batch: int = 32
    max_cache_tokens: int = 131_072


@dataclass(eq=False)
class OpenModel:
    """A model in memory, ready to answer.

    Attributes:
        name: the base's name or the tuned version's `ft:` name.
        loaded: the weights, with the adapter folded in, or beside them if they are in 4 bits.
        renderer: turns conversations into tokens exactly as training did.
        engine: for a caller that answers in its own thread; one thread at a time.
        version: the tuned version; None for a base.
        limits: of its engines.
    """

    name: str
    loaded: LoadedModel
    renderer: ChatRenderer
    engine: Decoder
    version: ModelVersion | None
    limits: EngineLimits
    _rendering: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """Identify the weights, their number format and the rendering: the same answers need the same one."""
        version_id = None if self.version is None else self.version.id
        facts = [self.loaded.source.sha256, version_id, str(self.loaded.dtype), self.renderer.template_hash]
        return f"fp_{sha256_json(facts)[:12]}"

    def renew_engine(self) -> None:
        """Take a fresh engine: after a fault, nobody knows what the old one's cache holds."""
        self.engine = _engine(self.loaded, self.renderer, self.limits)

    def request(self, conversation: Conversation, sampling: SamplingSpec) -> Request:
        """Render a prompt for the engine; any thread may call it.

        Raises:
            RequestError: the template refuses the messages, or they are longer than the context.
        """
        self._refuse_far_too_long(conversation)
        try:
            # Tokenizers refuse to be changed by two threads at once, and rendering sets their options.
            with self._rendering:
                prompt_ids = self.renderer.for_generation(conversation)
        except DataError as error:
            raise RequestError(error.message, fix=error.fix, code=error.code, param="messages") from error
        request = Request(prompt_ids, sampling)
        self.engine.check(request.expand()[0])
        return request

    @cached_property
    def _longest_token(self) -> int:
        """Characters (bytes, for most tokenizers) of the longest token."""
        return max(map(len, self.loaded.tokenizer.get_vocab()))

    def _refuse_far_too_long(self, conversation: Conversation) -> None:
        """Refuse a prompt whose characters can't fit, however they are cut: counting its tokens would take long.

        Raises:
            RequestError: it is too long.
        """
        characters = sum(len(message.content or "") for message in conversation.messages)
        if characters > self.loaded.context_tokens * self._longest_token:
            raise RequestError(
                f"The messages have {characters:,} characters; this model takes {self.loaded.context_tokens:,} tokens.",
                fix="Shorten the messages.",
                code="context_length_exceeded",
                param="messages",
            )


def open_model(name: str, home: Home, *, dtype: DtypeName = "auto", limits: EngineLimits | None = None) -> OpenModel:
    """Load a base or a tuned version by any of its names and make it ready to answer.

    Args:
        name: an embedded name, a folder, a `.gguf` file, a Hub id, or a tuned version's `ft:` name, id or label.
        home: where tuned versions and converted bases are kept.
        dtype: number format; `auto` is bfloat16 where the hardware multiplies it quickly, and for a version that was
            trained on weights in 4 bits the format that it was trained in.
        limits: of its engine.

    Raises:
        ModelError: there is no such model, its files were changed, or its chat template isn't the one that it was
            trained with (`code="template_mismatch"`).
        StorageError: a conversion doesn't fit on the disk.
    """
    found = resolve_model(name, home)
    if found.version is not None:
        verify(found.version)
    loaded = load_base(found.base, dtype, quantisation=_quantisation(found.version))
    renderer = _renderer(loaded, found.version)
    if found.version is not None and found.version.made.kind == "adapter":
        # Weights in 4 bits stay so, as they were when the model was proved.
        load_lora(loaded.model, found.version.folder).settle()
    limits = limits or EngineLimits()
    return OpenModel(
        name=name_of(found.base.name, found.version),
        loaded=loaded,
        renderer=renderer,
        engine=_engine(loaded, renderer, limits),
        version=found.version,
        limits=limits,
    )


def _quantisation(version: ModelVersion | None) -> Nf4 | None:
    """Return how the base was kept when the version was trained.

    Raises:
        ModelError: this release can't keep it so.
    """
    if version is None or version.made.quantisation is None:
        return None
    return Nf4.from_json(version.made.quantisation, version.name)


def name_of(base: str, version: ModelVersion | None) -> str:
    """Return the name that a model is known by: the version's, if it is one."""
    return base if version is None else version.name


def _renderer(loaded: LoadedModel, version: ModelVersion | None) -> ChatRenderer:
    """Return the renderer that the model was trained with.

    Raises:
        ModelError: rendering would differ from training.
    """
    if version is None:
        return ChatRenderer(loaded.tokenizer)
    file: Path = version.folder / "chat_template.jinja"
    try:
        # Bytes: reading as text would turn line ends of another system into "\n", and the hash would differ.
        renderer = ChatRenderer(loaded.tokenizer, file.read_bytes().decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            "The chat template of this model can't be read.",
            where=str(file),
            fix="Bring it back from a backup, or train the model again.",
            code="template_mismatch",
        ) from error
    if renderer.template_hash != version.made.template_sha256:
        raise ModelError(
            "The chat template and special tokens aren't those that this model was trained with.",
            where=version.name,
            fix="Bring back the base and the template that it was trained with, or train it again.",
            code="template_mismatch",
        )
    return renderer


def _engine(loaded: LoadedModel, renderer: ChatRenderer, limits: EngineLimits) -> Decoder:
    return decoder_for(loaded, renderer, max_batch=limits.max_batch, max_cache_tokens=limits.max_cache_tokens)
