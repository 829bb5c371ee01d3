"""A `PlanRequest` → `PlanFacts`, in a child process.

Enters: a request. Leaves: the facts, or the typed error that the child raised. Separate because a builder harms its
process. For minutes it answers no signal and no callback. It can crash, it prints, and it keeps memory. A child can be
killed at once. Its crash becomes an error with a text, and its memory is freed with it.

Parent and child exchange lines of JSON: the request goes to the child's stdin, events come from its stdout. The child
ends when its stdin is closed, so it never outlives its parent. It runs isolated (python -I) and outside of the working
directory, from which it imports nothing. It may start long before its request is known, and load its libraries.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import logging
import os
import reprlib
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import IO, Any, NoReturn, TypeAlias, cast

from torch2engine.artifact.scratch_folder import temporary_folder_error
from torch2engine.builder.child_watch import ChildWatch
from torch2engine.builder.kernels import KernelRequest, compile_kernels, open_engine
from torch2engine.builder.plan import PlanFacts, PlanRequest, compile_plan
from torch2engine.core import errors
from torch2engine.core.errors import BuildError, Torch2EngineError, UnsupportedNode
from torch2engine.core.progress import Heartbeat, PhaseReport
from torch2engine.core.tf32 import builder_environment
from torch2engine.trt.bindings import find_tensorrt
from torch2engine.trt.gpu import list_gpus

__all__ = ["BuilderProcess", "compile_in_child"]

_PLAN = "a plan"
_REPORT = "see the lines below for the cause"
# The package itself is loaded from its own folder: the folder above, which may be the working directory, stays out.
_START = """
import importlib.util, json, sys
package, trusted, preload = json.loads(sys.argv[1])
sys.path[:] = [*trusted, *(entry for entry in sys.path if entry not in trusted)]
spec = importlib.util.spec_from_file_location(
    "torch2engine", package + "/__init__.py", submodule_search_locations=[package]
)
sys.modules["torch2engine"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["torch2engine"])
from torch2engine.builder.child_process import serve
serve(preload)
"""
_logger = logging.getLogger("torch2engine.tensorrt")
_LAST_LINES = 20
_POLL_MS = 1000
_PIPE_BYTES = 1 << 20  # the child reports into it while its parent does something else

Send = Callable[[Mapping[str, Any]], None]
Request: TypeAlias = "PlanRequest | KernelRequest"
_REQUESTS: dict[str, type[PlanRequest] | type[KernelRequest]] = {"plan": PlanRequest, "kernels": KernelRequest}


class BuilderProcess:
    """A child process that builds one plan, or compiles kernels for one. Use it in a `with`, which ends it.

    Args:
        precision: of the plan; "tf32" alone lets the process compute in TF32.
        flavour: as in `PlanRequest`.
        is_early: whether it starts before its request is known. It then loads its libraries while it waits.

    Raises:
        BuildError: there is no Python to run it.
        ArtifactError: there is no temporary folder.
    """

    def __init__(self, precision: str, flavour: str | None = None, is_early: bool = False) -> None:
        self._environment = builder_environment(precision)
        self._is_free = True
        with ExitStack() as stack:
            self._printed = stack.enter_context(_file_for_prints())
            with _interrupts_held_back():
                # In a session of its own it gets no Ctrl-C from the terminal: this process ends it.
                self._child = subprocess.Popen(
                    _start_command([flavour] if is_early else None),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._printed,
                    start_new_session=True,
                    cwd="/",
                    env=self._environment,
                )
                stack.callback(_end_child, self._child)
            _enlarge_pipe(self._child.stdout)
            self._cleanup = stack.pop_all()

    def __enter__(self) -> BuilderProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def can_build(self, request: Request) -> bool:
        """Whether it waits for a request, in the environment that this one needs."""
        fits = self._environment == builder_environment(request.precision)
        return self._is_free and fits and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return self._child.poll() is not None

    def wait(self) -> int:
        """Wait until it has ended by itself, and give its status."""
        return self._child.wait()

    def send(self, request: Request) -> None:
        """Let it begin; a process does one piece of work."""
        self._is_free = False
        kind = next(name for name, one in _REQUESTS.items() if isinstance(request, one))
        self._write(json.dumps({"kind": kind, "request": request.to_json()}))

    def go_on(self) -> None:
        """Let it compile kernels; before, it opens the engine of its request, and waits."""
        self._write("")

    def _write(self, line: str) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the child died at once; its output says why
            self._child.stdin.write(line.encode("ascii") + b"\n")
            self._child.stdin.flush()

    def receive(self, report: PhaseReport, time_limit_s: float | None = None) -> dict[str, Any]:
        """Wait for the end of the work, and give the facts about it; see `compile_in_child`."""
        assert self._child.stdout is not None
        facts = _receive_facts(self._child.stdout, report, ChildWatch(self._child.pid, time_limit_s))
        if facts is None:
            raise _crash_error(self.wait(), self._printed)
        return facts


def compile_in_child(
    request: PlanRequest,
    report: PhaseReport,
    time_limit_s: float | None = None,
    *,
    early: BuilderProcess | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> PlanFacts:
    """Build a plan in a child process.

    Args:
        request: what to build.
        report: called in this thread, and while nothing else is reported once a second with the step that runs; what
            it raises ends the build at once, as does Ctrl-C.
        time_limit_s: the longest that the child may take; None for no limit. It counts from the end of `meanwhile`.
        early: a process that was started before; it is used if it can build this, and ended by its owner.
        meanwhile: called once in this thread while the child works; what it raises ends the build.

    Returns:
        facts about the build.

    Raises:
        Torch2EngineError: whatever `compile_plan` raises.
        BuildError: the child crashed, was killed or stopped, hangs or took too long.
    """
    with ExitStack() as stack:
        process = early
        if process is None or not process.can_build(request):
            process = stack.enter_context(BuilderProcess(request.precision, request.flavour))
        process.send(request)
        if meanwhile is not None:
            meanwhile()
        return PlanFacts(**process.receive(report, time_limit_s))


@contextlib.contextmanager
def _interrupts_held_back() -> Generator[None]:
    """Delay Ctrl-C until the body ends: it would kill a child that is still in the terminal's session."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_child(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdout, child.stdin):
        with contextlib.suppress(BrokenPipeError):  # the child is dead and does not read the rest
            if pipe is not None:
                pipe.close()


