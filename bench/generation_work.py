"""What the generation benchmark measures: prompts at once, under one system prompt, through adapters; the limits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from decoding_limits import measure_limits_apart
from generation_load import measure_load
from generation_sides import OTHER_PEERS, OURS, TRANSFORMERS, VLLM, GenerationSide, SideRun, run
from peers.waves import Wave
from prompts import Prompt, common_tokens, question_prompts, questions, shared_prompts, warm_up_prompts
from sides import Environments, SideFailure
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.models.load import load_tokenizer
from tunesmith.record.home import Home

BASE = "smollm2-135m"
AT_ONCE = (1, 8, 32, 64)
#: Batches of each size in one measurement, so that the small ones take long enough.
_BATCHES = {1: 3, 8: 2}
RANK, ADAPTERS = 16, 4
#: Requests at once wherever the number isn't what is measured.
USUAL = 32

#: Measured on all sides in turns, in the same processes.
TURN_PARTS = ("throughput", "shared")
PARTS = (*TURN_PARTS, "load", "adapters", "limits")


@dataclass
class GenerationBench:
    """Everything that a measurement needs.

    Attributes:
        folder: of the base.
        home: Tunesmith's.
        environments: the peers'.
        sides: who takes part.
        rounds: runs of each side, in turns.
        most_at_once: bound on the requests at once.
        new_tokens: of each answer.
    """

    folder: Path
    home: Home
    environments: Environments
    sides: tuple[GenerationSide, ...]
    rounds: int
    most_at_once: int
    new_tokens: int

    def __post_init__(self) -> None:
        self._renderer = ChatRenderer(load_tokenizer(self.folder))

    @property
    def usual(self) -> int:
        """Requests at once wherever the number isn't what is measured."""
        return min(USUAL, self.most_at_once)

    def in_turns(self, parts: Sequence[str]) -> dict[str, Any]:
        """Measure the parts of `TURN_PARTS` on all sides, in turns; return the results by part.

        The further peers run once, with 1 and 32 requests at once alone.
        """
        waves = [wave for part in parts for wave in self._waves_of(part)]
        found: dict[str, dict[str, list[SideRun]]] = {part: {} for part in parts}
        failures: dict[str, str] = {}
        turns = [side for _ in range(self.rounds) for side in (OURS, TRANSFORMERS, VLLM) if side in self.sides]
        if "throughput" in parts:
            turns += [side for side in OTHER_PEERS if side in self.sides]
        for side in turns:
            if side.name in failures:
                continue
            asked = waves if side not in OTHER_PEERS else [wave for wave in waves if wave.name in ("1", str(USUAL))]
            done = self._try(side, asked, failures)
            if done is not None:
                for part in parts:
                    found[part].setdefault(side.name, []).append(done)
        return {part: self._part(part, found[part], failures) for part in parts}

    def load(self) -> dict[str, Any]:
        """Measure both servers under requests that arrive at random."""
        return measure_load(
            [side for side in (OURS, VLLM) if side in self.sides],
            self.folder,
            self.environments,
            self.home,
            questions(),
            scale=self.most_at_once / AT_ONCE[-1],
            new_tokens=self.new_tokens,
        )

    def adapters(self) -> dict[str, Any]:
        """Measure one batch through four adapters, through one and through none, in turns."""
        kinds: dict[str, tuple[str | None, ...]] = {
            "none": (None,),
            "one": ("adapter-0",),
            "four": tuple(f"adapter-{number}" for number in range(ADAPTERS)),
        }
        runs = []
        for number in range(self.rounds):
            prompts = iter(question_prompts(self._renderer))
            waves = [self._warm_up(adapters) for adapters in kinds.values()]
            order = sorted(kinds, key=lambda name: (list(kinds).index(name) + number) % len(kinds))
            waves += [self._wave(name, prompts, self.usual, 1, kinds[name]) for name in order]
            runs.append(self._run(OURS, waves, {"rank": RANK}).waves)
        return {"runs": runs, "at_once": self.usual, "rank": RANK, "adapters": ADAPTERS}

    def limits(self) -> dict[str, Any]:
        """Measure decoding, and before and after it the memory's and the products' own speed."""
        sizes = sorted({1, self.usual, self.most_at_once})
        before = measure_limits_apart(self.folder, sizes)
        prompts = iter(question_prompts(self._renderer))
        waves = [self._warm_up(), *(self._wave(str(size), prompts, size, _BATCHES.get(size, 1)) for size in sizes)]
        # With guesses, a step gives one answer more than one token, and weights are read less than once for each.
        run_of_ours = self._run(OURS, waves, {"lookahead_rows": 0})
        after = measure_limits_apart(self.folder, sizes)
        return {"sizes": sizes, "limits": [before, after], "waves": run_of_ours.waves, "new_tokens": self.new_tokens}

    def _waves_of(self, part: str) -> list[Wave]:
        """Return the waves of one part; no prompt comes twice in a process, so no cache knows one already."""
        if part == "shared":
            shared = shared_prompts(self._renderer)
            cold, warm = shared[: self.usual], shared[self.usual : 2 * self.usual]
            return [Wave("cold", (tuple(cold),), 1), Wave("warm", (tuple(warm),), self.new_tokens)]
        prompts = iter(question_prompts(self._renderer))
        sizes = [size for size in AT_ONCE if size <= self.most_at_once]
        return [self._warm_up(), *(self._wave(str(size), prompts, size, _BATCHES.get(size, 1)) for size in sizes)]

    def _wave(
        self, name: str, prompts: Any, size: int, batches: int, adapters: tuple[str | None, ...] = (None,)
    ) -> Wave:
        """Return a wave of the next prompts."""
        taken = tuple(tuple(islice(prompts, size)) for _ in range(batches))
        return Wave(name, taken, self.new_tokens, adapters)

    def _warm_up(self, adapters: tuple[str | None, ...] = (None,)) -> Wave:
        prompts = tuple(warm_up_prompts(self._renderer)[: self.usual])
        return Wave("", (prompts[:1], prompts), 4, adapters)

    def _part(self, part: str, runs: dict[str, list[SideRun]], failures: dict[str, str]) -> dict[str, Any]:
        """Return the runs of one part as plain data, with what the prompts are."""
        waves = self._waves_of(part)
        named = {wave.name: [prompt for batch in wave.batches for prompt in batch] for wave in waves if wave.name}
        return {
            "new_tokens": self.new_tokens,
            "at_once": self.usual,
            "prompts": {name: _facts(prompts) for name, prompts in named.items()},
            "runs": {
                side: [{name: run.waves[name] for name in named if name in run.waves} for run in done]
                for side, done in runs.items()
            },
            "sides": {
                side: {
                    "startup_seconds": [run.startup_seconds for run in done],
                    "peak_memory_bytes": [run.peak_memory_bytes for run in done],
                    "versions": done[0].versions,
                }
                for side, done in runs.items()
            },
            "failures": failures,
        }

    def _try(self, side: GenerationSide, waves: Sequence[Wave], failures: dict[str, str]) -> SideRun | None:
        """Run a side; a peer's failure is noted, ours is raised."""
        try:
            return self._run(side, waves)
        except SideFailure as failure:
            if side is OURS:
                raise
            print(f"{side.name} {failure}", file=sys.stderr, flush=True)
            failures[side.name] = str(failure).splitlines()[0]
            return None

    def _run(self, side: GenerationSide, waves: Sequence[Wave], settings: dict[str, Any] | None = None) -> SideRun:
        print(f"  {side.name}", end=" ", file=sys.stderr, flush=True)
        done = run(side, self.folder, waves, self.environments, self.home.root, settings)
        speeds = (f"{name}: {wave['tokens'] / wave['seconds']:,.0f}" for name, wave in done.waves.items())
        print(f"tokens/s by wave: {', '.join(speeds)}", file=sys.stderr, flush=True)
        return done


def _facts(prompts: Sequence[Prompt]) -> dict[str, int]:
    """Return the prompts' number, tokens, and tokens that all of them begin with."""
    return {"count": len(prompts), "tokens": sum(map(len, prompts)), "common_tokens": common_tokens(prompts)}
