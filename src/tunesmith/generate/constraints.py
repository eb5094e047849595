"""The form that an answer must have, token by token. The one file that knows `llguidance`.

A form is compiled once (in a thread of its own, with a deep stack and a bound on its time) and kept; each answer
follows a copy. Everything else that may take long is bounded by `_LIMITS`.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import RequestError
from tunesmith.generate.form_checks import check_form, form_code, form_error
from tunesmith.generate.token_table import TokenTable
from tunesmith.specs.generation import ChoiceSpec, GrammarSpec, JsonSchemaSpec, OutputSpec, RegexSpec

#: Space between the parts of a JSON text: none, one space, or a line break with an indentation. A model that wants to
#: go on with spaces for ever can't.
_JSON_SPACE = r" |\n {0,40}|\n\t{0,10}"

#: Rows of 20,000 items let objects have some thousand optional properties.
_LIMITS = LLParserLimits(max_items_in_row=20_000, step_max_items=200_000, verbose_errors=False)

#: A compilation that takes longer is given up by the request; few may run at once, as nothing can stop them.
_COMPILE_SECONDS = 30.0
_COMPILATIONS = threading.BoundedSemaphore(4)
#: llguidance calls itself for each level of nesting; this is only ever touched as far as it is needed.
_STACK_BYTES = 256 * 2**20
_STACK_SIZE_LOCK = threading.Lock()


class Matcher(Protocol):
    """Follows one answer and says which tokens may come next."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end may follow."""

    def allowed(self, mask: Tensor) -> None:
        """Fill one row of a bit mask, int32 (ceil(V/32),): bit `i % 32` of word `i // 32` says whether i may come."""

    def accept(self, token_id: int) -> None:
        """Go on with a token that was chosen."""


class Constraints:
    """Compiles forms for one model. Any thread may use it; a matcher belongs to one thread at a time.

    Args:
        renderer: knows the tokens.
        vocabulary_size: V, the model's number of logits.
        end_ids: tokens that end an answer; all of them are allowed once the form is complete.
        max_kept: compiled forms that are kept, the latest used.
    """

    def __init__(
        self, renderer: ChatRenderer, vocabulary_size: int, end_ids: Collection[int], *, max_kept: int = 128
    ) -> None:
        self._renderer = renderer
        self._vocabulary_size = vocabulary_size
        self._end_ids = tuple(end_ids)
        self._max_kept = max_kept
        self._lock = threading.Lock()
        self._making_tokenizer = threading.Lock()
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._latest: tuple[OutputSpec, str] | None = None

    def compile(self, spec: OutputSpec) -> TokenMatcher:
        """Return a matcher at the beginning of an answer of this form.

        Raises:
            RequestError: the form is wrong, not supported, too large, or nothing can have it (`invalid_schema`,
                `invalid_regex`, `invalid_grammar`, `invalid_choice`); or too many forms are being compiled
                (`overloaded`).
        """
        key = self._key(spec)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return TokenMatcher(found.deep_copy(), self._table)
        check_form(spec)
        compiled = _in_deep_thread(lambda: self._compiled(spec))
        with self._lock:
            self._kept[key] = compiled
            while len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)
            return TokenMatcher(compiled.deep_copy(), self._table)

    def _key(self, spec: OutputSpec) -> str:
        """Return a name that only forms of the same meaning share; the order of properties is part of it."""
        named = self._latest
        if named is None or named[0] is not spec:  # thousands of requests in turn may bring the same object
            named = self._latest = (spec, hashlib.sha256(repr(spec).encode()).hexdigest())
        return named[1]

    @cached_property
    def _table(self) -> TokenTable:
        return TokenTable(self._renderer, self._vocabulary_size, self._end_ids)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(self._table), eos_token=self._table.end_ids)

    def _compiled(self, spec: OutputSpec) -> LLMatcher:
        with self._making_tokenizer:  # takes a while; most engines never need it
            tokenizer = self._tokenizer
        matcher = LLMatcher(tokenizer, _grammar(spec), log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise form_error(f"{_NAMES[spec.kind]} can't be used: {_reason(matcher)}", code=form_code(spec))
        # Looking for the first tokens shows whether there are any; what this works out, the copies share.
        probe = matcher.deep_copy()
        probe.compute_bitmask()
        if probe.is_error():
            why = _reason(probe)
            if "NoExtension" in why:
                why = "no text has this form."
            raise form_error(f"{_NAMES[spec.kind]} can't be used: {why}", code=form_code(spec))
        return matcher


class TokenMatcher:
    """A `Matcher` of one answer."""

    def __init__(self, matcher: LLMatcher, table: TokenTable) -> None:
        self._matcher = matcher
        self._table = table
        self._is_first = True

    @property
    def is_finished(self) -> bool:
        """See `Matcher`."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def allowed(self, mask: Tensor) -> None:
        """See `Matcher`.

        Raises:
            RequestError: the answer can't go on (`form_dead_end`).
        """
        words = -(-len(self._table.tokens) // 32)
        is_whole = mask.shape[0] == words and mask.is_contiguous()
        full = mask if is_whole else torch.empty(words, dtype=torch.int32)
        self._matcher.unsafe_compute_mask_ptr(full.data_ptr(), words * 4)
        self._check()
        if not is_whole:
            self._take(full, mask)

    def accept(self, token_id: int) -> None:
        """See `Matcher`.

        Raises:
            ValueError: the token isn't allowed.
            RequestError: the answer can't go on (`form_dead_end`).
        """
        self._check()
        if self._is_first:
            token_id = self._table.twins.get(token_id, token_id)
            self._is_first = False
            if not self._table.tokens[token_id]:
                return  # a space alone, which the text drops
        if self._matcher.validate_tokens([token_id]) != 1:
            raise ValueError(f"Token {token_id} isn't allowed here.")
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(
                f"The answer can't go on in the form that was asked for: {_reason(self._matcher)}",
                fix="Make the form simpler.",
                code="form_dead_end",
                param="output",
            )

    def _take(self, full: Tensor, mask: Tensor) -> None:
        """Copy the model's part of a mask over all tokens; at the beginning, twins speak for their tokens."""
        twins = self._table.twins
        if self._is_first and twins:
            bits = np.unpackbits(full.numpy().view(np.uint8), bitorder="little")
            bits[np.fromiter(twins.keys(), dtype=np.int64)] = bits[np.fromiter(twins.values(), dtype=np.int64)]
            # Where the text is certain, llguidance allows one way to write it, and knows nothing of the space.
            bits[self._table.spaced_beginnings(self._matcher.compute_ff_bytes())] = 1
            full = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))
        mask.copy_(full[: mask.shape[0]])


