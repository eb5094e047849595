"""What a person, or a pipe, says to `tunesmith chat`."""

from __future__ import annotations

import io
import sys

from tunesmith.cli.chat import _lines
from tunesmith.cli.screen import Screen


def test_bytes_that_are_no_text_end_no_talk(monkeypatch):
    piped = io.TextIOWrapper(io.BytesIO("Grüße\n".encode("latin-1") + b"Hello\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", piped)
    assert list(_lines(Screen())) == ["Gr\ufffd\ufffde", "Hello"]
