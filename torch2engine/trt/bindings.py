"""The only door to TensorRT: which flavour is installed, what it can do, its dtypes, its log and its return values.

Enters: the bindings module, whatever its name and version. Leaves: a `TensorRT` value, through which all other code
uses it, and names for annotations (`Builder`, `ITensor`, ...). Separate so that a new TensorRT version is a change in
one file. Code asks whether a version has a feature, never for its number.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch2engine.core.errors import BuildError, InstallationError, Torch2EngineError
from torch2engine.trt.gpu import describe_free_memory, relaxed_capture_mode
from torch2engine.trt.memory import FREE_MEMORY, means_out_of_memory

__all__ = [
    "DTYPES",
    "IO_DTYPES",
    "Log",
    "LogLine",
    "TensorRT",
    "check_return_value",
    "find_tensorrt",
    "make_network",
]

# TensorRT's classes, for annotations alone. The bindings have no types, and are chosen only at run time.
Builder: TypeAlias = Any
ComputeCapability: TypeAlias = Any
DataType: TypeAlias = Any
Dims: TypeAlias = Any
EngineInspector: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
IHostMemory: TypeAlias = Any
ILogger: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
IOptimizationProfile: TypeAlias = Any
IOutputAllocator: TypeAlias = Any
IProgressMonitor: TypeAlias = Any
IRuntimeCache: TypeAlias = Any
IRuntimeConfig: TypeAlias = Any
ITensor: TypeAlias = Any
OnnxParser: TypeAlias = Any
ParserError: TypeAlias = Any
Refitter: TypeAlias = Any
Runtime: TypeAlias = Any
Weights: TypeAlias = Any

# dtype as PyTorch spells it -> member of TensorRT's DataType
DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
    "float8_e4m3fn": "FP8",
    "int4": "INT4",
    "float4_e2m1fn_x2": "FP4",
    "float8_e8m0fnu": "E8M0",
}

# the dtypes of an engine's inputs and outputs; others exist only inside the graph
IO_DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool", "float8_e4m3fn")

_MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
PRODUCT_NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
_LEVELS = {
    "INTERNAL_ERROR": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.INFO,
    "VERBOSE": logging.DEBUG,
}
# Python's level of a line where the application listens. TensorRT informs with dozens of lines a build, and verbosely
# with thousands.
_PASSED_ON_AS = {**_LEVELS, "INFO": logging.DEBUG, "VERBOSE": logging.DEBUG - 5}
_MAX_LINES = 200

_logger = logging.getLogger("torch2engine.tensorrt")
# Without a handler Python would print TensorRT's warnings; whether they are shown is the application's choice.
_logger.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class LogLine:
    """One line of TensorRT's log: its running number, Python logging level and text."""

    number: int
    level: int
    text: str


class Log:
    """TensorRT's most recent lines, for error messages and passed on to ``torch2engine.tensorrt``.

    There is one for each flavour and process, because TensorRT keeps the first logger that it is given. It sends part
    of its lines there, no matter which object they are about. Threads may share it.
    """

    def __init__(self) -> None:
        self._lines: deque[LogLine] = deque(maxlen=_MAX_LINES)
        self._lock = threading.Lock()
        self._number = 0

    def record(self, severity: str, text: str) -> None:
        """Keep a line and pass it on; verbose lines are only passed on.

        TensorRT's "INFO" is passed on as Python's DEBUG, and its "VERBOSE" as level 5.

        Args:
            severity: a member name of ILogger.Severity.
            text: the line.
        """
        level = _LEVELS.get(severity, logging.ERROR)
        if level > logging.DEBUG:
            with self._lock:
                self._number += 1
                self._lines.append(LogLine(self._number, level, text))
        _logger.log(_PASSED_ON_AS.get(severity, logging.ERROR), "%s", text)

    def mark(self) -> int:
        """Give the number of the newest line, so that later lines can be found."""
        return self._number

    def lines(self, since: int = 0, level: int = logging.WARNING) -> tuple[str, ...]:
        """Give the recent lines, oldest first.

        Args:
            since: a number from `mark`; only lines after it.
            level: the lowest Python logging level.
        """
        with self._lock:
            recent = list(self._lines)
        return tuple(line.text for line in recent if line.number > since and line.level >= level)