_NAMES = {
    "json_object": "The JSON object",
    "json_schema": "The JSON schema",
    "regex": "The regular expression",
    "grammar": "The grammar",
    "choice": "The list of choices",
}


def _grammar(spec: OutputSpec) -> str:
    """Return a form in llguidance's words."""
    match spec:
        case RegexSpec():
            return str(LLMatcher.grammar_from_regex(spec.pattern))
        case GrammarSpec():
            return json.dumps({"grammars": [{"lark_grammar": spec.grammar}]})
        case ChoiceSpec():
            texts = " | ".join(map(_quoted, dict.fromkeys(spec.choices)))
            return json.dumps({"grammars": [{"lark_grammar": f"start: CHOICE\nCHOICE: {texts}\n"}]})
    schema: dict[str, Any] = dict(spec.json_schema) if isinstance(spec, JsonSchemaSpec) else {"type": "object"}
    schema["x-guidance"] = {"whitespace_pattern": _JSON_SPACE}
    return json.dumps({"grammars": [{"json_schema": schema}]})


def _quoted(text: str) -> str:
    """Return a text as a string of a grammar."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _reason(matcher: LLMatcher) -> str:
    """Return what llguidance says is wrong, in one line."""
    lines = [line.strip() for line in str(matcher.get_error()).replace("<non-verbose/>", "").splitlines()]
    told = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)
    text = told or next(filter(None, lines), "unknown")
    return f"{text[:300].rstrip('.:')}."


def _in_deep_thread(work: Callable[[], LLMatcher]) -> LLMatcher:
    """Return what `work` returns, done in a thread whose stack is deep enough for nested grammars.

    Raises:
        RequestError: as `work` does, or it takes too long.
    """
    if not _COMPILATIONS.acquire(timeout=_COMPILE_SECONDS):
        raise RequestError("Too many forms of answers are being compiled.", fix="Try again shortly.", code="overloaded")
    done: queue.SimpleQueue[LLMatcher | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(work())
        except BaseException as error:  # raised again by who waits
            done.put(error)
        finally:
            _COMPILATIONS.release()

    with _STACK_SIZE_LOCK:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=run, name="compile a form", daemon=True).start()
        finally:
            threading.stack_size(usual)
    try:
        result = done.get(timeout=_COMPILE_SECONDS)
    except queue.Empty as error:
        raise form_error(
            "The form of the answer takes too long to compile.", code="form_too_complex", fix="Make it simpler."
        ) from error
    if isinstance(result, BaseException):
        raise result
    return result
