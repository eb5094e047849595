"""The proof: arms asked on the locked test rows, answers scored."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation
from tunesmith.evaluate.arms import Arm
from tunesmith.evaluate.comparison import ArmResult, score_arm
from tunesmith.evaluate.measure import Measure, choose_measure
from tunesmith.generate.choice import decoder_for
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.request import Request, ScoreRequest
from tunesmith.models.load import LoadedModel
from tunesmith.record.observer import Observer
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.tune import EvaluationSpec

#: An answer may be this much longer than the longest reference before it is cut.
_ROOM = 1.25
_SPARE_TOKENS = 8
_MAX_OUTPUT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Voice:
    """A decoder that nobody else uses meanwhile, and which of its adapters answers."""

    decoder: Decoder
    adapter: str | None = None


class Proof:
    """Measures arms on one model's answers to the same test rows.

    Args:
        loaded: the model that answers; its weights may change between two measurements.
        renderer: the model's chat renderer.
        rows: the locked test rows.
        train: the training rows; their answers decide the measure.
        spec: how to measure.
        observer: sees progress.
        voice: answers, for a model that is open already; else each measurement has an engine of its own.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: ChatRenderer,
        rows: Sequence[Conversation],
        train: Sequence[Conversation],
        spec: EvaluationSpec,
        observer: Observer,
        voice: Voice | None = None,
    ) -> None:
        self._loaded = loaded
        self._voice = voice
        self._renderer = renderer
        #: The test rows with their references as the model would write them.
        self.rows = [_as_written(row, renderer) for row in rows]
        learnt = [_as_written(row, renderer) for row in train]
        self._spec = spec
        self._observer = observer
        self.measure: Measure = choose_measure([row.reference for row in learnt], spec.measure)
        self._max_output_tokens = self._output_limit([*self.rows, *learnt])

    def measure_arm(self, arm: Arm) -> ArmResult:
        """Ask the model every test row by way of `arm`, greedily, and score the answers."""
        voice = self._voice or Voice(decoder_for(self._loaded, self._renderer, max_batch=self._spec.batch_size))
        sampling = SamplingSpec(max_completion_tokens=self._max_output_tokens)
        prompts = [self._renderer.for_generation(asked) for asked in arm.requests(self.rows)]
        requests = [Request(prompt_ids, sampling, voice.adapter) for prompt_ids in prompts]
        done = 0

        def count(*_: object) -> None:
            nonlocal done
            done += 1
            self._observer.progress(f"asking {arm.name}", done, len(requests))

        completions = voice.decoder.generate(requests, count)
        losses = self._reference_losses(voice) if self.measure.kind == "text" else None
        return score_arm(
            arm.name,
            arm.description,
            self.rows,
            completions,
            self.measure,
            self._spec.confidence,
            losses,
        )

    def _reference_losses(self, voice: Voice) -> list[float]:
        """Return the mean loss (nats a token) on each row's last answer under the row's own prompt."""
        sequences = [self._renderer.for_training(row)[-1] for row in self.rows]
        starts = [sequence.learnt.index(True) for sequence in sequences]
        scores = voice.decoder.score(
            [
                ScoreRequest(sequence.token_ids[:start], sequence.token_ids[start:], voice.adapter)
                for sequence, start in zip(sequences, starts, strict=True)
            ]
        )
        return [
            -sum(itertools.compress(score.logprobs, sequence.learnt[start:])) / sequence.learnt_tokens
            for score, sequence, start in zip(scores, sequences, starts, strict=True)
        ]

    def _output_limit(self, rows: Sequence[Conversation]) -> int:
        if self._spec.max_output_tokens != "auto":
            return self._spec.max_output_tokens
        tokenizer = self._renderer.tokenizer
        # The longest few in characters hold the longest in tokens, near enough.
        longest = sorted({row.reference for row in rows}, key=len)[-20:]
        tokens = max(len(tokenizer.encode(text, add_special_tokens=False)) for text in longest)
        return min(_MAX_OUTPUT_TOKENS, math.ceil(tokens * _ROOM) + _SPARE_TOKENS)


def _as_written(row: Conversation, renderer: ChatRenderer) -> Conversation:
    """Return the row with its last answer's tool calls as the text that the model writes for them."""
    last = max(i for i, message in enumerate(row.messages) if message.role == "assistant")
    answer = row.messages[last]
    if not answer.tool_calls:
        return row
    turn = Conversation((*row.messages[:last], replace(answer, weight=1)), row.tools, row.place)
    start = len(renderer.for_generation(row.prompt))
    text = renderer.decode(renderer.for_training(turn)[-1].token_ids[start:]).strip()
    return replace(row, messages=(*row.messages[:last], replace(answer, content=text, tool_calls=())))
