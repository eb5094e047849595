"""What commands answer with under `--json`; `docs/reference/` shows their schemas."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.specs.base import Spec


class DataCounts(Spec):
    """How many rows there were and where they went."""

    rows: int = Field(description="Rows read from the file.")
    train: int = Field(description="Rows learnt from.")
    validation: int = Field(description="Rows that measure the loss during training.")
    test: int = Field(description="Rows locked away for the final test.")
    dropped: int = Field(description="Rows left out: broken, doubled, too long.")


class TrainFigures(Spec):
    """What training did."""

    rows: int = Field(description="Rows learnt from, once for each pass.")
    tokens: int = Field(description="The rows' tokens, counted once for each pass, shared or not.")
    seconds: float = Field(description="Time in the training loop, validation included.")
    tokens_per_second: float = Field(description="`tokens` by the time in training steps.")
    peak_memory_bytes: int = Field(description="The process's highest resident memory (on a GPU: the GPU's).")
    steps: int = Field(description="Optimiser steps.")
    loss: float = Field(description="Mean loss over the last tenth of the steps, in nats a learnt token.")
    validation_loss: float | None = Field(description="The lowest validation loss, in nats a learnt token.")
    best_step: int = Field(description="The step whose weights were kept.")


class Score(Spec):
    """A score from 0 to 1, or a perplexity (lower is better), with its confidence interval."""

    score: float = Field(description="The score.")
    low: float = Field(description="Lower end of the interval.")
    high: float = Field(description="Upper end of the interval.")


class EvaluationFigures(Spec):
    """Base against tuned on the locked test rows."""

    measure: str = Field(description="What was measured (`exact match`, `accuracy`, `chrF`, `perplexity`).")
    rows: int = Field(description="Test rows; of documents, passages of at most 256 tokens.")
    base: Score | None = Field(description="The untuned base; null when it wasn't measured.")
    tuned: Score = Field(description="The tuned model.")


VerdictKind = Literal["ship", "dont_ship", "not_enough_evidence", "tuning_not_needed"]


class TuneFigures(Spec):
    """What `tunesmith tune --json` ends with."""

    model: str = Field(description="The registered model's `ft:` name.")
    run: str = Field(description="The run's folder.")
    data: DataCounts = Field(description="The rows.")
    train: TrainFigures = Field(description="The training.")
    evaluation: EvaluationFigures | None = Field(description="The proof; null without test rows.")
    verdict: VerdictKind = Field(description="What the proof says.")
    sentence: str = Field(description="The verdict in words.")


class GenerateFigures(Spec):
    """What `tunesmith generate --json` ends with."""

    requests: int = Field(description="Prompts answered now; those answered before a resume aren't counted.")
    failed: int = Field(description="Those of them that couldn't be finished; their lines say why (`error`).")
    output_tokens: int = Field(description="Tokens generated.")
    seconds: float = Field(description="Time to generate them, the model's loading not counted.")
    tokens_per_second: float = Field(description="`output_tokens` by `seconds`.")
