"""An adapter's configuration and names in the form of the library `peft`: what is written, and what is understood."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.models.adapters.targets import is_named, last_part, linears_of
from tunesmith.specs.tune import LoraSpec

#: PEFT wraps a model twice before its modules' names begin.
PREFIX = "base_model.model."

#: Settings of PEFT's LoRA that change what it computes, and that nothing here computes.
_FOREIGN = (
    "lora_bias", "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
    "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "ensure_weight_tying",
)  # fmt: skip

#: Beginnings that change the base's weights, unless PEFT was told to convert the adapter when it saved it.
_MUTATING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def tensor_names(layer: str) -> dict[str, str]:
    """Return PEFT's names of an adapted layer's tensors, by ours."""
    return {
        "lora_a": f"{PREFIX}{layer}.lora_A.weight",
        "lora_b": f"{PREFIX}{layer}.lora_B.weight",
        "magnitude": f"{PREFIX}{layer}.lora_magnitude_vector",
    }


def write_config(
    base: str, spec: LoraSpec, layers: Mapping[str, LoraLinear], whole: Iterable[str], model: PreTrainedModel
) -> dict[str, Any]:
    """Return `adapter_config.json` as PEFT reads it.

    What began as a part of the weights (PiSSA) is written as a plain adapter of twice the rank, with the same scale.

    Args:
        base: the base's name.
        spec: what was asked for.
        layers: the adapted layers by name; some may have a rank or alpha of their own.
        whole: the names of the modules that are trained whole.
        model: the model that they are of.
    """
    widened = 2 if spec.initialisation == "pissa" else 1
    names = [name for name, _ in model.named_modules()]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank * widened,
        "lora_alpha": spec.alpha * (math.sqrt(widened) if spec.rank_stabilised else widened),
        "rank_pattern": {re.escape(name): y.spec.rank for name, y in layers.items() if y.spec.rank != spec.rank},
        "alpha_pattern": {re.escape(name): y.spec.alpha for name, y in layers.items() if y.spec.alpha != spec.alpha},
        "lora_dropout": spec.dropout,
        "target_modules": _shortest(layers, names, is_named),
        "modules_to_save": _shortest(whole, names, str.endswith) or None,
        "use_rslora": spec.rank_stabilised,
        "use_dora": spec.dora,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(layer.linear, Conv1D) for layer in layers.values()),
        "inference_mode": True,
    }


def read_config(config: Mapping[str, Any], model: PreTrainedModel) -> tuple[LoraSpec, dict[str, LoraSpec]]:
    """Return the settings in a PEFT configuration: of the adapter, and of each layer of `model` that it adapts.

    Raises:
        ValueError: it asks for what isn't computed here; ignoring that would give wrong answers silently.
        KeyError: a setting is missing.
        TypeError: a setting is of another type.
    """
    _refuse_foreign(config)
    whole = _whole_names(config, model)
    adapted = _target_rule(config)
    layers = [name for name in linears_of(model) if adapted(name) and name not in whole]
    spec = LoraSpec(
        rank=config["r"],
        alpha=config["lora_alpha"],
        dropout=config.get("lora_dropout", 0.0),
        target_modules=tuple(layers),
        modules_to_save=whole,
        rank_stabilised=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
    )
    forms = {}
    for name in layers:
        rank = _by_pattern(config.get("rank_pattern") or {}, name, spec.rank)
        alpha = _by_pattern(config.get("alpha_pattern") or {}, name, spec.alpha)
        is_own = (rank, alpha) != (spec.rank, spec.alpha)
        forms[name] = LoraSpec(**{**spec.model_dump(), "rank": rank, "alpha": alpha}) if is_own else spec
    return spec, forms


def _refuse_foreign(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ValueError(f"its kind is {config.get('peft_type')!r}, not LORA")
    foreign = [name for name in _FOREIGN if config.get(name)]
    if config.get("bias", "none") != "none":
        foreign.append("bias")
    if foreign:
        raise ValueError(f"it uses {', '.join(foreign)}, which Tunesmith doesn't support")
    beginning = config.get("init_lora_weights")
    if isinstance(beginning, str) and beginning.lower().startswith(_MUTATING):
        raise ValueError(
            f"it began as a part of the base's weights ({beginning}); "
            "save it with path_initial_model_for_weight_conversion, which makes a plain adapter of it"
        )


def _target_rule(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Return PEFT's rule that says whether a layer of this name is adapted."""
    targets = config["target_modules"]
    if targets == "all-linear":
        targets = [""]
    elif isinstance(targets, str):
        raise ValueError("its target_modules is a pattern; Tunesmith reads a list of names")
    excluded = config.get("exclude_modules") or []
    if isinstance(excluded, str):
        raise ValueError("its exclude_modules is a pattern; Tunesmith reads a list of names")
    numbers = config.get("layers_to_transform")
    numbers = [numbers] if isinstance(numbers, int) else numbers or []
    patterns = config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns

    def in_layers(name: str) -> bool:
        found = re.match(r".*?\.[^.]*\.(\d+)\.", name)
        for pattern in patterns:
            found = re.match(rf"(?:^|.*?\.){re.escape(pattern)}\.(\d+)\.", name)
            if found:
                break
        return found is not None and int(found[1]) in numbers

    def rule(name: str) -> bool:
        if any(is_named(name, wanted) for wanted in excluded):
            return False
        if name in targets:
            return True
        return any(not wanted or is_named(name, wanted) for wanted in targets) and (not numbers or in_layers(name))

    return rule


def _whole_names(config: Mapping[str, Any], model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the modules that the file holds whole: all whose names end so, as PEFT takes them.

    Raises:
        ValueError: there is no such module.
    """
    names = [name for name, _ in model.named_modules()]
    found: set[str] = set()
    for wanted in config.get("modules_to_save") or ():
        ending = {name for name in names if name.endswith(wanted)}
        if not ending:
            raise ValueError(f"it holds {wanted!r}, which this base doesn't have")
        found |= ending
    return tuple(sorted(found))


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return what a layer is given: of the first pattern that its name ends with."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise ValueError(f"the pattern {pattern!r} can't be read: {error}") from error
    return default


def _shortest(chosen: Iterable[str], names: Iterable[str], ends: Callable[[str, str], bool]) -> list[str]:
    """Return the last parts of the chosen names, or whole names where PEFT's rule would find others too."""
    chosen = set(chosen)
    short = sorted({last_part(name) for name in chosen})
    found = {name for name in names if any(ends(name, part) for part in short)}
    return short if found == chosen else sorted(chosen)
