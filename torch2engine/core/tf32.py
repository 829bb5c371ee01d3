"""`NVIDIA_TF32_OVERRIDE`, the variable by which TensorRT chooses float32 or TF32, set where TensorRT reads it.

Enters: a precision. Leaves: a builder process's environment, or a moment in which TensorRT reads the right value.
Separate because this is the only place that writes the environment.

TensorRT-RTX 1.6.1 reads the variable in two ways (H200):

- Whenever an engine is deserialised, inspected or refitted, or gets a context or another profile. It refuses a value
  other than the build's: "Inconsistent setting of NVIDIA_TF32_OVERRIDE".
- Once in a process, when the first kernels are compiled or read. This value decides how every engine of the process
  compiles its float32 kernels from then on, whatever the engine was built for. Kernels that were compiled before keep
  their arithmetic. A process that meets a "tf32" engine first would compute its "fp32" engines in TF32.

So a process of ours reads "0" the first time: what it compiles is float32. The kernels of a "tf32" engine are compiled
by processes of their own (`builder.kernel_processes`).
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.core.precisions import PRECISION_TYPES

__all__ = ["builder_environment", "float32_arithmetic"]

_VARIABLE = "NVIDIA_TF32_OVERRIDE"
_WRITE_LOCK = ForkSafeLock()


def builder_environment(precision: str) -> dict[str, str]:
    """Make the environment of a process that builds an engine; it forbids TF32 unless the precision is "tf32".

    TensorRT-RTX 1.6.1 ignores the builder's TF32 flag. It reads the variable when it builds.

    Args:
        precision: of the engine, e.g. "fp32" or "fp16".
    """
    environment = dict(os.environ)
    value = _value_for(precision)
    environment.pop(_VARIABLE, None)
    return environment if value is None else {**environment, _VARIABLE: value}


@contextmanager
def float32_arithmetic(precision: str) -> Generator[None]:
    """Let TensorRT find the variable that an engine of this precision needs, while the body runs.

    The variable is written for C alone: `os.environ`, which other threads may be reading, stays as it is. Threads wait
    for one another.

    Args:
        precision: of the engine.
    """
    with _WRITE_LOCK:
        user_value = os.environ.get(_VARIABLE)
        value = _value_for(precision)
        if value == user_value:
            yield
            return
        try:
            _write(value)
            yield
        finally:
            _write(user_value)


def _value_for(precision: str) -> str | None:
    return None if PRECISION_TYPES[precision].uses_tf32 else "0"


def _write(value: str | None) -> None:
    if value is None:
        os.unsetenv(_VARIABLE)
    else:
        os.putenv(_VARIABLE, value)
