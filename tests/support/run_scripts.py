"""Scripts one after another, each in a fork of one process that has imported PyTorch and exported once.

    python -m tests.support.run_scripts FOLDER SCRIPT...

Enters: a folder and scripts. Leaves: what each script prints, in FOLDER/SCRIPT.out and FOLDER/SCRIPT.err, and its exit
status, in FOLDER/SCRIPT.status. Separate because it runs in a process of its own: the start of a Python process with
PyTorch and the first export in it take longer than most examples.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import sklearn.datasets  # noqa: F401  # the scripts import it
import torch

import torch2engine as t2e


def main(folder: Path, scripts: list[Path]) -> None:
    """Run the scripts; a child comes back from here as well, after its script, and ends as any process does."""
    t2e.export(torch.nn.Linear(2, 2), torch.ones(2, 2))
    for script in scripts:
        child = os.fork()
        if child == 0:
            redirect(1, folder / f"{script.name}.out")
            redirect(2, folder / f"{script.name}.err")
            sys.argv = [str(script)]
            runpy.run_path(str(script), run_name="__main__")
            return
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        (folder / f"{script.name}.status").write_text(str(status), encoding="utf-8")


def redirect(descriptor: int, path: Path) -> None:
    """Let the process write to a new file what it writes to the descriptor."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.dup2(file, descriptor)
    os.close(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
