"""Every example in the docs is what it says: rows that Tunesmith reads, specs that it takes, JSON and YAML."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml
from markdown_pages import PAGES, Block, blocks, blocks_of

from tunesmith.data.convert import Converter
from tunesmith.data.documents import read_documents
from tunesmith.data.examples import Conversation
from tunesmith.data.readers import read_rows
from tunesmith.data.recognise import recognise
from tunesmith.data.rows import Row
from tunesmith.specs.data import SourceSpec
from tunesmith.specs.tune import TuneSpec


@pytest.mark.parametrize("block", [*blocks_of("jsonl"), *blocks_of("csv")], ids=str)
def test_rows_are_recognised_as_their_form_and_converted(block: Block, tmp_path: Path):
    language, *words = block.info
    assert words, f"{block}: say the form behind the fence: ```{language} chat"
    form, *columns = words
    file = tmp_path / f"rows.{language}"
    file.write_text(block.text, encoding="utf-8")
    rows = list(read_rows(file))
    assert all(isinstance(row, Row) for row in rows), rows
    mapping = dict(pair.split("=") for pair in columns)
    recognition = recognise(rows, file=str(file), mapping=mapping)
    assert recognition.format == form
    if form == "documents":
        assert len(read_documents(SourceSpec(path=str(file))).documents) == len(rows)
        return
    converter = Converter(recognition)
    for row in rows:
        assert isinstance(result := converter.convert(row), Conversation), result
    assert not converter.ignored


@pytest.mark.parametrize("block", blocks_of("yaml"), ids=str)
def test_yaml_is_yaml_and_specs_are_specs(block: Block):
    values = yaml.safe_load(block.text)
    if "spec" in block.info:
        TuneSpec.parse(values, where=str(block))


@pytest.mark.parametrize("block", blocks_of("json"), ids=str)
def test_json_is_json(block: Block):
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks_of("python"), ids=str)
def test_python_compiles(block: Block):
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", blocks_of("console"), ids=str)
def test_commands_can_be_split_as_a_shell_would(block: Block):
    commands = [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
    assert commands, f"{block}: a console block shows at least one `$ command`"
    for command in commands:
        assert shlex.split(command, comments=True)


def test_every_block_names_its_language():
    bare = [str(block) for page in PAGES for block in blocks(page) if not block.info]
    assert bare == []
