"""From a base's files to a model in memory, ready to be trained or asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunesmith.errors import ModelError
from tunesmith.models.quantised import Nf4, quantise_linears
from tunesmith.models.quiet import quiet_libraries
from tunesmith.models.resolve import BaseSource
from tunesmith.models.weights import damaged_weights

DtypeName = Literal["auto", "float32", "bfloat16"]

#: Tokens that end a turn in the chat formats in use; one counts if the model's own template writes it.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>")

#: What is assumed where neither config nor tokenizer says how much a model can take.
_UNKNOWN_CONTEXT_TOKENS = 4096


@dataclass(slots=True)
class LoadedModel:
    """A base in memory. Its parameters ask for no gradients and it is in evaluation mode.

    Attributes:
        model: the `transformers` decoder.
        tokenizer: its tokenizer.
        source: where it came from.
        dtype: of its weights and activations.
        device: where it lies.
        context_tokens: the longest row that it can take.
        end_of_turn_ids: tokens after which an answer is complete, in ascending order.
        family: the architecture as transformers calls it (`llama`, `qwen3`).
        quantisation: how its linear layers are kept in 4 bits, with the number format that they came from; None: plain.
    """

    model: Any
    tokenizer: Any
    source: BaseSource
    dtype: torch.dtype
    device: torch.device
    context_tokens: int
    end_of_turn_ids: tuple[int, ...]
    family: str
    quantisation: Nf4 | None = None


def load_base(
    source: BaseSource,
    dtype: DtypeName = "auto",
    device: torch.device | str | None = None,
    *,
    attention: str | None = None,
    quantisation: Nf4 | None = None,
) -> LoadedModel:
    """Load a resolved base. No network, no code of the model's own, no pickles, no chatter.

    Args:
        source: what `resolve_base` found.
        dtype: number format; `auto` as in `choose_dtype`.
        device: where to; the first GPU if there is one, else the CPU.
        attention: name of a registered attention function of transformers; its own choice by default.
        quantisation: keep the linear layers in 4 bits. `dtype="auto"` then means the format that they came from, if
            `quantisation` names it.

    Raises:
        ModelError: the architecture isn't a decoder that transformers knows, weights are missing or damaged, or
            `bitsandbytes` isn't installed and the layers are to be kept in 4 bits.
    """
    place = torch.device(device) if device is not None else default_device()
    number_format = file_format = choose_dtype(dtype, place)
    if quantisation is not None:
        file_format = choose_dtype(quantisation.dtype, place) if quantisation.dtype != "auto" else number_format
        number_format = file_format if dtype == "auto" else number_format
        quantisation = replace(quantisation, dtype="float32" if file_format == torch.float32 else "bfloat16")
    with quiet_libraries():
        tokenizer = load_tokenizer(source.folder)
        model = _load_weights(source.folder, file_format, attention)
    model.requires_grad_(False)
    model.eval()
    _without_dropout(model)
    if quantisation is not None:
        quantise_linears(model, double_quantisation=quantisation.double_quantisation, device=place)
        model.to(number_format)
    model.to(place)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        source=source,
        dtype=number_format,
        device=place,
        context_tokens=_context_tokens(model.config, tokenizer),
        end_of_turn_ids=_end_of_turn_ids(model, tokenizer),
        family=str(model.config.model_type),
        quantisation=quantisation,
    )


def describe_base(source: BaseSource, dtype: DtypeName = "auto") -> LoadedModel:
    """Return what `load_base` does, without the weights: for those whose weights another process holds.

    The model lies on the device `meta`: its layers have names and shapes, and can't compute.

    Args:
        source: what `resolve_base` found.
        dtype: number format that it is used in; see `choose_dtype`.

    Raises:
        ModelError: the architecture isn't a decoder that transformers knows.
    """
    number_format = choose_dtype(dtype, default_device())
    with quiet_libraries():
        tokenizer = load_tokenizer(source.folder)
        try:
            config = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=number_format, trust_remote_code=False)
            if (source.folder / "generation_config.json").exists():
                model.generation_config = GenerationConfig.from_pretrained(source.folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"This model's architecture isn't known: {_first_line(error)}",
                where=str(source.folder),
                fix="Check that it is a text-generating decoder that the installed transformers release supports.",
                code="unsupported_model",
            ) from error
    model.requires_grad_(False)
    model.eval()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        source=source,
        dtype=number_format,
        device=torch.device("meta"),
        context_tokens=_context_tokens(model.config, tokenizer),
        end_of_turn_ids=_end_of_turn_ids(model, tokenizer),
        family=str(model.config.model_type),
    )


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model folder.

    Raises:
        ModelError: it can't be read.
    """
    try:
        with quiet_libraries():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # The tokenizers library raises plain Exception for a damaged tokenizer.json.
    except Exception as error:
        raise ModelError(
            f"The tokenizer can't be read: {_first_line(error)}",
            where=str(folder),
            fix="Get tokenizer.json and tokenizer_config.json of this model again.",
            code="damaged_tokenizer",
        ) from error


def default_device() -> torch.device:
    """Return the first GPU if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def choose_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """Return the number format; `auto` is bfloat16 where the hardware multiplies it quickly, else float32."""
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU has matrix instructions for bfloat16; without them it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _load_weights(folder: Path, dtype: torch.dtype, attention: str | None) -> Any:
    """Return the model of a folder.

    Raises:
        ModelError: see `load_base`.
    """
    asked = {} if attention is None else {"attn_implementation": attention}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **asked,
        )
    except SafetensorError as error:
        raise damaged_weights(folder, error) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"This model can't be loaded: {_first_line(error)}",
            where=str(folder),
            fix="Check that it is a text-generating decoder that the installed transformers release supports.",
            code="unsupported_model",
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        # transformers would fill them with random numbers and only log it.
        raise ModelError(
            f"{len(missing)} of the model's weights aren't in its files, such as {missing[0]}.",
            where=str(folder),
            fix="Download the model again; for a model of another kind, choose its text-generating release.",
            code="missing_weights",
        )
    if getattr(model, "is_quantized", False):
        raise ModelError(
            "These weights are quantised, so they can't be trained as they are.",
            where=str(folder),
            fix="Use the model's unquantised release (float32, float16 or bfloat16).",
            code="quantised_base",
        )
    return model


def _without_dropout(model: Any) -> None:
    """Switch off the dropout that a base was made with (GPT-2: a tenth); adapters bring their own.

    Rows that share a beginning would share its random holes too, and a loss would depend on what else is in its batch.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _context_tokens(config: Any, tokenizer: Any) -> int:
    """Return the longest row that the model can take."""
    limits = [
        getattr(config.get_text_config(), "max_position_embeddings", None),
        # transformers writes 10^30 for "not known".
        tokenizer.model_max_length if tokenizer.model_max_length < 1e9 else None,
    ]
    return min((int(limit) for limit in limits if limit), default=_UNKNOWN_CONTEXT_TOKENS)


def _end_of_turn_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return every token that ends an answer: what the configs say, and what the chat template writes after a turn."""
    found: set[int] = set()
    for config in (model.config.get_text_config(), model.generation_config, tokenizer):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else () if ids is None else (ids,))
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    added = tokenizer.get_added_vocab()
    found.update(added[token] for token in _TURN_ENDS if token in template and token in added)
    size = model.get_input_embeddings().num_embeddings
    return tuple(sorted(token for token in found if 0 <= token < size))


def _first_line(error: Exception) -> str:
    """Return what an error says, without the pages that some libraries add."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