def _enlarge_pipe(pipe: IO[bytes] | None) -> None:
    """Give the child's reports more room, where the system allows it: in a full pipe the child waits for its parent."""
    assert pipe is not None
    with contextlib.suppress(OSError):  # a user may hold only so much memory in pipes
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _start_command(preload: list[str | None] | None) -> list[str]:
    if not os.path.isabs(sys.executable or ""):
        raise BuildError(
            "TensorRT build",
            got=f"sys.executable {sys.executable!r}" if sys.executable else "an empty sys.executable",
            allowed="the path of Python",
            fix="build in a plain Python interpreter",
        )
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [sys.executable, "-I", "-c", _START, json.dumps([package, _trusted_path(), preload])]


def _trusted_path() -> list[str]:
    """The absolute folders of `sys.path`, without the working directory: anybody's files may lie there."""
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # the working directory was removed
        here = ""
    entries: list[str] = []
    for entry in cast("list[Any]", sys.path):  # Python itself skips entries that are neither texts nor paths
        with contextlib.suppress(TypeError):
            entries.append(os.fsdecode(entry))
    return [entry for entry in entries if os.path.isabs(entry) and os.path.realpath(entry) != here]


def _file_for_prints() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except (OSError, ValueError) as error:
        raise temporary_folder_error("TensorRT build", error) from error