class CallLock:
    """The lock around everything that plans or runs in TensorRT. Not reentrant.

    Args:
        exclusive: one thread at a time; otherwise any number of them.
    """

    def __init__(self, exclusive: bool) -> None:
        self._lock = threading.Lock() if exclusive else None
        self._released: deque[dict[str, Any]] = deque()

    def __enter__(self) -> None:
        if self._lock is not None:
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
        if self._released:
            self._destroy_if_idle()

    def release_when_idle(self, objects: dict[str, Any]) -> None:
        """Drop TensorRT's objects while nothing of it runs: now, or when the running call ends.

        It never waits: it is called by destructors, in any thread and with any lock held.

        Args:
            objects: attributes of an object that is destroyed, in the order of their destruction; the only references.
        """
        self._released.append(objects)
        self._destroy_if_idle()

    def _destroy_if_idle(self) -> None:
        if self._lock is None:
            _destroy_in_order(self._released)
            return
        # The thread that holds the lock looks again when it releases it.
        while self._released and self._lock.acquire(blocking=False):
            try:
                _destroy_in_order(self._released)
            finally:
                self._lock.release()


def _destroy_in_order(released: deque[dict[str, Any]]) -> None:
    with relaxed_capture_mode():  # the garbage collector calls destructors amid the user's captures too
        while released:
            try:
                objects = released.popleft()
            except IndexError:  # another thread was faster
                return
            while objects:
                del objects[next(iter(objects))]


@dataclass(frozen=True)
class TensorRT:
    """An installed TensorRT.

    Args:
        name: "tensorrt" or "tensorrt_rtx".
        version: e.g. ``"10.16.1.11"``.
        api: the bindings module.
        is_rtx: True for TensorRT-RTX.
        log: holds its recent lines.
        logger: the ILogger that feeds `log`; every builder, parser, runtime and refitter is given this one.
        call_lock: held around everything that plans or runs. TensorRT lets contexts of one engine run in several
            threads at once, so this does not lock. TensorRT-RTX compiles kernels in them. 1.6.1 then ends with a
            segmentation fault if two threads do so at once (in three of six runs of 3200 calls in 8 threads on an
            H200).
    """

    name: str
    version: str
    api: Any
    is_rtx: bool
    log: Log
    logger: ILogger
    call_lock: CallLock = field(default_factory=lambda: CallLock(exclusive=False))

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{PRODUCT_NAMES[self.name]} {self.version}"

    def has(self, member: str) -> bool:
        """Tell whether the bindings have a class, or a member of one.

        Args:
            member: e.g. ``"IRuntimeCache"`` or ``"IRuntimeConfig.cuda_graph_strategy"``.
        """
        missing = object()
        return functools.reduce(lambda at, name: getattr(at, name, missing), member.split("."), self.api) is not missing

    def dtype(self, name: str) -> DataType | None:
        """Give TensorRT's DataType for a dtype as PyTorch spells it; None if it has none."""
        return getattr(self.api.DataType, DTYPES.get(name, ""), None)

    def dtype_name(self, dtype: DataType) -> str:
        """Give the dtype as PyTorch spells it for TensorRT's DataType."""
        member = str(dtype.name)
        return _DTYPE_NAMES.get(member, member)


_DTYPE_NAMES = {member: name for name, member in DTYPES.items()}


