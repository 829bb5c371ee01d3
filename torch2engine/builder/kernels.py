"""Some shapes of an engine → the kernels that TensorRT-RTX compiles for them.

Enters: a `KernelRequest`. Leaves: a file with the kernels, as `Engine.runtime_cache` gives them. Separate because
TensorRT-RTX compiles the kernels of one process one after another. It runs in several child processes (see
`kernel_processes`), so it imports no torch.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.builder.plan import decode_fields, encode_fields
from torch2engine.core.errors import BuildError
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.core.spec import Profile, Signature
from torch2engine.trt.bindings import find_tensorrt
from torch2engine.trt.context import Context
from torch2engine.trt.engine import Engine
from torch2engine.trt.gpu import load_driver, make_gpu_current, require_gpu
from torch2engine.trt.local_hardware import hardware_of

__all__ = ["KernelRequest", "compile_kernels", "open_engine"]

_MOST_BYTES_PER_ELEMENT = 8
_NON_BLOCKING = 1  # CUstream_flags of cuda.h


@dataclass(frozen=True, kw_only=True)
class KernelRequest:
    """Everything that a child process must know to compile the kernels of some shapes.

    Args:
        folder: holds model.plan.
        plan_sha256: the plan's hash.
        signature, profiles, precision: the engine's.
        flavour: the TensorRT that has built it.
        calls: the index of a profile, and the inputs' shapes, of each inference.
        gpu_index: the device, as CUDA counts.
        known_path: a file with the kernels that are compiled already. It is there when the process is told to go on.
        kernels_path: the file to write all kernels to.
        log_level: as in `PlanRequest`.
    """

    folder: str
    plan_sha256: str
    signature: Signature
    profiles: tuple[Profile, ...]
    precision: str
    flavour: str
    calls: Sequence[tuple[int, Sequence[Sequence[int]]]]
    gpu_index: int
    known_path: str
    kernels_path: str
    log_level: int

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return encode_fields(vars(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> KernelRequest:
        """The inverse of `to_json`."""
        fields = decode_fields(data)
        fields["calls"] = [(profile, shapes) for profile, shapes in data["calls"]]
        return cls(**fields)


def open_engine(request: KernelRequest) -> Engine:
    """Deserialise the engine.

    Raises:
        ArtifactError, InstallationError: TensorRT refuses the plan here.
        BuildError: there is no memory, or the plan is another one than requested.
    """
    make_gpu_current(request.gpu_index)
    artifact = EngineArtifact(
        request.folder,
        hardware=hardware_of(find_tensorrt(request.flavour), require_gpu(request.gpu_index)),
        signature=request.signature,
        profiles=request.profiles,
        precision=request.precision,
    )
    if artifact.plan_sha256 != request.plan_sha256:
        raise BuildError("kernels", got="a plan that has changed", allowed="the one that was built", fix="build again")
    return Engine(artifact, request.gpu_index, compiles_tf32=PRECISION_TYPES[request.precision].uses_tf32)


def compile_kernels(engine: Engine, request: KernelRequest) -> None:
    """Compile the kernels by one inference at each of the shapes, and write them to their file.

    Raises:
        BuildError: there is no memory, or TensorRT refuses.
    """
    engine.add_kernels(Path(request.known_path).read_bytes())
    driver = _Driver()
    for profile, shapes in request.calls:
        _run_once(driver, engine.make_context(), profile, shapes)
    Path(request.kernels_path).write_bytes(engine.runtime_cache())


def _run_once(driver: _Driver, context: Context, profile: int, shapes: Sequence[Sequence[int]]) -> None:
    """Answer zeros at these shapes. The device memory is the process's, and ends with it."""
    stream = driver.stream()
    outputs = context.set_shapes(profile, shapes, stream)
    if any(size < 0 for shape in outputs for size in shape):
        return  # its values decide shapes; what is compiled so far is enough
    size = context.memory_bytes()
    context.set_memory(driver.zeros(size), size)
    context.bind([driver.zeros(math.prod(shape) * _MOST_BYTES_PER_ELEMENT) for shape in (*shapes, *outputs)])
    context.enqueue(stream)
    driver.wait(stream)


class _Driver:
    """Device memory and streams of a process that lives for one inference."""

    def __init__(self) -> None:
        self._cuda = load_driver()

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise BuildError("kernels", got=f"CUDA's error {status} from {name}", allowed="success")

    def stream(self) -> int:
        """A stream's handle."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
        return int(handle.value or 0)

    def zeros(self, size_bytes: int) -> int:
        """The address of new memory that is all zero."""
        address = ctypes.c_uint64()
        size = ctypes.c_size_t(max(size_bytes, 1))
        self._call("cuMemAlloc_v2", ctypes.byref(address), size)
        self._call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), size)
        return address.value

    def wait(self, stream: int) -> None:
        """Wait for the work of a stream."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))
