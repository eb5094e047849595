"""LLaMA-Factory's side: its `run_exp`, supervised fine-tuning with LoRA, on rows that are tokens already."""

from __future__ import annotations

from pathlib import Path

from clock import Job, StepClock
from datasets import Dataset, DatasetDict
from llamafactory.train.tuner import run_exp
from trainer_watch import TrainerWatch


def main() -> None:
    """Train and write the result."""
    job = Job.from_arguments()
    clock = StepClock(job)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in job.token_rows()]
    tokens = Path(job.work) / "tokens"
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(tokens))
    watch = TrainerWatch(clock)
    settings = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job.model,
        "tokenized_path": str(tokens),
        "template": "smollm2",
        "cutoff_len": job.max_tokens,
        "finetuning_type": "lora",
        "lora_rank": job.rank,
        "lora_alpha": 2 * job.rank,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "per_device_train_batch_size": job.batch_size,
        "num_train_epochs": 1.0,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "bf16": True,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": str(Path(job.work) / "output"),
        "seed": job.seed,
        "disable_tqdm": True,
    }
    run_exp(settings, callbacks=[watch])
    clock.set_losses(watch.losses)
    clock.write(("llamafactory", "peft", "transformers", "torch"))


if __name__ == "__main__":
    main()
