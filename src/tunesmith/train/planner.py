"""Chooses how steps are computed, so that the heaviest pass fits the memory, and says what all of training takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tunesmith.chat.renderer import Rendered
from tunesmith.errors import RunError
from tunesmith.learn.passes import Passes
from tunesmith.train.costs import Costs, Memory
from tunesmith.train.loads import Load, load_of, pass_loads
from tunesmith.train.packing import microbatches
from tunesmith.train.sft import Row

#: Steps whose passes are counted: the average stands for all, and the heaviest pass is looked for in the longest.
_SAMPLED_STEPS, _LONGEST_STEPS = 48, 8
#: A forecast may be too high by so much; only beyond that is a run refused without trying.
_DOUBT = 1.25


class Planner:
    """The loads of one training and what they cost.

    Args:
        costs: of this spec, base and device.
        train: rendered rows.
        validation: rendered rows whose loss is watched.
        schedule: the row numbers of every step.
        validate_every: steps between two validations.
    """

    def __init__(
        self,
        costs: Costs,
        train: Sequence[Row],
        validation: Sequence[Row],
        schedule: Sequence[Sequence[int]],
        validate_every: int,
    ) -> None:
        self.costs = costs
        self._steps = len(schedule)
        self._validations = len(schedule) // validate_every + 1
        self._validation = [sequence for row in validation for sequence in row]
        longest = [max((len(s.token_ids) for s in row), default=0) for row in train]
        tokens = [sum(len(s.token_ids) for s in row) for row in train]
        by_tokens = sorted(schedule, key=lambda step: -sum(tokens[row] for row in step))[:_LONGEST_STEPS]
        by_longest = sorted(schedule, key=lambda step: -max(longest[row] for row in step))[:_LONGEST_STEPS]
        stride = max(1, len(schedule) // _SAMPLED_STEPS)

        def sequences(step: Sequence[int]) -> list[Rendered]:
            return [sequence for row in step for sequence in train[row]]

        self._heavy = [sequences(step) for step in (*by_tokens, *by_longest)]
        self._sampled = [sequences(step) for step in schedule[::stride]]
        self._heaviest = lru_cache(maxsize=None)(self._find_heaviest)

    def heaviest_passes(self, passes: Passes, count: int) -> list[list[Rendered]]:
        """Return the `count` heaviest passes of the step with the heaviest one, the heaviest first."""
        parts = microbatches(self._heaviest(passes)[0], passes.tokens_per_pass)
        return sorted(parts, key=lambda part: -self.costs.memory(load_of(part), passes).of_pass)[:count]

    def memory(self, passes: Passes) -> Memory:
        """Return the expected peak of training."""
        return self.costs.memory(self._heaviest(passes)[1], passes)

    def operations(self, passes: Passes) -> float:
        """Return the floating-point operations of training and its validations, the optimiser's left out."""
        sampled = [
            self.costs.operations(load, passes)
            for step in self._sampled
            for load in pass_loads(step, passes.tokens_per_pass)
        ]
        validation = sum(
            self.costs.forward_operations(load) for load in pass_loads(self._validation, passes.tokens_per_pass)
        )
        return sum(sampled) * self._steps / len(self._sampled) + validation * self._validations

    def seconds(self, passes: Passes, rate: float) -> float:
        """Return the expected time of training at a rate in operations a second, optimiser and validations included."""
        return self.operations(passes) / rate + self._steps * self.costs.optimiser_seconds()

    def fitting(self, first: Passes, limit_bytes: int, *, factor: float = 1.0) -> Passes:
        """Return the fastest passes, from `first` on downwards, that are expected to fit.

        Args:
            first: what is tried first.
            limit_bytes: memory of the whole process.
            factor: how much more a pass takes than expected, as far as that has been measured.

        Raises:
            RunError: nothing can fit (`out_of_memory`).
        """
        passes = first
        while (needed := self._needed(passes, factor)) > limit_bytes:
            lower = passes.lower(self.costs.size.layers, self.costs.device.type)
            if lower is None:
                if needed > _DOUBT * limit_bytes or factor > 1:
                    raise does_not_fit(needed, limit_bytes, passes)
                break
            passes = lower
        return passes

    def _needed(self, passes: Passes, factor: float) -> int:
        memory = self.memory(passes)
        return memory.total - memory.of_pass + int(factor * memory.of_pass)

    def _find_heaviest(self, passes: Passes) -> tuple[list[Rendered], Load]:
        return max(
            ((step, load) for step in self._heavy for load in pass_loads(step, passes.tokens_per_pass)),
            key=lambda found: self.costs.memory(found[1], passes).of_pass,
        )


def does_not_fit(needed_bytes: int, limit_bytes: int, passes: Passes) -> RunError:
    """Return the error for a run that needs more memory than there is."""
    return RunError(
        f"This run needs about {needed_bytes / 1e9:.1f} GB of memory, even with {passes}; it may use "
        f"{limit_bytes / 1e9:.1f} GB.",
        fix="Lower limits.max_tokens, take a smaller base or a lower adapter.rank, use adapter qlora, or raise "
        "limits.memory_bytes if more is there.",
        param="limits.memory_bytes",
        code="out_of_memory",
    )
