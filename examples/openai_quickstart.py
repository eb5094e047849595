"""OpenAI's quickstart for fine-tuning: upload, train, follow, ask the result and its checkpoints.

There is nothing of Tunesmith in it. Start a server in one terminal and run this in another (some minutes on a CPU):

    tunesmith serve --alias gpt-4o-mini-2024-07-18=smollm2-135m
    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python examples/openai_quickstart.py

The rows are messages that people wrote to restaurants and the booking details in them (RESTAURANTS-8K, CC-BY-4.0; see
src/tunesmith/demo/README.md).
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

BASE = "gpt-4o-mini-2024-07-18"
ROWS = Path(__file__).parents[1] / "src" / "tunesmith" / "demo" / "bookings.jsonl"
TRAIN, VALIDATION, QUESTIONS = 160, 20, 20
FINAL = ("succeeded", "failed", "cancelled")


def main() -> None:
    """Run the quickstart."""
    client = OpenAI()
    lines = ROWS.read_text(encoding="utf-8").splitlines()
    train, rest = lines[:TRAIN], lines[TRAIN:]
    validation, questions = rest[:VALIDATION], [json.loads(line) for line in rest[VALIDATION:][:QUESTIONS]]

    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, "train.jsonl", train),
        validation_file=upload(client, "validation.jsonl", validation),
        suffix="bookings",
        seed=42,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 8}}},
    )
    print(f"{job.id} is {job.status}")
    job = follow(client, job)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        raise SystemExit(f"The job has {job.status}: {job.error}")
    print(f"\n{job.trained_tokens:,} tokens trained; the model is {job.fine_tuned_model}")

    models = [BASE]
    for checkpoint in reversed(list(client.fine_tuning.jobs.checkpoints.list(job.id))):
        print(f"checkpoint at step {checkpoint.step_number}: validation loss {checkpoint.metrics.full_valid_loss:.3f}")
        models.append(checkpoint.fine_tuned_model_checkpoint)
    print(f"\nRight answers to {len(questions)} messages that no model has seen:")
    for model in models:
        print(f"{right_answers(client, model, questions):4d}  {model}")

    for model in (BASE, job.fine_tuned_model):
        prompt = questions[0]["messages"][:-1]
        answer = client.chat.completions.create(model=model, messages=prompt, temperature=0, max_tokens=100)
        print(f"\n{answer.model} answers:\n{answer.choices[0].message.content}")

    results = client.files.content(job.result_files[0]).text.splitlines()
    print(f"\nstep_metrics.csv has {len(results) - 1} steps: {results[0]}")


def upload(client: OpenAI, name: str, lines: list[str]) -> str:
    """Upload rows for fine-tuning, and return the file's id."""
    content = "\n".join(lines).encode()
    return client.files.create(file=(name, content), purpose="fine-tune").id


def follow(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """Print what happens to a job, and return it when it is over."""
    seen: set[str] = set()
    while True:
        is_over = job.status in FINAL
        events = client.fine_tuning.jobs.list_events(job.id, limit=100)
        for event in reversed([one for one in events if one.id not in seen]):  # the newest come first
            seen.add(event.id)
            print(f"  {event.message}")
        if is_over:
            return job
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)


def right_answers(client: OpenAI, model: str, questions: list[dict]) -> int:
    """Ask a model, some questions at once, and count the answers that are the expected booking, as JSON."""

    def is_right(question: dict) -> bool:
        *prompt, expected = question["messages"]
        answer = client.chat.completions.create(model=model, messages=prompt, temperature=0, max_tokens=100)
        try:
            return json.loads(answer.choices[0].message.content or "") == json.loads(expected["content"])
        except ValueError:
            return False

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(is_right, questions))


if __name__ == "__main__":
    main()
