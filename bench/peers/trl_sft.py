"""TRL's side: `SFTTrainer` with a LoRA by PEFT, on the CPU.

Settings of the job: `gradient_checkpointing` (TRL's own default is true; without it a step is faster and takes more
memory), `autocast` (TRL's own default for bf16; without it everything but the norms' insides is computed in the base's
number format) and `dtype`, that format (bf16 where nothing is said).
"""

from __future__ import annotations

from clock import Job, StepClock
from datasets import Dataset
from peft import LoraConfig
from trainer_watch import TrainerWatch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Train and write the result."""
    job = Job.from_arguments()
    clock = StepClock(job)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=job.settings.get("dtype", "bfloat16"))
    config = SFTConfig(
        output_dir=job.work,
        per_device_train_batch_size=job.batch_size,
        num_train_epochs=1,
        learning_rate=job.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0,
        max_grad_norm=1.0,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        bf16=job.settings.get("autocast", True),
        gradient_checkpointing=job.settings["gradient_checkpointing"],
        max_length=job.max_tokens,
        # The rows' file already has the order that is wanted: by length, or as Tunesmith's steps.
        train_sampling_strategy="sequential",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=job.seed,
        disable_tqdm=True,
    )
    lora = LoraConfig(
        r=job.rank,
        lora_alpha=2 * job.rank,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules="all-linear",
    )
    watch = TrainerWatch(clock)
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(job.token_rows()),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[watch],
    )
    trainer.train()
    clock.set_losses(watch.losses)
    clock.write(("trl", "peft", "transformers", "torch"))


if __name__ == "__main__":
    main()
