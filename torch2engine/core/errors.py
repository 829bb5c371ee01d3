"""The exception tree: everything torch2engine raises on purpose.

    Torch2EngineError
    ├── InstallationError            TensorRT, driver or GPU missing or mismatched
    ├── ExportError                  torch.export / ONNX could not express the model
    │   └── DynamicAxisError         an axis that the model pins down
    ├── UnsupportedOperatorError     every unsupported node at once
    ├── BuildError                   TensorRT's own lines; out of memory named as such
    │   └── PrecisionError           nothing computes in the requested precision
    ├── ParityError                  carries the ParityReport
    ├── InputError (ValueError)
    │   ├── ShapeError
    │   ├── DtypeError (also TypeError)
    │   └── DeviceError
    ├── ArtifactError                corrupt, foreign format, other hardware
    └── RefitError                   weights not covered, structure changed

Enters: the facts of a failure. Leaves: one message of the form "subject: got X; expected Y; fix", with the
same facts as attributes. Separate because every other folder raises from here, and it needs only the standard
library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch2engine.core.package import public
from torch2engine.core.wording import without_terminal_codes

__all__ = [
    "ArtifactError",
    "BuildError",
    "DeviceError",
    "DtypeError",
    "DynamicAxisError",
    "ExportError",
    "InputError",
    "InstallationError",
    "ParityError",
    "PrecisionError",
    "RefitError",
    "ShapeError",
    "Torch2EngineError",
    "UnsupportedNode",
    "UnsupportedOperatorError",
    "may_blame_engine",
]


@public
class Torch2EngineError(Exception):
    """Base of every error that torch2engine raises on purpose.

    Args:
        subject: what the message is about, e.g. ``"input 'x'"``.
        got: what was given, as a noun or a name with a value, e.g. ``"batch = 64"``.
        allowed: what would be right, in the same form, e.g. ``"1..32"``.
        fix: what to do, as an imperative, e.g. ``"redeploy with Axis('batch', 1, 8, 64)"``.

    The message reads ``subject: got X; expected Y; fix``; parts left empty are left out.

    >>> try:
    ...     module(torch.rand(64, 3, 64, 64))
    ... except t2e.Torch2EngineError as error:
    ...     print(error.subject, "|", error.got, "|", error.allowed, "|", error.fix)
    input 'x' | batch = 64 | 1..32 | redeploy with Axis('batch', 1, 8, 64)
    """

    def __init__(self, subject: str, *, got: str = "", allowed: str = "", fix: str = "") -> None:
        self.subject = subject
        self.got = got
        self.allowed = allowed
        self.fix = fix
        super().__init__(self._message())

    def _message(self) -> str:
        parts = "; ".join(part for part in (self.facts, self.fix) if part)
        return f"{self.subject}: {parts}" if parts else self.subject

    @property
    def facts(self) -> str:
        """The value that was given and the values that are right, as in the message: ``got X; expected Y``."""
        got = f"got {self.got}" if self.got else ""
        expected = f"expected {self.allowed}" if self.allowed else ""
        return "; ".join(part for part in (got, expected) if part)

    def __str__(self) -> str:
        return self._message()

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process borders (spawned workers): rebuild without calling __init__, keep attributes.
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(cls: type[Torch2EngineError], args: tuple[Any, ...]) -> Torch2EngineError:
    return cls.__new__(cls, *args)


@public
class InstallationError(Torch2EngineError):
    """TensorRT, the driver or the GPU is missing or mismatched; ``fix`` is the line that corrects it.

    On a machine without a GPU:

    >>> folder = engine.save("model.t2e")
    >>> t2e.load(folder)
    Traceback (most recent call last):
    torch2engine.InstallationError: PyTorch: got torch ..., which sees no CUDA device; expected a CUDA device, since
    TRTModule works on CUDA tensors; install a CUDA build of torch on a machine with a GPU; or load it with
    runtime='onnxruntime', which runs its model.onnx on the CPU
    >>> t2e.load(folder, runtime="onnxruntime")(sample).shape
    torch.Size([8, 10])
    """


@public
class ExportError(Torch2EngineError):
    """torch.export or the ONNX exporter could not express the model.

    Attributes:
        source: ``"FILE:LINE"`` of the user's code that stopped the export, or ``""`` if torch gave no line.

    >>> class Choice(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x if x.sum() > 0 else -x
    >>> t2e.export(Choice(), torch.ones(3))
    Traceback (most recent call last):
    torch2engine.ExportError: torch.export: got a branch or a shape that depends on a tensor's values; expected control
    flow that does not look into tensors; use torch.where for a choice of values, torch.cond for a
    branch, torch.clamp for a bound
    """

    def __init__(self, subject: str, *, got: str = "", allowed: str = "", fix: str = "", source: str = "") -> None:
        self.source = source
        super().__init__(subject, got=got, allowed=allowed, fix=fix)

    def _message(self) -> str:
        message = super()._message()
        return f"{message} (at {self.source})" if self.source else message


@public
class DynamicAxisError(ExportError):
    """An axis should be dynamic, but the model or the request pins it down.

    Attributes:
        axis: the axis's name, or ``""`` where the request is wrong before an axis is known.
        source: ``"FILE:LINE"`` that pins the axis, or ``""``.

    >>> class Pinned(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x.reshape(8, -1)
    >>> t2e.export(Pinned(), torch.rand(8, 4), {"x": {0: "batch"}})
    Traceback (most recent call last):
    torch2engine.DynamicAxisError: axis 'batch': got a model that pins it down; expected one that also works with
    other sizes than batch = 8; compute with x.shape or -1 instead of a fixed size there, or leave 'batch' out of
    dynamic_axes
    """

    def __init__(
        self,
        subject: str,
        *,
        got: str = "",
        allowed: str = "",
        fix: str = "",
        source: str = "",
        axis: str = "",
    ) -> None:
        self.axis = axis
        super().__init__(subject, got=got, allowed=allowed, fix=fix, source=source)


@dataclass(frozen=True)
class UnsupportedNode:
    """One ONNX node that the flavour can't build, with its origin in the PyTorch model."""

    op: str
    name: str
    module: str
    source: str
    reason: str

    def __str__(self) -> str:
        origin = f" in module '{self.module}'" if self.module else ""
        line = f" at {self.source}" if self.source else ""
        why = f": {self.reason}" if self.reason else ""
        name = f" ({self.name})" if self.name else ""
        return f"{self.op}{name}{origin}{line}{why}"


@public
class UnsupportedOperatorError(Torch2EngineError):
    """Operators that ONNX or TensorRT can't express; all of them at once.

    Attributes:
        nodes: every unsupported node: operator, node name, torch module path, source line, reason.

    >>> class Eigenvalues(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.linalg.eigh(x)[0]
    >>> t2e.export(Eigenvalues(), torch.eye(3))
    Traceback (most recent call last):
    torch2engine.UnsupportedOperatorError: torch.onnx: got no ONNX form for aten._linalg_eigh; expected operators that
    have one; write these lines with other PyTorch operators
    aten._linalg_eigh (_linalg_eigh)...: no ONNX function
    """

    def __init__(
        self,
        subject: str,
        *,
        nodes: Sequence[UnsupportedNode],
        got: str = "",
        allowed: str = "",
        fix: str = "",
    ) -> None:
        self.nodes = tuple(nodes)
        super().__init__(subject, got=got, allowed=allowed, fix=fix)

    def _message(self) -> str:
        return "\n".join([super()._message(), *(f"  {node}" for node in self.nodes)])


@public
class BuildError(Torch2EngineError):
    """TensorRT could not build, or a builder setting is wrong.

    Attributes:
        log: TensorRT's own last lines, oldest first; then the nodes that they name, with module and line.
        out_of_memory: True if TensorRT's lines name memory as the cause.
        cancelled: True if the caller's progress returned False.

    >>> t2e.build(onnx, config=t2e.BuildConfig(time_limit_s=0.01))
    Traceback (most recent call last):
    torch2engine.BuildError: TensorRT build: got no plan after 0.01 s, ...; expected a plan within
    BuildConfig.time_limit_s; allow more time with BuildConfig(time_limit_s=...), or None for no limit
    """

    def __init__(
        self,
        subject: str,
        *,
        got: str = "",
        allowed: str = "",
        fix: str = "",
        log: Sequence[str] = (),
        out_of_memory: bool = False,
        cancelled: bool = False,
    ) -> None:
        self.log = tuple(map(without_terminal_codes, log))
        self.out_of_memory = out_of_memory
        self.cancelled = cancelled
        super().__init__(subject, got=got, allowed=allowed, fix=fix)

    def _message(self) -> str:
        return "\n".join([super()._message(), *(f"  {line}" for line in self.log)])


@public
class PrecisionError(BuildError):
    """The engine, or the ONNX graph for it, does not compute in the requested precision.

    >>> t2e.export(torch.nn.ReLU(), torch.ones(3), precision="int8")
    Traceback (most recent call last):
    torch2engine.PrecisionError: precision 'int8': got none of the graph's 1 floating-point nodes in it: none has an
    operator that this precision changes; expected at least one that computes in it; leave precision out, or look at
    calibration data and keep_fp32
    """


@public
class ParityError(Torch2EngineError):
    """A candidate does not answer like its reference.

    Attributes:
        report: the ParityReport with every figure; its table is part of the message.

    >>> t2e.testing.assert_parity(torch.nn.GELU(), torch.nn.ReLU(), torch.linspace(-3, 3, 50))
    Traceback (most recent call last):
    torch2engine.ParityError: parity, reference vs candidate: got output 'output': relative L2 is 0.08..., at most
    0.00025 is allowed; expected answers within the tolerance; if the difference is meant, pass a wider
    tolerance=Tolerance(...)
    ...
    """

    def __init__(self, subject: str, *, report: Any, got: str = "", allowed: str = "", fix: str = "") -> None:
        self.report = report
        super().__init__(subject, got=got, allowed=allowed, fix=fix)

    def _message(self) -> str:
        return f"{super()._message()}\n{self.report}"


@public
class InputError(Torch2EngineError, ValueError):
    """A call, a sample or a specification that can't be answered; raised before anything is enqueued.

    Attributes:
        name: the input's name as in the signature, or ``""``.

    >>> module(sample, sample)
    Traceback (most recent call last):
    torch2engine.InputError: call: got 2 positional arguments; expected at most 1: x; leave out the rest
    """

    def __init__(self, subject: str, *, got: str = "", allowed: str = "", fix: str = "", name: str = "") -> None:
        self.name = name
        super().__init__(subject, got=got, allowed=allowed, fix=fix)


@public
class ShapeError(InputError):
    """An input's rank or an axis is outside what the engine was built for.

    >>> module(torch.rand(64, 3, 64, 64))
    Traceback (most recent call last):
    torch2engine.ShapeError: input 'x': got batch = 64; expected 1..32; redeploy with Axis('batch', 1, 8, 64)
    """


@public
class DtypeError(InputError, TypeError):
    """An input's dtype is not the signature's and can't be cast to it without loss.

    >>> module(sample.double())
    Traceback (most recent call last):
    torch2engine.DtypeError: input 'x': got dtype float64; expected float32 (or float16, bfloat16, cast without loss);
    cast it yourself with .to(float32) if the loss is meant
    """


@public
class DeviceError(InputError):
    """An input lives on another device, or the engine was carried into a process that can't use it.

    >>> module(sample.to("meta"))
    Traceback (most recent call last):
    torch2engine.DeviceError: input 'x': got device meta; expected cpu, where the module runs; move it with .to('cpu')
    """


@public
class ArtifactError(Torch2EngineError):
    """A saved artifact is corrupt, of a foreign format, or made for other hardware or another TensorRT.

    Attributes:
        path: the file or folder that is at fault.

    >>> t2e.load("nowhere.t2e")
    Traceback (most recent call last):
    torch2engine.ArtifactError: artifact '...nowhere.t2e': got no such folder; expected a saved artifact's folder;
    give the folder that torch2engine saved
    """

    def __init__(self, subject: str, *, got: str = "", allowed: str = "", fix: str = "", path: str = "") -> None:
        self.path = path
        super().__init__(subject, got=got, allowed=allowed, fix=fix)


@public
class RefitError(Torch2EngineError):
    """Live weights can't be written into the engine: not covered, or the structure changed.

    >>> module.refit(model)
    Traceback (most recent call last):
    torch2engine.RefitError: ORTModule: got a module that was not deployed to be refitted; expected a module of
    deploy(..., config=BuildConfig(refittable=True)); deploy the model again with that
    """


def may_blame_engine(error: Exception) -> bool:
    """Whether an error may come from an engine that is wrong.

    False for the user's input, installation or wish to stop, and where memory is full: then the engine is as good as
    before.
    """
    if isinstance(error, (InputError, InstallationError, MemoryError)):
        return False
    if isinstance(error, BuildError) and (error.cancelled or error.out_of_memory):
        return False
    return type(error).__name__ != "OutOfMemoryError"  # PyTorch's, which this file does not load
