"""Bars that move where they can, plain lines where they can't: in a log, a pipe, a build."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from tunesmith.cli.quantities import duration
from tunesmith.cli.screen import Screen

#: Where nothing can be redrawn, a line comes at most this often.
_PLAIN_SECONDS = 5.0


class Bars(Protocol):
    """Shows how far work has come."""

    def move(self, what: str, done: int, total: int, note: str | None = None, *, is_aside: bool = False) -> None:
        """`done` of `total` parts of `what` are finished.

        Args:
            what: the work, in a few words.
            done: parts finished.
            total: parts in all.
            note: what else is known; the time left by default.
            is_aside: work that interrupts other work for a moment; nothing is left of it when it is done.
        """

    def stop(self) -> None:
        """Leave what is shown as it is; the next `move` begins anew."""


def bars_for(screen: Screen) -> Bars:
    """Return what suits the screen."""
    return LiveBars(screen.progress) if screen.is_live else PlainLines(screen.progress)


class LiveBars:
    """Bars redrawn in place. Other work than the last one's takes its place; an aside stands below it."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}

    def move(self, what: str, done: int, total: int, note: str | None = None, *, is_aside: bool = False) -> None:
        """See `Bars.move`."""
        if what not in self._tasks and not is_aside:
            self.stop()
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=18),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}", style="faint"),
                TextColumn("{task.fields[note]}", style="faint", markup=False),
                console=self._console,
            )
            self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note="")
            self._started[what] = time.monotonic()
        shown = _time_left(self._started[what], done, total) if note is None else note
        self._progress.update(self._tasks[what], completed=done, total=total, note=shown)
        if done >= total:
            if is_aside and len(self._tasks) > 1:
                self._progress.remove_task(self._tasks.pop(what))
            elif len(self._tasks) == 1:
                self.stop()

    def stop(self) -> None:
        """See `Bars.stop`."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks, self._started = {}, {}


class PlainLines:
    """A line every few seconds, and one for the end; no control codes."""

    def __init__(self, console: Console) -> None:
        """Write on `console`."""
        self._console = console
        self._what = ""
        self._started = 0.0
        self._shown = 0.0

    def move(self, what: str, done: int, total: int, note: str | None = None, *, is_aside: bool = False) -> None:
        """See `Bars.move`."""
        now = time.monotonic()
        if is_aside:
            return
        if what != self._what:
            self._what, self._started, self._shown = what, now, now
        if done < total and now - self._shown < _PLAIN_SECONDS:
            return
        self._shown = now
        shown = _time_left(self._started, done, total) if note is None else note
        self._console.print(Text(f"{what} {done:,}/{total:,}{f' · {shown}' if shown else ''}"), soft_wrap=True)

    def stop(self) -> None:
        """See `Bars.stop`."""
        self._what = ""


def _time_left(started: float, done: int, total: int) -> str:
    """Say how long the rest will take."""
    if not 0 < done < total:
        return ""
    return f"{duration((time.monotonic() - started) / done * (total - done))} left"
