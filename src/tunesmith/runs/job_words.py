"""What jobs tell their users, word for word as OpenAI's service does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.record.job_events import NewEvent


def created(job_id: str) -> NewEvent:
    """A job was made."""
    return NewEvent(f"Created fine-tuning job: {job_id}", data={})


def validating(training_file: str, validation_file: str | None) -> NewEvent:
    """Its files are looked at."""
    also = f" and validation file: {validation_file}" if validation_file else ""
    return NewEvent(f"Validating training file: {training_file}{also}", data={})


def validated() -> NewEvent:
    """Its files are good."""
    return NewEvent("Files validated, moving job to queued state", data={})


def started() -> NewEvent:
    """Training begins."""
    return NewEvent("Fine-tuning job started")


def resumed(step: int) -> NewEvent:
    """Training goes on after it was cut off."""
    where = f"after step {step}" if step else "from the start"
    return NewEvent(f"Fine-tuning job was interrupted and goes on {where}", level="warn")


def step(metrics: Mapping[str, Any]) -> NewEvent:
    """A step was taken; `metrics` are its figures under the names of the API."""
    message = f"Step {metrics['step']}/{metrics['total_steps']}: training loss={metrics['train_loss']:.2f}"
    if "valid_loss" in metrics:
        message += f", validation loss={metrics['valid_loss']:.2f}"
    if "full_valid_loss" in metrics:
        message += f", full validation loss={metrics['full_valid_loss']:.2f}"
    return NewEvent(message, type="metrics", data=dict(metrics), step=int(metrics["step"]))


def checkpoint(step_number: int, model: str) -> NewEvent:
    """Weights are kept that can be asked."""
    return NewEvent(f"Checkpoint created at step {step_number} with Snapshot ID: {model}")


def new_model(model: str) -> NewEvent:
    """The result is there."""
    return NewEvent(f"New fine-tuned model created: {model}")


def completed() -> NewEvent:
    """All is done."""
    return NewEvent("The job has successfully completed", data={})


def failed(message: str) -> NewEvent:
    """It ended without a result."""
    return NewEvent(f"The job failed: {message}", level="error")


def cancelled() -> NewEvent:
    """The user ended it."""
    return NewEvent("The job has been cancelled")


def pausing() -> NewEvent:
    """The user wants it to stop for now."""
    return NewEvent("The job is being paused after the current step")


def paused() -> NewEvent:
    """It has stopped for now."""
    return NewEvent("The job is paused")


def unpaused() -> NewEvent:
    """The user wants it to go on."""
    return NewEvent("The job has been resumed")


def trying_again(seconds: float) -> NewEvent:
    """An attempt ended without a word; there will be another."""
    return NewEvent(f"An attempt ended unexpectedly; trying again in {seconds:.0f} s", level="warn")


def note(message: str, level: str) -> NewEvent:
    """Something that training found worth telling."""
    return NewEvent(message, level="error" if level == "error" else "warn" if level == "warning" else "info")
