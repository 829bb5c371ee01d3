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
        """What was given and what would be right, as in the message: ``got X; expected Y``."""
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
    """TensorRT, the driver or the GPU is missing or mismatched; ``fix`` is the line that corrects it."""


@public
class ExportError(Torch2EngineError):
    """torch.export or the ONNX exporter could not express the model.

    Attributes:
        source: ``"FILE:LINE"`` of the user's code that stopped the export, or ``""`` if torch gave no line.
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
    ) -> None:
        self.log = tuple(map(without_terminal_codes, log))
        self.out_of_memory = out_of_memory
        super().__init__(subject, got=got, allowed=allowed, fix=fix)

    def _message(self) -> str:
        return "\n".join([super()._message(), *(f"  {line}" for line in self.log)])


@public
class PrecisionError(BuildError):
    """The engine, or the ONNX graph for it, does not compute in the requested precision."""


@public
class ParityError(Torch2EngineError):
    """A candidate does not answer like its reference.

    Attributes:
        report: the ParityReport with every figure; its table is part of the message.
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
    """

    def __init__(self, subject: str, *, got: str = "", allowed: str = "", fix: str = "", name: str = "") -> None:
        self.name = name
        super().__init__(subject, got=got, allowed=allowed, fix=fix)


@public
class ShapeError(InputError):
    """An input's rank or an axis is outside what the engine was built for."""


@public
class DtypeError(InputError, TypeError):
    """An input's dtype is not the signature's and can't be cast to it without loss."""


@public
class DeviceError(InputError):
    """An input lives on another device, or the engine was carried into a process that can't use it."""


@public
class ArtifactError(Torch2EngineError):
    """A saved artifact is corrupt, of a foreign format, or made for other hardware or another TensorRT.

    Attributes:
        path: the file or folder that is at fault.
    """

    def __init__(self, subject: str, *, got: str = "", allowed: str = "", fix: str = "", path: str = "") -> None:
        self.path = path
        super().__init__(subject, got=got, allowed=allowed, fix=fix)


@public
class RefitError(Torch2EngineError):
    """Live weights can't be written into the engine: not covered, or the structure changed."""
