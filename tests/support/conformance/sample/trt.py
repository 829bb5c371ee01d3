"""The sample's door: annotation names, the TensorRT value, and helpers that pass TensorRT's objects on."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

Builder: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
ILogger: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
IProgressMonitor: TypeAlias = Any
IRuntimeCache: TypeAlias = Any
IRuntimeConfig: TypeAlias = Any
ITensor: TypeAlias = Any

T = TypeVar("T")

DTYPES = {"float32": "FLOAT", "float16": "HALF"}


@dataclass(frozen=True)
class TensorRT:
    """An installed TensorRT."""

    api: Any
    is_rtx: bool
    logger: ILogger

    def has(self, member: str) -> bool:
        """Tell whether the bindings have a class or a member."""
        return hasattr(self.api, member)

    def dtypes(self) -> list[Any]:
        """Give a DataType for every name of the table."""
        return [getattr(self.api.DataType, member) for member in DTYPES.values()]


def find(name: str) -> TensorRT:
    """Import the bindings."""
    api = importlib.import_module(name)
    is_rtx = hasattr(api, "CudaGraphStrategy")

    class Logger(api.ILogger):
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity == api.ILogger.Severity.ERROR:
                raise ValueError(severity.name + msg)

    return TensorRT(api=api, is_rtx=is_rtx, logger=Logger())


def check(value: Any, what: str) -> Any:
    """Refuse None and False."""
    if value is None or value is False:
        raise ValueError(what)
    return value


def present(value: T | None) -> T:
    """Refuse None."""
    if value is None:
        raise ValueError
    return value
