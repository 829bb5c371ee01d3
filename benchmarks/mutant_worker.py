"""A process that has loaded the libraries, and forks one of its own for each run of tests in a copy of the tree.

    python benchmarks/mutant_worker.py torch onnx pytest

Enters: lines of JSON on stdin: the tests to run in the current folder, and a limit in seconds. Leaves: a line of JSON
for each: pytest's exit status, and the test that ran last. Apart from `mutant_laboratory` because nothing of the
checkout may be loaded here: each run imports the package from its copy.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["LOG", "run_tests", "serve"]

LOG = "log"
LAST = "last-test"
POLLED_S = 0.02
FLAGS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not gpu", "--no-header")


class Watcher:
    """A plugin of pytest that writes the name of each test that begins: the last one fails, hangs or crashes."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """See each test."""
        Path(LAST).write_text(nodeid, encoding="utf-8")


def run_tests(tests: Sequence[str]) -> None:
    """Run tests up to the first failure, and end the process with pytest's exit status. `LOG` gets what they print."""
    os.setpgid(0, 0)  # so that what the tests start can be ended with them
    output = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import pytest

    os._exit(int(pytest.main([*FLAGS, *tests], plugins=[Watcher()])))


def answer(tests: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Run tests in a fork.

    Returns:
        "status": of pytest; None after the limit. "last": the test that ran last, "" for none.
    """
    Path(LAST).unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        run_tests(tests)
    deadline = time.monotonic() + limit_s
    ended = 0
    wait_status = 0
    while not ended and time.monotonic() < deadline:
        ended, wait_status = os.waitpid(process, os.WNOHANG)
        time.sleep(0 if ended else POLLED_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # also what the tests have left behind
    if not ended:
        os.waitpid(process, 0)
    last = Path(LAST).read_text(encoding="utf-8") if Path(LAST).exists() else ""
    return {"status": os.waitstatus_to_exitcode(wait_status) if ended else None, "last": last}


def serve(preloaded: Sequence[str]) -> None:
    """Answer requests until stdin ends.

    Args:
        preloaded: modules that every run has from the beginning.
    """
    sys.path[0] = os.getcwd()
    os.environ["PYTHONPATH"] = os.getcwd()
    for name in preloaded:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(request["tests"], request["limit_s"])), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
