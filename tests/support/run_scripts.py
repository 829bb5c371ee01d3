"""Scripts and modules, each run in a fork of one process that has imported PyTorch and exported once.

Enters: commands as Python takes them, such as ["examples/int8.py"] or ["-m", "benchmarks.models", "--out", folder].
Leaves: what each prints, and its exit status. Separate because the start of a Python process with PyTorch and the first
export in it take longer than most scripts.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.support.paths import REPOSITORY

__all__ = ["Ended", "run_scripts"]

# No script takes a tenth of it. One that waits for ever ends with what each of its threads waits for.
HANGS_AFTER_S = 600


@dataclass(frozen=True)
class Ended:
    """A script that has ended."""

    code: int
    out: str
    err: str


def run_scripts(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> tuple[Ended, ...]:
    """Run commands one after another in the repository's folder.

    Args:
        commands: a file or "-m" and a module, then the arguments.
        environment: variables to set; a value of the caller's own environment is replaced.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.run_scripts", folder, json.dumps(list(map(list, commands)))],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        codes = done.stdout.split()
        return tuple(
            Ended(
                int(code),
                Path(folder, f"{number}.out").read_text(encoding="utf-8"),
                Path(folder, f"{number}.err").read_text(encoding="utf-8"),
            )
            for number, code in enumerate(codes)
        )


def _run_each(folder: Path, commands: Sequence[Sequence[str]]) -> None:
    """Print the exit status of each command."""
    _warm_up()
    for number, command in enumerate(commands):
        child = os.fork()
        if child == 0:
            _redirect(1, folder / f"{number}.out")
            _redirect(2, folder / f"{number}.err")
            faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
            _end_with(_exit_status(command))
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _warm_up() -> None:
    """Import what the scripts import, and export once."""
    import sklearn.datasets  # noqa: F401
    import torch

    import torch2engine as t2e

    t2e.export(torch.nn.Linear(2, 2), torch.ones(2, 2))


def _redirect(descriptor: int, path: Path) -> None:
    """Let the process write to a new file what it writes to the descriptor."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.dup2(file, descriptor)
    os.close(file)


def _exit_status(command: Sequence[str]) -> int:
    """Run a command, and show an error that comes through as Python does."""
    try:
        _run(command)
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end_with(status: int) -> NoReturn:
    """End as a process does, but take no module apart: after a fork, that takes as long as many a script."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(command: Sequence[str]) -> None:
    """Run a command as Python does that gets it."""
    if command[0] == "-m":
        sys.argv = list(command[1:])
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(command)
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _run_each(Path(sys.argv[1]), json.loads(sys.argv[2]))
