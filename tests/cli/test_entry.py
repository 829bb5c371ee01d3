"""`torch2engine.cli.entry`: the program where click is missing, and what it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.conftest import run_command
from tests.support.paths import REPOSITORY


def test_program_without_click_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line that mends it, and the exit code of a missing library."""
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "torch2engine.cli.app", raising=False)
    ended = run_command("inspect", "net.t2e")
    assert ended.code == 4
    assert ended.err == (
        "error: the command line: got no click; expected an installed one; `pip install 'torch2engine[cli]'`\n"
    )


def test_help_loads_neither_torch_nor_onnx(run_python: Callable[[str], Any]) -> None:
    """Help answers at once."""
    code = (
        "import json, sys\nfrom torch2engine.cli.entry import main\nmain(['check', '--help'])\n"
        "print(json.dumps([name for name in ('torch', 'onnx', 'numpy', 'rich') if name in sys.modules]))"
    )
    assert run_python(code) == []


def test_package_runs_as_a_program() -> None:
    """`python -m torch2engine` is the same command line."""
    command = [sys.executable, "-m", "torch2engine", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.partition(",")[0]) == (0, "torch2engine")


def test_shell_completion_is_there_as_the_page_says() -> None:
    """The variable of docs/command-line.md prints a script, and the words that the script asks for are commands."""
    page = (REPOSITORY / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert "_TORCH2ENGINE_COMPLETE=bash_source torch2engine" in page
    command = [sys.executable, "-m", "torch2engine"]
    wanted = {"_TORCH2ENGINE_COMPLETE": "bash_source"}
    script = subprocess.run(command, env=os.environ | wanted, capture_output=True, text=True, check=True).stdout
    assert "_TORCH2ENGINE_COMPLETE=bash_complete" in script
    words = {"_TORCH2ENGINE_COMPLETE": "bash_complete", "COMP_WORDS": "torch2engine diag", "COMP_CWORD": "1"}
    found = subprocess.run(command, env=os.environ | words, capture_output=True, text=True, check=True).stdout
    assert found == "plain,diagnose\n"
