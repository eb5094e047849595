"""The house's measures: short files, short functions, few parameters, no drawers, settings that explain themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tunesmith.specs.base import Spec
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.results import GenerateFigures, TuneFigures
from tunesmith.specs.serving import ServeSpec
from tunesmith.specs.tune import TuneSpec

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("src", "tests", "bench", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
SOURCES = [path for path in FILES if not path.is_relative_to(ROOT / "tests")]
MOST_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_PARAMETERS = 8
#: transformers calls it, and decides what it takes.
NOT_OURS = {"src/tunesmith/models/attention.py: _attend"}
DRAWERS = {"utils", "util", "helpers", "common", "misc"}


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_are_short():
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_functions_are_short():
    found = {}
    for path in FILES:
        for function in _functions(path):
            lines = function.end_lineno - function.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                found[f"{_name(path)}: {function.name}"] = lines
    assert found == {}


def test_functions_take_few_parameters():
    found = {}
    for path in SOURCES:
        # A command's parameters are its options; typer reads them from the signature.
        if path.parent.name == "cli":
            continue
        for function in _functions(path):
            names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls", "ctx")])
            if count > MOST_PARAMETERS:
                found[f"{_name(path)}: {function.name}"] = count
    assert found.keys() - NOT_OURS == set()


def test_nothing_is_a_drawer():
    assert [_name(path) for path in FILES if DRAWERS & {path.stem, *path.relative_to(ROOT).parts[:-1]}] == []


def _unexplained(spec: type[Spec]) -> Iterator[str]:
    schema = spec.model_json_schema()
    for group in (schema, *schema.get("$defs", {}).values()):
        for name, field in group["properties"].items():
            # pydantic leaves out a description that says what the group's own docstring says.
            if set(field) != {"$ref"} and not field.get("description", "").endswith("."):
                yield f"{group['title']}.{name}: {field.get('description')!r}"


def test_every_setting_and_every_figure_explains_itself():
    specs: list[type[Spec]] = [TuneSpec, SamplingSpec, ServeSpec, TuneFigures, GenerateFigures]
    assert [name for spec in specs for name in _unexplained(spec)] == []
