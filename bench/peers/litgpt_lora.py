"""LitGPT's side: its own `litgpt.finetune.lora.setup`, on a data module that gives the job's tokens.

Its learning rate rises for one step and falls along a cosine, and gradients aren't clipped: it has no other choice.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import torch
from clock import Job, StepClock
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.data.base import get_sft_collate_fn
from litgpt.finetune import lora
from litgpt.prompts import Default
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

#: How LitGPT calls the architecture of the job's base.
_MODEL = "SmolLM2-135M-Instruct"


class _Rows(DataModule):  # type: ignore[misc]
    """The job's rows, in their order; the first training batch starts the clock."""

    def __init__(self, job: Job, clock: StepClock) -> None:
        super().__init__()
        self.prompt_style = Default()
        self._batch_size = job.batch_size
        self._clock = clock
        self._collate = get_sft_collate_fn()
        self._rows = [
            {
                "input_ids": torch.tensor(row["input_ids"]),
                "labels": torch.tensor(row["labels"]),
                "token_counts": {"raw": len(row["input_ids"]), "raw_plus_prompt_template": len(row["input_ids"])},
            }
            for row in job.token_rows()
        ]

    def connect(self, **_: Any) -> None:
        """Everything is known already."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the rows in steps."""
        return DataLoader(self._rows, batch_size=self._batch_size, collate_fn=self._first)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        """Return one row, for the sanity check that can't be switched off."""
        return DataLoader(self._rows[:1], batch_size=1, collate_fn=self._collate)  # type: ignore[arg-type]

    def _first(self, rows: list[Any]) -> Any:
        if not self._clock.has_begun:
            self._clock.begin()
        return self._collate(rows)


def main() -> None:
    """Convert the base, train, write the result."""
    job = Job.from_arguments()
    clock = StepClock(job)
    checkpoint = Path(job.work) / "checkpoints" / "base" / _MODEL
    shutil.copytree(job.model, checkpoint)
    convert_hf_checkpoint(checkpoint, model_name=_MODEL)
    steps = -(-len(job.token_rows()) // job.batch_size)
    register_optimizer_step_post_hook(lambda *_: clock.step_done())
    # Folding the result in reads LoRA's rank from the command line, and there is none; the result isn't wanted.
    lora.merge_lora = lambda **_: None
    lora.setup(
        checkpoint_dir=checkpoint,
        out_dir=Path(job.work) / "output",
        precision="bf16-true",
        devices=1,
        lora_r=job.rank,
        lora_alpha=2 * job.rank,
        lora_dropout=0.0,
        lora_query=True,
        lora_key=True,
        lora_value=True,
        lora_projection=True,
        lora_mlp=True,
        data=_Rows(job, clock),
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=job.batch_size,
            micro_batch_size=job.batch_size,
            lr_warmup_steps=1,
            epochs=1,
            max_steps=steps,
            max_seq_length=job.max_tokens,
        ),
        eval=EvalArgs(interval=1_000_000, max_new_tokens=1, max_iters=1, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": job.learning_rate, "weight_decay": 0.0}},
        seed=job.seed,
    )
    clock.set_losses(_losses(Path(job.work) / "output"))
    clock.write(("litgpt", "lightning", "torch"))


def _losses(folder: Path) -> list[float]:
    """Return each step's loss from the log."""
    (log,) = folder.rglob("metrics.csv")
    with log.open(encoding="utf-8", newline="") as lines:
        return [float(row["loss"]) for row in csv.DictReader(lines) if row.get("loss")]


if __name__ == "__main__":
    main()
