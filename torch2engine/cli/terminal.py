"""The only file of the package that writes to the terminal.

Enters: the outcome of a command. Leaves: text on standard output or standard error. Separate because the rest of the
package never prints.
"""

from __future__ import annotations

import sys

from torch2engine.cli.outcome import Outcome

__all__ = ["show"]


def show(outcome: Outcome, as_json: bool) -> None:
    """Write an outcome: JSON always to standard output, the text of an error to standard error."""
    text = outcome.to_json() if as_json else outcome.text
    if not text:
        return
    stream = sys.stderr if outcome.is_error and not as_json else sys.stdout
    stream.write(f"{text}\n")
    stream.flush()
