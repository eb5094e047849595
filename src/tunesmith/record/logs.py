"""What a process logs: a line for people or a JSON object for machines, with the request that it belongs to.

    set_up_logs("json")
    with_request = request_id.set("req_...")

A line holds no key and no text of a user's: secrets are taken out by their form, and of an error that isn't one of our
own only its kind and its place are told, since its words may quote what was sent.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.specs.serving import LogFormat

#: The request that is being answered; threads that `asyncio.to_thread` starts for it know it too.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

#: Under this name a line takes facts of its own: `_log.info("...", extra={FACTS: {"status": 200}})`.
FACTS = "facts"
_HIDDEN = "[secret]"
#: Keys of ours, secrets of webhooks, headers, and passwords in URLs.
_SECRETS = re.compile(
    r"sk-[0-9A-Za-z_-]{12,}|whsec_[0-9A-Za-z+/=]{12,}|(?<=[Bb]earer )\S+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: Their words are of the system or of libraries, and quote nobody.
_QUOTES_NOBODY = (TunesmithError, OSError, RuntimeError, MemoryError, NotImplementedError)
#: These tell of every request that they make, or of every migration.
_QUIET = ("httpx", "httpx2", "httpcore", "alembic", "fsspec", "asyncio")


class LogLines(logging.Formatter):
    """Writes lines of one format.

    Args:
        form: `text` or `json`.
        secrets: further texts that no line may hold.
    """

    def __init__(self, form: LogFormat, secrets: Collection[str] = ()) -> None:
        super().__init__()
        self._form = form
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line; as text, the place of an error follows in lines of its own."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = self._clean(record.getMessage())
        trace = [self._clean(line) for line in _trace(record)]
        facts: Mapping[str, Any] = getattr(record, FACTS, {})
        request = request_id.get()
        if self._form == "json":
            line = {
                "time": moment.replace("+00:00", "Z"),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": message,
                **({"request_id": request} if request else {}),
                **facts,
                **({"exception": trace} if trace else {}),
            }
            return self._clean(json.dumps(line, ensure_ascii=False, default=str))
        named = f" [{request}]" if request else ""
        text = f"{moment[:23].replace('T', ' ')} {record.levelname} {record.name}{named}: {message}"
        return "\n".join([text, *(f"    {line}" for line in trace)])

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), _SECRETS.sub(_HIDDEN, text))


def set_up_logs(form: LogFormat, secrets: Collection[str] = ()) -> None:
    """Let this process log to standard error, from the level INFO on.

    Args:
        form: `text` or `json`.
        secrets: texts that no line may hold.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogLines(form, secrets))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _trace(record: logging.LogRecord) -> list[str]:
    """Return the kinds and places of a record's error and of what caused it, the last one first."""
    error = record.exc_info[1] if record.exc_info else None
    lines: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        words = f": {error}" if isinstance(error, _QUOTES_NOBODY) else ""
        lines.append(f"{'because of ' if lines else ''}{type(error).__module__}.{type(error).__qualname__}{words}")
        for frame in traceback.extract_tb(error.__traceback__):
            lines.append(f"  {frame.filename}:{frame.lineno} in {frame.name}")  # noqa: PERF401  (two kinds of lines)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return lines
