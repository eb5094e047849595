"""The command line starts at once: nothing heavy is loaded before a command needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "pyarrow", "numpy", "scipy", "tokenizers", "sqlalchemy", "alembic")


def loaded_after(code: str) -> set[str]:
    """Return the heavy modules that are loaded in a fresh process after `code`."""
    script = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def tunesmith(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tunesmith", *arguments], capture_output=True, text=True, check=False)


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import tunesmith") == set()


def test_help_loads_nothing_heavy():
    assert loaded_after("from tunesmith.cli.main import run; assert run(['--help']) == 0") == set()


@pytest.mark.parametrize(
    "command", ["demo", "check", "plan", "tune", "chat", "generate", "serve", "models", "runs", "keys"]
)
def test_each_command_explains_itself_and_loads_nothing_heavy(command: str):
    assert loaded_after(f"from tunesmith.cli.main import run; assert run(['{command}', '--help']) == 0") == set()


def test_a_wrong_setting_is_told_without_loading_anything_heavy():
    code = "from tunesmith.cli.main import run; assert run(['tune', 'x.jsonl', '--rank', '0']) == 2"
    assert not loaded_after(code) & set(HEAVY)


def test_help_names_the_commands():
    done = tunesmith("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "check", "plan", "tune", "chat", "generate", "serve"))


def test_without_a_command_the_help_is_shown():
    assert "Usage" in tunesmith().stdout


def test_version():
    from tunesmith import __version__

    assert tunesmith("--version").stdout.strip() == f"tunesmith {__version__}"


def test_help_states_limits_and_defaults_of_the_spec():
    text = " ".join(tunesmith("tune", "--help").stdout.replace("│", " ").split())
    assert "from 1 to 1024; default 16" in text  # adapter.rank
    assert "--epochs auto|NUMBER" in text