def serve(preload: list[str | None] | None) -> NoReturn:
    """Run in the child: read the request, build the plan, send events, end the process.

    Args:
        preload: the flavour of which everything is loaded before the request is read, in a list; None for none.
    """
    # Texts that TensorRT's libraries print must not get between the events.
    events = os.fdopen(os.dup(1), "w", encoding="ascii", newline="\n")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(event: Mapping[str, Any]) -> None:
        with lock:
            events.write(json.dumps(event) + "\n")
            events.flush()

    if preload is not None:
        _load_libraries(*preload)
    lines = _Lines(0)
    message: dict[str, Any] = json.loads(lines.read())
    request: Request = _REQUESTS[message["kind"]].from_json(message["request"])
    _logger.addHandler(_LogForwarder(send))
    _logger.setLevel(request.log_level)
    _logger.propagate = False

    def report(phase: str, step: int, steps: int) -> None:
        send({"phase": [phase, step, steps]})

    try:
        send({"facts": _work(request, report, lines)})
    except Torch2EngineError as error:
        send({"error": _encode(error)})
    except BaseException as error:
        send({"error": _encode(_unexpected_error(error))})
    # Not sys.exit: it would run the libraries' clean-up, which is of no use here and can crash.
    os._exit(0)


def _work(request: Request, report: PhaseReport, lines: _Lines) -> dict[str, Any]:
    """Do what is requested, and give the facts about it."""
    watch = threading.Thread(target=_end_with_parent, daemon=True)
    if isinstance(request, KernelRequest):
        engine = open_engine(request)
        lines.read()  # see `go_on`
        watch.start()
        compile_kernels(engine, request)
        return {}
    watch.start()
    return asdict(compile_plan(request, report))


def _load_libraries(flavour: str | None) -> None:
    """Load what a build needs, but make no CUDA context: the memory is the parent's until it sends the request."""
    with contextlib.suppress(Exception):  # the build meets it again, and reports it
        find_tensorrt(flavour)
        list_gpus()
        for name in ("onnx", "onnx_ir"):
            importlib.import_module(name)


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


def _receive_facts(events: IO[bytes], report: PhaseReport, watch: ChildWatch) -> dict[str, Any] | None:
    """Handle the child's events until it sends its result; None if it ends without one."""
    heartbeat = Heartbeat(report)
    for line in _lines(events, watch, heartbeat):
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            got = f"{reprlib.repr(line)} from the builder process"
            raise BuildError("TensorRT build", got=got, allowed="an event in JSON", fix="build again") from None
        if "log" in event:
            level, text = event["log"]
            _logger.log(level, "%s", text)
        elif "phase" in event:
            watch.note_report(event["phase"][0])
            heartbeat(*event["phase"])
        elif "error" in event:
            raise _decode(event["error"])
        else:
            return event["facts"]
    return None


def _lines(stream: IO[bytes], watch: ChildWatch, heartbeat: Heartbeat) -> Generator[bytes]:
    """Give the whole lines of a pipe as they come. A process that dies in the middle of a line has not sent it."""
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLIN)
    rest = b""
    while True:
        has_data = poller.poll(_POLL_MS)
        watch.check()
        heartbeat.beat()
        if not has_data:
            continue
        part = os.read(stream.fileno(), 1 << 16)
        if not part:
            return
        watch.note_report()
        *lines, rest = (rest + part).split(b"\n")
        yield from lines


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
    name = _signal_name(-status)
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


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # Python has no name for most real-time signals
        return f"signal {number}"


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


class _Lines:
    """Whole lines of a pipe, one after the other, however they arrive; without the lock that a file object has.

    Args:
        descriptor: of the pipe. Where it is closed, the process ends.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""

    def read(self) -> bytes:
        """Wait for the next line."""
        while b"\n" not in self._rest:
            part = os.read(self._descriptor, 1 << 16)
            if not part:
                os._exit(1)
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
