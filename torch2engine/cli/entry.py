"""The program `torch2engine`.

Enters: the arguments after its name. Leaves: an exit code. Separate because click is an extra: without it the program
says how to get it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from torch2engine.cli.outcome import Outcome, outcome_of_error
from torch2engine.cli.terminal import show
from torch2engine.core.errors import InstallationError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: those after the program's name; None takes those of this process.

    Returns:
        the exit code, a key of `EXIT_CODES`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app = importlib.import_module("torch2engine.cli.app")
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        return _without_click(given)
    try:
        app.cli.main(given, prog_name="torch2engine")
    except SystemExit as end:  # click ends the process itself
        return end.code if isinstance(end.code, int) else 0
    return 0


def _without_click(arguments: Sequence[str]) -> int:
    """Run the doctor, who needs nothing but Python; of every other command say what is missing."""
    if arguments[:1] == ["doctor"]:
        from torch2engine.cli.doctor.examination import examine

        examined = examine()
        show(examined, "--json" in arguments)
        return examined.code
    outcome: Outcome = outcome_of_error(
        InstallationError(
            "the command line", got="no click", allowed="an installed one", fix="`pip install 'torch2engine[cli]'`"
        )
    )
    show(outcome, "--json" in arguments)
    return outcome.code
