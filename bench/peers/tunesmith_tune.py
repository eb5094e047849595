"""Tunesmith's side: `tunesmith.api.tune`, which is what `tunesmith tune` calls, without validation and proof."""

from __future__ import annotations

import itertools

from clock import Job, StepClock

from tunesmith import api
from tunesmith.record.observer import Observer, StepReport
from tunesmith.specs.tune import TuneSpec


class _Watch(Observer):
    """Notes when steps end."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self.tokens = [0]

    def step(self, report: StepReport) -> None:
        """A step is done; the first one says by its speed when it began."""
        if not self._clock.has_begun:
            self._clock.begin(report.tokens / report.tokens_per_second)
        self._clock.step_done(report.loss)
        self.tokens.append(report.tokens)


def main() -> None:
    """Tune and write the result."""
    job = Job.from_arguments()
    clock = StepClock(job)
    spec = TuneSpec.parse(
        {
            "base": job.model,
            "name": "bench",
            "data": {"path": job.rows, "format": "chat", "validation_fraction": 0.0, "test_fraction": 0.0},
            "adapter": {"kind": "lora", "rank": job.rank, "alpha": 2 * job.rank},
            "optimisation": {
                "learning_rate": job.learning_rate,
                "batch_size": job.batch_size,
                "epochs": 1,
                "schedule": "linear",
                "warmup_fraction": 0.0,
                # Only the end writes a checkpoint: peers are told to write none.
                "validate_every_steps": 1_000_000,
            },
            "evaluation": {"compare_base": False},
            "limits": {"max_tokens": job.max_tokens, **job.settings},
            "seed": job.seed,
        }
    )
    watch = _Watch(clock)
    result = api.tune(spec, observer=watch)
    step_tokens = [after - before for before, after in itertools.pairwise(watch.tokens)]
    clock.write(("tunesmith", "torch", "transformers"), run=result.figures.run, step_tokens=step_tokens)


if __name__ == "__main__":
    main()
