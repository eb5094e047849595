"""What all sides of the generation benchmark do alike: read a job of prompts, time their tokens, write a result."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Wave:
    """Prompts that are handed over at once, batch after batch; all batches of a wave make one measurement.

    Attributes:
        name: of the measurement; waves without one warm up.
        batches: of prompts, as token ids.
        new_tokens: of each answer, whatever the model says.
        adapters: that the prompts of a batch go through in turn; None is the base alone.
    """

    name: str
    batches: tuple[tuple[tuple[int, ...], ...], ...]
    new_tokens: int
    adapters: tuple[str | None, ...] = (None,)


@dataclass(frozen=True)
class GenerateJob:
    """What one side is asked to answer, the same for all sides.

    Attributes:
        model: folder of the base (Hugging Face's form); it is computed in bf16.
        waves: what to answer, in order.
        result: the file that the side writes.
        settings: further settings that only this side knows.
    """

    model: str
    waves: tuple[Wave, ...]
    result: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_arguments(cls) -> GenerateJob:
        """Read the job whose file the command line names."""
        values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        waves = tuple(
            Wave(
                wave["name"],
                tuple(tuple(map(tuple, batch)) for batch in wave["batches"]),
                wave["new_tokens"],
                tuple(wave["adapters"]),
            )
            for wave in values["waves"]
        )
        return cls(values["model"], waves, values["result"], values["settings"])

    @property
    def most_at_once(self) -> int:
        """Prompts of the largest batch."""
        return max(len(batch) for wave in self.waves for batch in wave.batches)


class BatchClock:
    """Times one batch, from when its prompts are handed over."""

    def __init__(self, requests: int) -> None:
        self._first: list[float | None] = [None] * requests
        self._waiting = requests
        self._tokens = 0
        self._began: tuple[float, int] | None = None
        self._started = time.perf_counter()

    def arrived(self, request: int, tokens: int = 1) -> None:
        """Note that so many new tokens of a request are known."""
        now = time.perf_counter() - self._started
        self._tokens += tokens
        if self._first[request] is None:
            self._first[request] = now
            self._waiting -= 1
        if not self._waiting and self._began is None:
            self._began = now, self._tokens

    def figures(self, tokens: int) -> dict[str, Any]:
        """End the batch; return its figures.

        Args:
            tokens: that were generated, as the side's own results say.

        Raises:
            RuntimeError: other tokens arrived, or a request got none.
        """
        seconds = time.perf_counter() - self._started
        if self._began is None or self._tokens != tokens:
            raise RuntimeError(f"{self._tokens} tokens arrived, and {tokens} were generated.")
        return {
            "seconds": seconds,
            "tokens": tokens,
            "first_token_seconds": self._first,
            "began_seconds": self._began[0],
            "began_tokens": self._began[1],
        }


class Results:
    """All measurements of one side."""

    def __init__(self, job: GenerateJob) -> None:
        self._job = job
        self._ready_at = time.time()
        self._waves: dict[str, dict[str, Any]] = {}

    def add(self, wave: Wave, batches: list[dict[str, Any]]) -> None:
        """Keep the sum of a wave's batches.

        Raises:
            RuntimeError: an answer is shorter or longer than was asked for.
        """
        answers = sum(map(len, wave.batches))
        tokens = sum(batch["tokens"] for batch in batches)
        if tokens != answers * wave.new_tokens:
            raise RuntimeError(f"{tokens} tokens were generated, and {answers * wave.new_tokens} were asked for.")
        if wave.name:
            self._waves[wave.name] = {
                "prompt_tokens": sum(len(prompt) for batch in wave.batches for prompt in batch),
                "first_token_seconds": [one for batch in batches for one in batch["first_token_seconds"]],
                **{
                    key: sum(batch[key] for batch in batches)
                    for key in ("seconds", "tokens", "began_seconds", "began_tokens")
                },
            }

    def write(self, packages: tuple[str, ...], peak_memory_bytes: int) -> None:
        """Write the result, with the versions of some packages and the highest resident memory of this process."""
        result = {
            "waves": self._waves,
            "ready_at": self._ready_at,
            "peak_memory_bytes": peak_memory_bytes,
            "versions": {name: importlib.metadata.version(name) for name in packages},
        }
        Path(self._job.result).write_text(json.dumps(result), encoding="utf-8")
