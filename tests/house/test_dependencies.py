"""pyproject.toml lists what is imported, constraints.txt pins what is installed, and importing stays light."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tunesmith"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: transformers reads no GGUF file without it.
USED_BY_OTHERS = {"accelerate"}
#: Used by other means than an import: as commands, as pytest's plugins, by mypy.
NOT_IMPORTED = {"pytest-timeout", "pytest-xdist", "ruff", "mypy", "import-linter", "schemathesis", "types-pyyaml"}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _names(requirements: list[str]) -> set[str]:
    return {_plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


#: What extras for users bring.
OPTIONAL = {
    name for extra, needed in PROJECT["optional-dependencies"].items() if extra != "dev" for name in _names(needed)
}


def _imported(*folders: Path) -> set[str]:
    """Return the packages that the files of some folders import, as pip calls them."""
    owners = importlib.metadata.packages_distributions()
    files = [file for folder in folders for file in folder.rglob("*.py")]
    # Tests and scripts import their neighbours by file or folder name; the package imports itself by its whole name.
    near = [file for file in files if not file.is_relative_to(SOURCE)]
    own = {"tunesmith", *(name for file in near for name in (file.stem, file.parent.name))}
    # The benchmark's peers run in environments of their own.
    files = [file for file in files if file.parent.name != "peers"]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for top in {module.partition(".")[0] for module in modules} - own - sys.stdlib_module_names:
                found.add(_plain(owners[top][0]))
    return found


def test_the_package_imports_what_it_lists_and_lists_what_it_imports():
    listed = _names(PROJECT["dependencies"]) | OPTIONAL
    imported = _imported(SOURCE)
    assert imported - listed == set(), "imported, but not a dependency in pyproject.toml"
    assert listed - imported == USED_BY_OTHERS, "a dependency in pyproject.toml that nothing imports"


def test_an_optional_package_is_wrapped_by_one_file_and_tested():
    assert OPTIONAL - _names(PROJECT["optional-dependencies"]["dev"]) == set()
    for package in OPTIONAL:
        importing = [file.name for file in SOURCE.rglob("*.py") if re.search(rf"import {package}\b", file.read_text())]
        assert len(importing) == 1, package


def test_tests_and_scripts_import_nothing_that_a_fresh_installation_lacks():
    listed = _names([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
    imported = _imported(*(ROOT / folder for folder in ("tests", "bench", "scripts")))
    assert imported - listed == set()
    dev = _names(PROJECT["optional-dependencies"]["dev"])
    assert dev - imported - NOT_IMPORTED - OPTIONAL == set(), (
        "in the dev extra, but neither imported nor named as a tool"
    )


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(
        (_plain(name), version) for name, _, version in (line.partition("==") for line in lines if line[:1] != "#")
    )


def test_constraints_pin_everything_that_is_needed_directly_or_through_others():
    pins = _pins()
    waiting = [*_names([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        assert name in pins, f"constraints.txt doesn't pin {name}"
        for requirement in importlib.metadata.requires(name) or ():
            needed, _, condition = requirement.partition(";")
            # Extras and other systems' needs aren't installed here; torch's CUDA packages are pinned by torch.
            if not condition:
                waiting.append(_plain(re.match(r"[\w.-]+", needed)[0]))


def test_pins_are_whole_and_public():
    pins = _pins()
    assert pins["torch"] == "2.13.0"
    for name, version in pins.items():
        assert re.fullmatch(r"\d[\w.]*", version), f"{name}=={version}"


@pytest.mark.parametrize(
    "statement", ["import tunesmith", "import tunesmith.cli.main", "from tunesmith import TuneSpec"]
)
def test_importing_loads_nothing_heavy(statement: str):
    heavy = ("torch", "transformers", "pyarrow", "numpy", "scipy", "matplotlib", "sqlalchemy", "fsspec")
    code = f"{statement}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
