"""The longest step, computed once for real before training: what the plan expected is replaced by what is measured.

Nothing of the run changes by it: gradients are thrown away, weights and optimiser untouched, random numbers put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.chat.renderer import Rendered
from tunesmith.learn.passes import Passes
from tunesmith.train.loads import load_of, pass_loads
from tunesmith.train.memory import PeakMemory
from tunesmith.train.planner import Planner, does_not_fit
from tunesmith.train.stepping import Stepper

#: So many of the longest step's passes are computed: one shows the peak, the second that gradients add up in place.
_PASSES = 2


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was measured: passes that fit, the peak of training with them, and the time of all of training.

    `predicted_memory_bytes` is what was expected of these passes; `attempts` how many ways were tried beforehand.
    """

    passes: Passes
    memory_bytes: int
    predicted_memory_bytes: int
    seconds: float
    attempts: int

    @property
    def sentence(self) -> str:
        """What it came to, for people."""
        return (
            f"Training takes {self.memory_bytes / 1e9:.1f} GB (expected: "
            f"{self.predicted_memory_bytes / 1e9:.1f} GB), computed with {self.passes}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def rehearse(stepper: Stepper, planner: Planner, limit_bytes: int, peak: PeakMemory) -> Rehearsal:
    """Find the fastest passes that fit, by trying them; leave the stepper using them.

    Args:
        stepper: the model is in training mode.
        planner: knows the steps and what they should cost.
        limit_bytes: memory of the whole process.
        peak: measures it.

    Raises:
        RunError: nothing fits (`out_of_memory`).
    """
    passes = planner.fitting(stepper.passes, limit_bytes)
    attempts = 0
    while True:
        attempts += 1
        stepper.use(passes)
        expected = planner.memory(passes)
        parts = planner.heaviest_passes(passes, _PASSES)
        peak.restart()
        seconds = stepper.try_out(parts)
        # What the optimiser takes at its first step isn't there yet.
        needed = peak.bytes() + planner.costs.optimiser_bytes
        if seconds is not None and needed <= limit_bytes:
            operations = sum(planner.costs.operations(load_of(part), passes) for part in parts)
            total = planner.seconds(passes, operations / seconds)
            return Rehearsal(passes, needed, expected.total, total, attempts)
        lower = stepper.lower()
        if lower is None:
            raise does_not_fit(needed, limit_bytes, passes)
        more = needed - expected.total + expected.of_pass
        passes = planner.fitting(lower, limit_bytes, factor=max(1.0, more / max(1, expected.of_pass)))


def by_step(
    planner: Planner, passes: Passes, sequences: Sequence[Rendered], seconds: float, peak: PeakMemory
) -> Rehearsal:
    """Return what a real step showed, where memory is so plentiful that nothing needs to be tried out before.

    Args:
        planner: knows the steps and what they should cost.
        passes: how the step was computed.
        sequences: the step's sequences.
        seconds: its time.
        peak: has measured the process up to now.
    """
    loads = pass_loads(sequences, passes.tokens_per_pass)
    operations = sum(planner.costs.operations(load, passes) for load in loads)
    total = planner.seconds(passes, operations / seconds)
    return Rehearsal(passes, peak.highest(), planner.memory(passes).total, total, attempts=0)
