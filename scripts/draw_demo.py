"""Draw docs/images/demo.svg from what a real `tunesmith demo` printed in a terminal.

    python scripts/draw_demo.py                        run the demo, then draw (`make picture`)
    python scripts/draw_demo.py --recording FILE       draw from what an earlier run printed; made if it isn't there

The picture leaves some steps out, each with a line that says so; what it shows is as it was printed.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "demo.svg"
WIDTH = 100
#: The steps of the demo that the picture shows, by number.
SHOWN = (2, 3, 7)
#: How many test rows it shows side by side.
ROWS_SHOWN = 2

#: Readable on dark and light pages alike; faint words keep enough contrast (WCAG AA).
_THEME = TerminalTheme(
    background=(13, 17, 23),
    foreground=(230, 237, 243),
    normal=[
        *[(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)],
        *[(88, 166, 255), (188, 140, 255), (57, 197, 207), (177, 186, 196)],
    ],
    bright=[
        *[(139, 148, 158), (255, 161, 152), (86, 211, 100), (227, 179, 65)],
        *[(121, 192, 255), (210, 168, 255), (86, 212, 221), (255, 255, 255)],
    ],
)
_LEFT_OUT = ["[...]", ""]
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ROW = re.compile(r"^ +user  ")
_HEADING = re.compile(r"^(?P<number>\d)  \S")


def record(target: Path) -> None:
    """Run the demo with a terminal as its standard output, and keep what it printed, colours included.

    Raises:
        SystemExit: the demo failed.
    """
    ours, theirs = pty.openpty()
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "TUNESMITH_HOME": home,
            "HF_HUB_OFFLINE": "1",
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "COLUMNS": str(WIDTH),
        }
        command = [str(Path(sys.executable).with_name("tunesmith")), "demo"]
        # Progress goes to standard error, which stays with whoever waits for the picture.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, env=environment)
        os.close(theirs)
        printed = b"".join(iter(lambda: _read(ours), b""))
        os.close(ours)
        if process.wait() != 0:
            raise SystemExit(f"`{' '.join(command)}` ended with exit code {process.returncode}.")
    # The home was a temporary folder; whoever looks at the picture has another.
    target.write_bytes(printed.replace(home.encode(), b"~/.tunesmith"))


def _read(terminal: int) -> bytes:
    """Return what comes next, or nothing once the other side has closed (Linux tells that by an error)."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def chosen_lines(printed: str, shown: Sequence[int] = SHOWN) -> list[str]:
    """Return the lines of the chosen steps, with a line of dots where steps are left out."""
    lines: list[str] = []
    is_shown = False
    for line in printed.replace("\r\n", "\n").split("\n"):
        heading = _HEADING.match(_ESCAPE.sub("", line))
        if heading is not None:
            was_shown, is_shown = is_shown, int(heading["number"]) in shown
            if lines and is_shown and not was_shown:
                lines += _LEFT_OUT
        if is_shown:
            lines.append(line)
    return lines


def with_few_rows(lines: Sequence[str], most: int = ROWS_SHOWN) -> list[str]:
    """Return the lines without the test rows side by side beyond the first ones; the verdict's box ends them."""
    kept: list[str] = []
    rows = 0
    for line in lines:
        plain = _ESCAPE.sub("", line)
        rows += _ROW.match(plain) is not None
        if plain.startswith("\u256d"):
            kept += _LEFT_OUT if rows > most else []
            rows = 0
        if rows <= most:
            kept.append(line)
    return kept


def draw(printed: str, picture: Path) -> None:
    """Write the picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor")
    for line in with_few_rows(chosen_lines(printed)):
        console.print(Text.from_ansi(line), soft_wrap=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    svg = console.export_svg(title="make demo", theme=_THEME, unique_id="tunesmith-demo")
    picture.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


def main() -> None:
    """Record if need be, then draw."""
    parser = argparse.ArgumentParser(description="Draw docs/images/demo.svg from a real run of the demo.")
    parser.add_argument("--recording", type=Path, help="what a run printed; made if it isn't there")
    recording = parser.parse_args().recording
    with tempfile.TemporaryDirectory() as folder:
        source = recording or Path(folder) / "demo.ansi"
        if not source.exists():
            record(source)
        draw(source.read_text(encoding="utf-8"), PICTURE)
    print(f"Drawn: {PICTURE}")


if __name__ == "__main__":
    main()
