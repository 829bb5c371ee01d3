"""The result of a command, and the exit code that follows from it.

Enters: a command's findings, or the error that ended it. Leaves: text, JSON values and an exit code. Separate because
the commands know nothing of click, and the doctor runs without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch2engine.core.errors import InputError, InstallationError, ParityError, Torch2EngineError

__all__ = [
    "EXIT_CODES",
    "FAILED",
    "INTERRUPTED",
    "NOT_INSTALLED",
    "PASSED",
    "REFUSED",
    "UNEXPECTED",
    "USAGE",
    "Outcome",
    "outcome_of_error",
]

PASSED = 0
FAILED = 1
USAGE = 2
REFUSED = 3
NOT_INSTALLED = 4
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # as shells count: 128 and the number of SIGINT

EXIT_CODES = {
    PASSED: "done; all answers agree",
    FAILED: "answers differ, or the doctor found a fault",
    USAGE: "wrong words on the command line, or an input that can't be had",
    REFUSED: "the model can't be exported or built, or a file is damaged",
    NOT_INSTALLED: "a library, the driver or the GPU is missing",
    UNEXPECTED: "an error that torch2engine did not expect, e.g. in the model's own code",
    INTERRUPTED: "interrupted",
}


@dataclass(frozen=True)
class Outcome:
    """The end of a command.

    Args:
        text: for people; "" for nothing to say.
        data: the same as JSON values.
        code: a key of `EXIT_CODES`.
        is_error: the text goes to standard error.
    """

    text: str
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    code: int = PASSED
    is_error: bool = False

    def to_json(self) -> str:
        """The JSON that `--json` prints."""
        return json.dumps({**self.data, "exit_code": self.code}, indent=2, sort_keys=True)


def outcome_of_error(error: BaseException) -> Outcome:
    """Describe an error without its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return Outcome("interrupted", {"error": {"class": "KeyboardInterrupt"}}, INTERRUPTED, is_error=True)
    facts: dict[str, Any] = {"class": type(error).__name__, "message": str(error)}
    text = f"error: {error}"
    code = UNEXPECTED
    if isinstance(error, Torch2EngineError):
        facts |= {"subject": error.subject, "got": error.got, "expected": error.allowed, "fix": error.fix}
        code = _code_of(error)
    else:
        text = f"error: {type(error).__name__}: {error}\nrun the command again with --debug to see the traceback"
    data: dict[str, Any] = {"error": facts}
    if isinstance(error, ParityError):
        data["parity"] = [error.report.to_json()]
    return Outcome(text, data, code, is_error=True)


def _code_of(error: Torch2EngineError) -> int:
    if isinstance(error, ParityError):
        return FAILED
    if isinstance(error, InputError):
        return USAGE
    return NOT_INSTALLED if isinstance(error, InstallationError) else REFUSED
