"""A `PlanRequest` → `PlanFacts`, in a child process.

Enters: a request. Leaves: the facts, or the typed error that the child raised. Separate because a builder harms its
process. For minutes it answers no signal and no callback. It can crash, it prints, and it keeps memory. A child can be
killed at once. Its crash becomes an error with a text, and its memory is freed with it.

Parent and child exchange lines of JSON: the request goes to the child's stdin, events come from its stdout. The child
ends when its stdin is closed, so it never outlives its parent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import IO, Any, NoReturn

from torch2engine.builder.plan import PhaseReport, PlanFacts, PlanRequest, compile_plan
from torch2engine.core import errors
from torch2engine.core.errors import BuildError, Torch2EngineError, UnsupportedNode
from torch2engine.core.tf32 import builder_environment

__all__ = ["compile_in_child"]

_PLAN = "a plan"
_REPORT = "see the lines below for the cause"
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from torch2engine.builder.child_process import serve
serve()
"""
_logger = logging.getLogger("torch2engine.tensorrt")
_LAST_LINES = 20

Send = Callable[[Mapping[str, Any]], None]


def compile_in_child(request: PlanRequest, report: PhaseReport) -> PlanFacts:
    """Build a plan in a child process.

    Args:
        request: what to build.
        report: called in this thread; what it raises ends the build at once, as does Ctrl-C.

    Returns:
        facts about the build.

    Raises:
        Torch2EngineError: whatever `compile_plan` raises.
        BuildError: the child crashed or was killed.
    """
    if not sys.executable:
        raise BuildError(
            "TensorRT build",
            got="an empty sys.executable",
            allowed="the path of Python",
            fix="build in a plain Python interpreter",
        )
    command = [sys.executable, "-c", _START, json.dumps(sys.path)]
    with tempfile.TemporaryFile() as printed:
        # In a session of its own it gets no Ctrl-C from the terminal: this process ends it.
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            start_new_session=True,
            env=builder_environment(request.precision),
        )
        assert child.stdin is not None and child.stdout is not None
        try:
            _send_request(child.stdin, request)
            facts = _receive_facts(child.stdout, report)
            if facts is None:
                raise _crash_error(child.wait(), printed)
            return facts
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # nobody reads what was not flushed
                child.stdin.close()


def serve() -> NoReturn:
    """Run in the child: read the request, build the plan, send events, end the process."""
    # Texts that TensorRT's libraries print must not get between the events.
    events = os.fdopen(os.dup(1), "w", encoding="ascii", newline="\n")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(event: Mapping[str, Any]) -> None:
        with lock:
            events.write(json.dumps(event) + "\n")
            events.flush()

    request = PlanRequest.from_json(json.loads(_read_line(0)))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _logger.addHandler(_LogForwarder(send))
    _logger.setLevel(request.log_level)
    _logger.propagate = False

    def report(phase: str, step: int, steps: int) -> None:
        send({"phase": [phase, step, steps]})

    try:
        send({"facts": asdict(compile_plan(request, report))})
    except Torch2EngineError as error:
        send({"error": _encode(error)})
    except BaseException as error:
        send({"error": _encode(_unexpected_error(error))})
    # Not sys.exit: it would run the libraries' clean-up, which is of no use here and can crash.
    os._exit(0)


def _unexpected_error(error: BaseException) -> BuildError:
    lines = traceback.format_exc().splitlines()[-_LAST_LINES:]
    if isinstance(error, MemoryError):
        return BuildError(
            "TensorRT build",
            got="a builder process out of host memory",
            allowed=_PLAN,
            fix="give it more host memory",
            log=lines,
            out_of_memory=True,
        )
    got = f"a failure of the builder process: {type(error).__name__}: {error}"
    return BuildError("TensorRT build", got=got, allowed=_PLAN, fix=_REPORT, log=lines)


class _LogForwarder(logging.Handler):
    """Sends log lines to the parent."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send({"log": [record.levelno, record.getMessage()]})


def _send_request(stdin: IO[bytes], request: PlanRequest) -> None:
    with contextlib.suppress(BrokenPipeError):  # it died at once; its output says why
        stdin.write(json.dumps(request.to_json()).encode("ascii") + b"\n")
        stdin.flush()


def _receive_facts(events: IO[bytes], report: PhaseReport) -> PlanFacts | None:
    """Handle the child's events until it sends its result; None if it ends without one."""
    for line in events:
        event: dict[str, Any] = json.loads(line)
        if "log" in event:
            level, text = event["log"]
            _logger.log(level, "%s", text)
        elif "phase" in event:
            report(*event["phase"])
        elif "error" in event:
            raise _decode(event["error"])
        else:
            return PlanFacts(**event["facts"])
    return None


def _crash_error(status: int, printed: IO[bytes]) -> BuildError:
    printed.seek(0)
    lines = printed.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
    if status >= 0:
        return BuildError(
            "TensorRT build",
            got=f"the end of the builder process with status {status}",
            allowed=_PLAN,
            fix=_REPORT,
            log=lines,
        )
    name = signal.Signals(-status).name
    killed = name == "SIGKILL"
    fix = "build parts of the model to find the operation that TensorRT fails on, or use another TensorRT version"
    if killed:
        fix = "the system kills what takes too much host memory: give it more"
    return BuildError(
        "TensorRT build",
        got=f"the end of the builder process by {name}",
        allowed=_PLAN,
        fix=fix,
        log=lines,
        out_of_memory=killed,
    )


def _encode(error: Torch2EngineError) -> dict[str, Any]:
    fields = dict(vars(error))
    if "nodes" in fields:
        fields["nodes"] = [asdict(node) for node in fields["nodes"]]
    return {"type": type(error).__name__, "fields": fields}


def _decode(data: Mapping[str, Any]) -> Torch2EngineError:
    fields = dict(data["fields"])
    if "nodes" in fields:
        fields["nodes"] = [UnsupportedNode(**node) for node in fields["nodes"]]
    cls: type[Torch2EngineError] = getattr(errors, data["type"])
    return cls(fields.pop("subject"), **fields)


def _read_line(descriptor: int) -> bytes:
    # Unbuffered, because a buffer would take what follows the line, and hold a lock when the process ends.
    line = bytearray()
    while not line.endswith(b"\n"):
        part = os.read(descriptor, 1 << 16)
        if not part:
            os._exit(1)
        line += part
    return bytes(line)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
