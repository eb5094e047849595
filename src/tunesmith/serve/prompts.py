"""The prompts of a file, read as they are needed: messages, prompts, or requests in OpenAI's batch form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data.chat_rows import RowCheck, read_messages, read_tools
from tunesmith.data.examples import Conversation, Message
from tunesmith.data.problems import RowProblem, refusal
from tunesmith.data.readers import read_rows
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, SpecError
from tunesmith.record.hashing import canonical_json
from tunesmith.specs.generation import SamplingSpec

#: What else a request in OpenAI's batch form may hold; the command says which model answers, and everything is a file.
_IGNORED = {"model", "messages", "tools", "stream", "user", "metadata", "store"}
#: How many answers there are, and their form, is the same for all rows.
_ROW_SETTINGS = set(SamplingSpec.model_fields) - {"n", "output"}


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One prompt of a file.

    Attributes:
        conversation: the prompt.
        settings: fields of `SamplingSpec` that hold for this row alone.
        custom_id: the row's own name, which its answer carries.
    """

    conversation: Conversation
    settings: Mapping[str, Any] = field(default_factory=dict)
    custom_id: str | None = None

    def sampling(self, common: SamplingSpec) -> SamplingSpec:
        """Return how this row is answered where all others are answered as `common` says."""
        return common.model_copy(update=dict(self.settings)) if self.settings else common


class PromptFile:
    """The prompts of a file; iterating reads it again, so that memory doesn't depend on its length.

    A conversation that ends with an assistant's turn is asked without that turn.

    Args:
        path: rows with `messages` (and perhaps `tools`), with `prompt`, or with a `body` as in OpenAI's batch files.
        system: put before prompts that have no system message of their own.

    Raises:
        DataError: the file or a row can't be read.
    """

    def __init__(self, path: Path, system: str | None = None) -> None:
        self._path = path
        self._system = system
        self._problems: list[RowProblem] = []
        #: How many prompts there are.
        self.count = 0
        digest = hashlib.sha256()
        for row in self:
            self.count += 1
            digest.update(canonical_json(_facts(row)) + b"\n")
        #: Identifies the prompts, whatever the file is called.
        self.sha256 = digest.hexdigest()
        if self._problems:
            raise refusal(self._problems)
        if not self.count:
            raise DataError("There is no prompt in this file.", where=str(path), code="empty_file")

    def __iter__(self) -> Iterator[AskedRow]:
        for row in read_rows(self._path):
            if isinstance(row, RowProblem):
                self._problems.append(row)
                continue
            check = RowCheck(row.place)
            asked = _asked(row, check)
            self._problems += check.problems
            if asked is not None:
                yield replace(asked, conversation=_with_system(asked.conversation, self._system))


def _facts(row: AskedRow) -> list[Any]:
    messages = [asdict(message) for message in row.conversation.messages]
    return [messages, list(row.conversation.tools), dict(row.settings), row.custom_id]


def _asked(row: Row, check: RowCheck) -> AskedRow | None:
    if not isinstance(row.values.get("body"), dict):
        conversation = _prompt(row, row.values, "", check)
        return None if conversation is None else AskedRow(conversation)
    body = row.values["body"]
    conversation = _prompt(row, body, "body.", check)
    settings = _settings(body, check)
    custom_id = row.values.get("custom_id")
    if not isinstance(custom_id, str | None):
        check.refuse("custom_id", "isn't a text", "Write a text or leave it out.", "wrong_type")
    if conversation is None or check.problems:
        return None
    return AskedRow(conversation, settings, custom_id)


def _settings(body: Mapping[str, Any], check: RowCheck) -> dict[str, Any]:
    """Return a request's own settings, the wrong ones noted in `check`."""
    given = {key: value for key, value in body.items() if key not in _IGNORED and value is not None}
    if "max_tokens" in given:  # OpenAI's older name
        given.setdefault("max_completion_tokens", given.pop("max_tokens"))
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    for key in given.keys() - _ROW_SETTINGS:
        known = ", ".join(sorted(_ROW_SETTINGS))
        check.refuse(
            f"body.{key}", "can't be set for a single row", f"Leave it out; rows may set {known}.", "bad_row_setting"
        )
    try:
        spec = SamplingSpec.parse({key: given[key] for key in given.keys() & _ROW_SETTINGS})
    except SpecError as error:
        check.refuse(f"body.{error.param}", error.message, error.fix or "Mend it.", "bad_row_setting")
        return {}
    return {key: getattr(spec, key) for key in sorted(given.keys() & _ROW_SETTINGS)}


def _prompt(row: Row, values: Mapping[str, Any], at: str, check: RowCheck) -> Conversation | None:
    if isinstance(values.get("prompt"), str):
        return Conversation((Message("user", values["prompt"]),), place=row.place)
    name = "prompt" if "prompt" in values else "messages"
    if name not in values:
        columns = ", ".join(values)
        check.refuse(
            f"{at}messages", f"is missing; the row has {columns}", "Write `messages` or `prompt` in each row.",
            "no_prompt",
        )  # fmt: skip
        return None
    messages = read_messages(values[name], f"{at}{name}", check)
    tools = read_tools(values.get("tools"), check)
    if check.problems:
        return None
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages:
        check.refuse(f"{at}{name}", "holds no prompt", "Start with a user's message.", "no_prompt")
        return None
    return Conversation(tuple(messages), tools, row.place)


def _with_system(prompt: Conversation, system: str | None) -> Conversation:
    if system is None or prompt.messages[0].role in ("system", "developer"):
        return prompt
    return Conversation((Message("system", system), *prompt.messages), prompt.tools, prompt.place)
