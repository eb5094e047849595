"""Tunesmith: from a file of examples to a proven, served specialist model, on your own machine.

    import tunesmith as ts

    result = ts.tune("bookings.jsonl", base="smollm2-135m")
    print(result.verdict.sentence)
    print(result.model.generate("A table for two tomorrow at 8").text)

Importing this package loads nothing heavy; PyTorch comes with the first call.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.api import (
        TuneResult,
        check,
        compare_arms,
        generate_file,
        list_models,
        list_runs,
        open_model,
        plan,
        resume,
        tune,
    )
    from tunesmith.errors import TunesmithError
    from tunesmith.model import Model
    from tunesmith.specs.data import DataSpec
    from tunesmith.specs.generation import SamplingSpec
    from tunesmith.specs.tune import EvaluationSpec, TuneSpec

__version__ = "0.1.0"

_HOMES = {
    "tunesmith.api": (
        "TuneResult", "check", "compare_arms", "generate_file", "list_models", "list_runs", "open_model", "plan",
        "resume", "tune",
    ),
    "tunesmith.errors": ("TunesmithError",),
    "tunesmith.model": ("Model",),
    "tunesmith.specs.data": ("DataSpec",),
    "tunesmith.specs.generation": ("SamplingSpec",),
    "tunesmith.specs.tune": ("EvaluationSpec", "TuneSpec"),
}  # fmt: skip

__all__ = [
    "DataSpec",
    "EvaluationSpec",
    "Model",
    "SamplingSpec",
    "TuneResult",
    "TuneSpec",
    "TunesmithError",
    "check",
    "compare_arms",
    "generate_file",
    "list_models",
    "list_runs",
    "open_model",
    "plan",
    "resume",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562): the command line must start without PyTorch."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
