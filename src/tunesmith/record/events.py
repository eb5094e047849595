"""What a run says while it works: `events.jsonl`, and listeners that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from tunesmith.record.lines import JsonLines
from tunesmith.record.step_log import StepLog

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    `time` is ISO 8601 in UTC. `type` is a stable word for programs (`run_started`, `validation`), `message` a sentence
    for people. An event that belongs to an optimiser step carries it as `data["step"]`.
    """

    time: str
    level: Level
    type: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]


class EventLog(StepLog):
    """Appends events to a file and tells each listener, in that order: what is shown is already kept."""

    def __init__(self, path: Path, *listeners: Listener) -> None:
        """Name the file and who listens."""
        super().__init__(path)
        self._listeners = list(listeners)

    def listen(self, listener: Listener) -> None:
        """Tell `listener` every event from now on."""
        self._listeners.append(listener)

    def add(self, type: str, message: str, *, level: Level = "info", **data: Any) -> Event:
        """Record an event; it is on the disk when this returns.

        Args:
            type: a stable word for programs.
            message: a sentence for people.
            level: how much it matters.
            data: plain JSON values; `step` marks what `truncate_after` may take back.

        Raises:
            StorageError: the disk is full; the file ends with the event before.
        """
        event = Event(datetime.now(UTC).isoformat(timespec="milliseconds"), level, type, message, data)
        self._lines.append({"time": event.time, "level": level, "type": type, "message": message, "data": dict(data)})
        for listener in self._listeners:
            listener(event)
        return event

    def _step_of(self, line: Mapping[str, Any]) -> float:
        """Return the step an event belongs to; one without (started, interrupted) is history and comes before all."""
        step = cast("Mapping[str, Any]", line.get("data") or {}).get("step")
        return step if isinstance(step, int | float) else -float("inf")

    def events(self) -> Iterator[Event]:
        """Yield the recorded events in order."""
        return read_events(self._lines.path)


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a file in order; a torn last line is skipped, a missing file has none.

    Raises:
        ValueError: a line other than the last isn't an event.
    """
    for row in JsonLines(path).rows():
        try:
            yield Event(row["time"], row["level"], row["type"], row["message"], row["data"])
        except KeyError as error:
            raise ValueError(f"{path}: an event lacks {error}") from error
