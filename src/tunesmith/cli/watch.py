"""Watching work in the terminal: bars that move where they can, plain lines where they can't."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.text import Text

from tunesmith.cli.bars import bars_for
from tunesmith.cli.quantities import duration
from tunesmith.cli.screen import Screen
from tunesmith.cli.show_data import show_counts, show_findings, show_recognition, show_tokens
from tunesmith.cli.show_result import show_plan
from tunesmith.record.events import Event
from tunesmith.record.observer import AnswersReport, Observer, StepReport

#: Work around the training's steps.
_ASIDES = {"validating", "measuring general instructions", "looking for a learning rate"}
_HEADINGS = {
    "data": "The data",
    "row": "One row as the model sees it",
    "plan": "The plan",
    "untuned": "Before: the untuned base on the test rows",
    "training": "Training",
    "tuned": "After: the tuned model on the same rows",
}


class Watcher(Observer):
    """Shows what a run does. Use it as a context: leaving it ends a bar that is still moving.

    Args:
        screen: where to.
        on_section: told which part of a run begins (`data`, `row`, `plan`, `untuned`, `training`, `tuned`), once each.
    """

    def __init__(self, screen: Screen, on_section: Callable[[str], None] | None = None) -> None:
        self._screen = screen
        self._bars = bars_for(screen)
        self._on_section = on_section or (lambda name: screen.heading(_HEADINGS[name]))
        self._begun: set[str] = set()
        self._validation_loss: float | None = None
        self._run: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def event(self, event: Event) -> None:
        """Show an event: the data and the plan as tables, losses in the bar, warnings as they are."""
        data = event.data
        match event.type:
            case "run_started":
                self._run = str(data["run"])
            case "data_prepared":
                self.section("data")
                show_recognition(self._screen, data["report"])
                show_counts(self._screen, data["report"])
                show_findings(self._screen, data["report"])
                self.section("row")
                show_tokens(self._screen, data["tokens"])
            case "plan":
                self.section("plan")
                show_plan(self._screen, dict(data), run=self._run)
            case "validation":
                self._validation_loss = data["validation_loss"]
                if not self._screen.is_live:
                    self._screen.progress.print(Text(event.message))
            case "evaluation":
                self._bars.stop()
                words = _score(data)
                self._screen.say(Text.assemble(f"{data['name']}: ", (words[0], "name"), words[1]))
            case "run_resumed" | "early_stop" | "learning_rate_found" | "forgetting" | "memorised" | "hard_rows":
                self._bars.stop()
                mark = ("", "") if event.level == "info" else ("! ", "warn")
                self._screen.say(Text.assemble(mark, event.message))
            case _ if event.level != "info":
                self._bars.stop()
                self._screen.say(Text.assemble(("! ", "warn"), event.message))

    def step(self, report: StepReport) -> None:
        """Move the training's bar."""
        self.section("training")
        parts = [f"loss {report.loss:.3f}"]
        if self._validation_loss is not None:
            parts.append(f"validation {self._validation_loss:.3f}")
        parts.append(f"{report.tokens_per_second:,.0f} tokens/s")
        is_last = report.step >= report.steps
        parts.append("done" if is_last else f"{duration(report.remaining_seconds)} left")
        self._bars.move("training", report.step, report.steps, " · ".join(parts))

    def answers(self, report: AnswersReport) -> None:
        """Move the bar of a file's answers."""
        is_last = report.done >= report.total
        left = "done" if is_last else f"{duration(report.remaining_seconds)} left"
        note = f"{report.tokens_per_second:,.0f} tokens/s · {left}"
        self._bars.move("answering", report.done, report.total, note)

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar of some other work."""
        if what.startswith("asking "):
            self.section("tuned" if "training" in self._begun else "untuned")
        # What interrupts the training for a moment is no section of its own.
        is_aside = what in _ASIDES
        if is_aside:
            self.section("training")
        self._bars.move(what, done, total, is_aside=is_aside)

    def section(self, name: str) -> None:
        """Begin a part of the run, if it hasn't begun yet."""
        if name not in self._begun:
            self._begun.add(name)
            self._bars.stop()
            self._on_section(name)


def _score(figures: Mapping[str, Any]) -> tuple[str, str]:
    """Return an arm's score and, apart from it, its interval."""
    low, value, high = (figures[key] for key in ("low", "score", "high"))
    if figures["measure"] == "perplexity":
        return f"perplexity {value:.1f}", f" ({low:.1f} to {high:.1f}; lower is better)"
    return f"{figures['measure']} {100 * value:.0f}", f" of 100 ({100 * low:.0f} to {100 * high:.0f})"
