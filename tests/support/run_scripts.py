"""Scripts, modules and code, each run in a fork of one process that has imported PyTorch and exported once.

Enters: commands as Python takes them: ["examples/int8.py"], ["-m", "benchmarks.models", "--out", folder] or
["-c", code]. Leaves: what each prints, and its exit status. Separate because the start of a Python process with PyTorch
and the first export in it take longer than most scripts. The process lives as long as the tests' own.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.support.paths import REPOSITORY

__all__ = ["ENVIRONMENT", "Ended", "run_scripts"]

# Of every script: a machine without a GPU, and one thread.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
# No script takes a tenth of it. One that waits for ever ends with what each of its threads waits for.
HANGS_AFTER_S = 600


@dataclass(frozen=True)
class Ended:
    """A script that has ended."""

    code: int
    out: str
    err: str


def run_scripts(commands: Sequence[Sequence[str]]) -> tuple[Ended, ...]:
    """Run commands one after another in the repository's folder, on a machine without a GPU.

    Args:
        commands: a file, "-m" and a module, or "-c" and code; then the arguments.
    """
    return tuple(map(_warm_process().run, commands))


class _WarmProcess:
    """The process that has imported and exported, and forks for every command."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  # end() closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.run_scripts"],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def run(self, command: Sequence[str]) -> Ended:
        """Run one command."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            self._process.stdin.write(json.dumps([folder, *command]) + "\n")
            self._process.stdin.flush()
            code = self._process.stdout.readline()
            self._said.seek(0)
            said = self._said.read()
            assert (code != "", said) == (True, "")
            texts = [Path(folder, name).read_text(encoding="utf-8") for name in ("out", "err")]
            return Ended(int(code), *texts)

    def end(self) -> None:
        """End the process."""
        self._process.communicate()
        self._said.close()


@functools.cache
def _warm_process() -> _WarmProcess:
    process = _WarmProcess()
    atexit.register(process.end)
    return process


def _serve() -> None:
    """Read lines, each a folder and a command; run the command in a fork, and print its exit status."""
    _warm_up()
    for line in sys.stdin:
        folder, *command = json.loads(line)
        child = os.fork()
        if child == 0:
            _redirect(0, Path(os.devnull), os.O_RDONLY)
            _redirect(1, Path(folder, "out"))
            _redirect(2, Path(folder, "err"))
            faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
            _end_with(_exit_status(command))
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _warm_up() -> None:
    """Import what the scripts import, and export once."""
    gc.disable()  # an import leaves nothing behind, and the search for it takes a fifth of the time
    import sklearn.datasets  # noqa: F401
    import torch

    import torch2engine as t2e

    t2e.export(torch.nn.Linear(2, 2), torch.ones(2, 2))
    gc.collect()
    gc.enable()


def _redirect(descriptor: int, path: Path, flags: int = os.O_WRONLY | os.O_CREAT | os.O_EXCL) -> None:
    """Let the process write to a new file what it writes to the descriptor, or read from a file."""
    file = os.open(path, flags)
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
    elif command[0] == "-c":
        exec(compile(command[1], "<code>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = list(command)
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
