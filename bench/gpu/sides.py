"""The two sides of the GPU benchmark: Tunesmith's training engine, and transformers + PEFT with SDPA."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gpu.work import AdapterName, RowsName, Scale, make_model, make_steps, padded_passes
from peers.clock import peak_memory_bytes
from tunesmith.chat.renderer import Rendered
from tunesmith.learn.optimiser import Optimiser
from tunesmith.learn.passes import Passes
from tunesmith.learn.step import TreeModel
from tunesmith.models.adapters.attach import add_adapter
from tunesmith.specs.tune import LoraSpec, OptimisationSpec, QloraSpec
from tunesmith.train.stepping import Stepper

RANK = 16
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Figures:
    """What one side measured: each step's seconds and mean loss, and the highest memory during the steps."""

    step_seconds: list[float]
    losses: list[float]
    peak_memory_bytes: int


#: Takes one optimiser step, given its number and rows; returns the mean loss of its learnt tokens.
_Step = Callable[[int, Sequence[Rendered]], float]


def tunesmith(scale: Scale, adapter: AdapterName, rows: RowsName, device: torch.device) -> Figures:
    """Train with token trees, LoRA and loss as `tunesmith tune` does."""
    model = make_model(scale, device)
    spec = QloraSpec(rank=RANK) if adapter == "qlora" else LoraSpec(rank=RANK)
    torch.manual_seed(0)
    added = add_adapter(model, spec)
    groups = added.parameter_groups()
    settings = OptimisationSpec(learning_rate=LEARNING_RATE, schedule="constant", warmup_fraction=0.0)
    optimiser = Optimiser(groups, settings, scale.steps)
    parameters = [parameter for group in groups for parameter in group.parameters]
    # A step at once, if the memory holds it; the stepper makes passes smaller where it doesn't.
    stepper = Stepper(TreeModel.of(model), parameters, Passes(scale.step_tokens), _say_replanned)
    model.train()

    def step(number: int, sequences: Sequence[Rendered]) -> float:
        loss = stepper.gradients(sequences, f"step {number + 1}").loss
        optimiser.step(number)
        return loss

    return _timed(step, make_steps(scale, rows), device)


def transformers_peft(scale: Scale, adapter: AdapterName, rows: RowsName, device: torch.device) -> Figures:
    """Train with transformers, PEFT and scaled_dot_product_attention, padding as little as it can."""
    model = make_model(scale, device, "sdpa")
    if adapter == "qlora":
        _quantise(model, device)
    torch.manual_seed(0)
    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    model.train()

    def step(_: int, sequences: Sequence[Rendered]) -> float:
        learnt = sum(row.learnt_tokens for row in sequences)
        total = 0.0
        for part in padded_passes(sequences, scale.pass_tokens):
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(**_batch(part, device), num_items_in_batch=learnt).loss
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return total

    return _timed(step, make_steps(scale, rows), device)


#: By the word for the command line; the page's names are in `gpu.page`.
SIDES: dict[str, Callable[[Scale, AdapterName, RowsName, torch.device], Figures]] = {
    "tunesmith": tunesmith,
    "peft": transformers_peft,
}


def _timed(step: _Step, steps: Sequence[Sequence[Rendered]], device: torch.device) -> Figures:
    """Take all steps, each timed to its very end."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds, losses = [], []
    for number, rows in enumerate(steps):
        started = time.perf_counter()
        losses.append(step(number, rows))
        if is_cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return Figures(seconds, losses, torch.cuda.max_memory_allocated(device) if is_cuda else peak_memory_bytes())


def _batch(rows: Sequence[Rendered], device: torch.device) -> dict[str, torch.Tensor]:
    """Pad rows on the right, as transformers' collators do; only where that is needed there is a mask."""
    width = max(len(row.token_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        length = len(row.token_ids)
        ids[number, :length] = torch.tensor(row.token_ids)
        labels[number, :length] = torch.tensor(
            [token if learnt else -100 for token, learnt in zip(row.token_ids, row.learnt, strict=True)]
        )
        mask[number, :length] = 1
    batch = {"input_ids": ids.to(device), "labels": labels.to(device)}
    return batch if bool(mask.all()) else {**batch, "attention_mask": mask.to(device)}


def _quantise(model: Any, device: torch.device) -> None:
    """Put bitsandbytes' own 4-bit layers in the place of all linear layers but the last, as transformers does."""
    output = model.get_output_embeddings()
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    ]
    for name, module in linears:
        small = bitsandbytes.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        weight = bitsandbytes.nn.Params4bit(
            module.weight.data.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4"
        )
        small.weight = weight.to(device)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, small)


def _say_replanned(before: Passes, after: Passes, why: str) -> None:
    print(f"memory ran out with {before} ({why}); now {after}", file=sys.stderr, flush=True)