def find_tensorrt(flavour: str | None = None) -> TensorRT:
    """Find an installed TensorRT.

    Args:
        flavour: "tensorrt", "tensorrt_rtx", or None for TensorRT if it can be imported and else TensorRT-RTX.

    Raises:
        InstallationError: it is missing or broken; the message says what was found and the line that mends it.
    """
    flavours = tuple(_MODULES) if flavour is None else (flavour,)
    problems: list[str] = []
    for name in flavours:
        for module in _MODULES[name]:
            api, problem = _import(module)
            if api is not None:
                return _make_tensorrt(api)
            problems.append(problem)
    raise InstallationError(
        " or ".join(PRODUCT_NAMES[name] for name in flavours),
        got=_describe_problems(problems),
        allowed="an installed one",
        fix=" or ".join(f"`pip install 'torch2engine[{_EXTRAS[name]}]'`" for name in flavours),
    )


def _import(module: str) -> tuple[Any, str]:
    """Import a bindings module; (None, why not) if that fails."""
    try:
        api = importlib.import_module(module)
    except ModuleNotFoundError as error:
        return None, "" if error.name == module else f"{module} without the module {error.name}, which it needs"
    except (ImportError, OSError, RuntimeError) as error:
        # the bindings' shared libraries: absent, of another version, or not on the loader's path
        return None, f"{module} that can't be loaded: '{error}'"
    if not hasattr(api, "Builder"):
        # a leftover or unrelated folder of that name imports as an empty namespace package
        places = list(getattr(api, "__path__", ())) or [getattr(api, "__file__", "?")]
        return None, f"{module} at {places[0]} without a TensorRT"
    return api, ""


def _describe_problems(problems: Iterable[str]) -> str:
    found = [problem for problem in problems if problem] or ["no such package"]
    installed = sorted(
        f"{name} {distribution.version}"
        for distribution in importlib.metadata.distributions()
        if (name := distribution.metadata["Name"] or "").lower().startswith("tensorrt")
    )
    return "; ".join(found) + f" (installed: {', '.join(installed) or 'no tensorrt package'})"


# One Log and one logger per bindings module: see Log. They live as long as the module does.
@functools.cache
def _make_tensorrt(api: Any) -> TensorRT:
    is_rtx = hasattr(api, "CudaGraphStrategy")
    log = Log()
    name = "tensorrt_rtx" if is_rtx else "tensorrt"
    return TensorRT(name, str(api.__version__), api, is_rtx, log, _make_logger(api, log), CallLock(exclusive=is_rtx))


def _make_logger(api: Any, log: Log) -> ILogger:
    class Logger(api.ILogger):
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.record(severity.name, msg)

    return Logger()


def make_network(rt: TensorRT, builder: Builder) -> INetworkDefinition:
    """Make an empty network that takes every dtype from the ONNX graph.

    TensorRT 11 and TensorRT-RTX have no other kind of network; they accept the flag. Its number differs by version.
    """
    return builder.create_network(1 << int(rt.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def check_return_value(
    value: Any,
    what: str,
    rt: TensorRT,
    *,
    error: Callable[..., Torch2EngineError] = BuildError,
    since: int = 0,
    fix: str = "",
) -> Any:
    """Refuse None and False, by which TensorRT reports a failure.

    Args:
        value: what TensorRT returned.
        what: the request, for the message, e.g. ``"set_input_shape of 'x'"``.
        rt: the flavour, whose recent lines go into the message.
        error: the class to raise.
        since: a number from `Log.mark`; only lines after it are quoted.
        fix: what to do. By default, and only where TensorRT's lines name memory as the cause, to free GPU memory.

    Returns:
        `value`.

    Raises:
        Torch2EngineError: the class given, with TensorRT's own lines.
    """
    if value is not None and value is not False:
        return value
    lines = (rt.log.lines(since, logging.ERROR) or rt.log.lines(since))[-20:]
    got = f"{value} from {rt.title}"
    if error is BuildError:
        out_of_memory = any(map(means_out_of_memory, lines))
        if out_of_memory:
            free = describe_free_memory()
            got = f"{got} ({free})" if free else got
            fix = fix or FREE_MEMORY
        raise BuildError(what, got=got, allowed="success", fix=fix, log=lines, out_of_memory=out_of_memory)
    raise error(what, got=": ".join([got, " | ".join(lines)]) if lines else got, allowed="success", fix=fix)
