"""A live engine → the kernels for several shapes, compiled by processes that work side by side.

Enters: an engine, on its GPU and on disk, and the calls that follow. Leaves: nothing; the engine has the kernels.
Separate because TensorRT-RTX compiles for seconds at an engine's first context, at each profile and at each new shape,
and inside one process it lets no two threads do so. What fails here costs time alone: the engine compiles at its calls
what it lacks.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.builder.child_process import BuilderProcess
from torch2engine.builder.kernels import KernelRequest
from torch2engine.core.errors import BuildError, Torch2EngineError
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.core.progress import Progress, Reporter, reporting
from torch2engine.trt.engine import Engine
from torch2engine.trt.gpu import free_memory_bytes

__all__ = ["Call", "compile_beside"]

Call: TypeAlias = "tuple[int, Sequence[Sequence[int]]]"
"""The index of a profile, and the inputs' shapes."""

_logger = logging.getLogger("torch2engine.deploy")
_MOST_PROCESSES = 8
_PROCESS_BYTES = 3 * 2**29  # of device memory: a CUDA context, and what an inference works in
_PROCESS_HOST_BYTES = 2**31  # libraries, and what the compiler of kernels works in
_MOST_OF_MEMORY = 0.5  # of what is free
# A process that takes much longer than the first context is waited for no more: the engine compiles by itself.
_LEAST_LIMIT_S = 20.0
_LIMIT_IN_CONTEXTS = 4


@dataclass(frozen=True)
class _Part:
    """A process, and the file that it writes."""

    process: BuilderProcess
    path: Path


def compile_beside(
    engine: Engine, artifact: EngineArtifact, gpu_index: int, calls: Sequence[Call], progress: Progress = None
) -> None:
    """Compile the kernels of an engine for some calls, in several processes.

    This process makes the engine's first context, whose kernels all calls need. Meanwhile the others open the engine.
    Not so for "tf32": this process would compile float32 kernels (see `core.tf32`). At least one other process compiles
    them all.

    Args:
        engine: live, on the current GPU.
        artifact: the same, with its plan on disk.
        gpu_index: the GPU, as CUDA counts.
        calls: those that follow; equal ones count once.
        progress: as for `build`.

    Raises:
        BuildError: progress returned False.
    """
    distinct = list({repr(call): call for call in calls}.values())
    count = min(len(distinct), _possible_processes(artifact))
    uses_tf32 = PRECISION_TYPES[artifact.precision].uses_tf32
    if uses_tf32:
        count = max(count, 1)
    elif count < 2:
        return
    with ExitStack() as stack, reporting(progress) as on_progress:
        folder = Path(stack.enter_context(scratch_folder()))
        parts: list[_Part] = []
        try:
            for number in range(count):
                process = stack.enter_context(BuilderProcess(artifact.precision))
                parts.append(_Part(process, folder / f"{number}.kernels"))
                process.send(_request(artifact, gpu_index, distinct[number::count], folder, parts[-1].path))
            limit_s = None if uses_tf32 else _seconds_of_context(engine) * len(distinct) / count + _LEAST_LIMIT_S
            (folder / "known").write_bytes(engine.runtime_cache())
            _take_kernels(engine, parts, Reporter("kernels", on_progress), limit_s)
        except (Torch2EngineError, OSError) as error:
            if isinstance(error, BuildError) and error.cancelled:
                raise
            _logger.info("kernels are compiled at the first calls: %s", error)


def _seconds_of_context(engine: Engine) -> float:
    """Make a first context, and give the time in which a process has compiled the kernels of one call."""
    start = time.monotonic()
    engine.make_context()
    return _LIMIT_IN_CONTEXTS * (time.monotonic() - start)


def _possible_processes(artifact: EngineArtifact) -> int:
    """How many processes the machine has means for: idle cores, memory of the host and of the current GPU.

    Other processes may deploy at the same time, such as the ranks of a training. Their work counts in the load.
    """
    idle_cores = len(os.sched_getaffinity(0)) - 1 - math.ceil(os.getloadavg()[0])
    model_bytes = 2 * artifact.model_bytes
    on_gpu = int(_MOST_OF_MEMORY * free_memory_bytes() // (model_bytes + _PROCESS_BYTES))
    on_host = int(_MOST_OF_MEMORY * _free_host_bytes() // (model_bytes + _PROCESS_HOST_BYTES))
    return min(_MOST_PROCESSES, idle_cores, on_gpu, on_host)


def _free_host_bytes() -> int:
    """Host memory that new processes may take (MemAvailable of Linux), within the limit of this process's group."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # no cgroup of version 2, or one without a limit ("max")
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text("ascii"))
        available = min(available, limit - int((folder / "memory.current").read_text("ascii")))
    return max(available, 0)


def _request(
    artifact: EngineArtifact, gpu_index: int, calls: Sequence[Call], folder: Path, path: Path
) -> KernelRequest:
    return KernelRequest(
        folder=str(artifact.plan_path.parent),
        plan_sha256=artifact.plan_sha256,
        signature=artifact.signature,
        profiles=artifact.profiles,
        precision=artifact.precision,
        flavour=artifact.hardware.flavour,
        calls=calls,
        gpu_index=gpu_index,
        known_path=str(folder / "known"),
        kernels_path=str(path),
        log_level=logging.getLogger("torch2engine.tensorrt").getEffectiveLevel(),
    )


def _take_kernels(engine: Engine, parts: Sequence[_Part], report: Reporter, limit_s: float | None) -> None:
    """Let the processes compile, and add what they have compiled, each within so many seconds if there is a limit."""
    for part in parts:
        part.process.go_on()
    for number, part in enumerate(parts):
        report("kernels", number, len(parts))
        part.process.receive(report, limit_s)
        engine.add_kernels(part.path.read_bytes())
    report("kernels", len(parts), len(parts))
