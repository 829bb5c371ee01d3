"""An engine with its stream executors and staging buffers: calls start and finish here, and all memory is freed here.

Enters: checked calls. Leaves: results as arrays that the caller alone holds. Separate from the Processor because a
session must be freed in order, at the latest when Python ends. A Processor may be dropped at any time.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from time import perf_counter

import numpy as np

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.serving.processor.array_stream_executor import ArrayStreamExecutor, InitialBytes, closed_error
from torch2engine.serving.processor.arrays import Array, CheckedCall, numpy_dtype
from torch2engine.serving.processor.cuda import find_cuda
from torch2engine.serving.processor.host_copy import HostCopier
from torch2engine.serving.processor.staging import PendingCall, StagingBuffers, Timings, make_layout
from torch2engine.trt.context import Context
from torch2engine.trt.engine import Engine
from torch2engine.trt.gpu import relaxed_capture_mode
from torch2engine.trt.live_engines import live_engine

__all__ = ["ProcessorSession"]

_LARGE_BYTES = 3 << 18  # smaller copies cost as much as the question to CUDA whether memory is page-locked
_LEAST_SPARE_BUFFERS = 8


class ProcessorSession:
    """A live engine that takes arrays; threads may share it.

    Args:
        artifact: the engine.
        index: the device's number.
        streams: how many calls may run side by side on the GPU.
        allocation: "max", "reuse" or "exact".
        config: limits, CUDA graphs and kernel specialisation.

    Raises:
        InstallationError, ArtifactError, InputError: as `Engine`; no pycuda; or a dtype that numpy can't hold.
    """

    def __init__(
        self, artifact: EngineArtifact, index: int, streams: int, allocation: str, config: RuntimeConfig
    ) -> None:
        signature = artifact.signature
        self._dtypes = [numpy_dtype(spec) for spec in signature.inputs]
        for spec in signature.outputs:
            numpy_dtype(spec)
        self.cuda = find_cuda(index)
        self._copier = HostCopier()
        # The garbage collector may close a generator of calls in a thread that holds the lock.
        self._lock = threading.RLock()
        self._spare_staging: list[StagingBuffers] = []
        # The key says whether a wait for the buffers' events blocks:
        self._max_spare = {blocking: max(_LEAST_SPARE_BUFFERS, 2 * streams) for blocking in (True, False)}
        self._in_use = {True: 0, False: 0}
        self._initial = InitialBytes()
        self.last: Timings | None = None
        self._executors: list[ArrayStreamExecutor] = []
        self._engine: Engine | None = None
        with self.cuda:
            self._engine = engine = live_engine(artifact, index, config.kernel_specialization)
            contexts: list[Context] = []
            if allocation == "max":
                contexts.append(engine.make_context())
                self._initial = self._bytes_of_largest_call(contexts[0], engine, artifact)
            for _ in range(streams):
                executor = ArrayStreamExecutor(engine, self.cuda, config, allocation, self._initial, contexts)
                self._executors.append(executor)
                contexts = []

    def _bytes_of_largest_call(self, context: Context, engine: Engine, artifact: EngineArtifact) -> InitialBytes:
        """Find out how much memory the largest call of any profile takes."""
        stream = self.cuda.stream()
        largest = InitialBytes()
        dtypes = [numpy_dtype(spec) for spec in engine.outputs]
        for number, profile in enumerate(artifact.profiles):
            shapes = [spec.sized(profile.sizes(2)) for spec in artifact.signature.inputs]
            output_shapes = context.set_shapes(number, shapes, stream.handle)
            known = [shape if min(shape, default=0) >= 0 else (0,) for shape in output_shapes]
            inputs = [_bytes(shape, dtype) for shape, dtype in zip(shapes, self._dtypes, strict=True)]
            outputs = [_bytes(shape, dtype) for shape, dtype in zip(known, dtypes, strict=True)]
            largest = InitialBytes(
                max(largest.inputs, make_layout(inputs).total), max(largest.outputs, make_layout(outputs).total)
            )
        stream.wait()
        return largest

    def start(self, call: CheckedCall, out: Mapping[str, Array], blocking: bool) -> PendingCall:
        """Enqueue a call; the caller's arrays may change afterwards, unless they are large and page-locked.

        Args:
            call: checked.
            out: the caller's own arrays for outputs, as `match_out` gives them.
            blocking: whether `finish` sleeps rather than spins.

        Raises:
            InputError, ShapeError, DtypeError: closed, or arrays that don't take the outputs.
            DeviceError: in a fork.
            BuildError: TensorRT or the driver refuses; nothing of the call is running any more.
        """
        self.engine().check_process()
        began = perf_counter()
        with self.cuda:
            staging = self._take_staging(blocking)
            executor: ArrayStreamExecutor | None = None
            try:
                pending = self._stage(call, dict(out), staging, began)
                executor = self._choose_executor()
                pending.executor = executor
                with executor.lock:
                    executor.run(pending)
            except BaseException:
                self._give_back(staging, executor)
                raise
        return pending

    def engine(self) -> Engine:
        """The engine.

        Raises:
            InputError: it was closed.
        """
        engine = self._engine
        if engine is None:
            raise closed_error()
        return engine

    def _stage(self, call: CheckedCall, out: dict[str, Array], staging: StagingBuffers, began: float) -> PendingCall:
        """Copy the inputs that are not page-locked themselves into page-locked memory."""
        inputs = make_layout([_bytes(shape, dtype) for shape, dtype in zip(call.shapes, self._dtypes, strict=True)])
        direct: list[int] = []
        for index, (array, dtype) in enumerate(zip(call.arrays, self._dtypes, strict=True)):
            large = array.nbytes >= _LARGE_BYTES and array.dtype == dtype and array.flags.c_contiguous
            if large and self.cuda.is_pinned(array):
                direct.append(index)
        staged = [index for index in range(len(call.arrays)) if index not in direct]
        if staged:
            staging.reserve(max(inputs.total, self._initial.inputs), self._initial.outputs)
        pairs: list[tuple[Array, Array]] = []
        for index in staged:
            offset = inputs.offsets[index]
            size = inputs.sizes[index]
            array = call.arrays[index]
            target = staging.inputs[offset : offset + size].view(self._dtypes[index]).reshape(array.shape)
            pairs.append((target, array))
        self._copier.copy(pairs)
        return PendingCall(call, staging, out, began, inputs, frozenset(direct))

    def finish(self, pending: PendingCall) -> OrderedDict[str, Array]:
        """Wait for a call and return its outputs; call it once.

        Raises:
            BuildError: the GPU failed.
        """
        with self.cuda:
            try:
                pending.staging.done.wait()
                waited = perf_counter() - pending.began
                results: OrderedDict[str, Array] = OrderedDict()
                pairs: list[tuple[Array, Array]] = []
                for result in pending.results:
                    target = np.empty(result.shape, result.dtype) if result.target is None else result.target
                    results[result.name] = target
                    if result.staged is not None:
                        size = target.size * result.dtype.itemsize
                        pairs.append((target, result.staged[:size].view(result.dtype).reshape(result.shape)))
                self._copier.copy(pairs)
                self.last = pending.staging.timings(waited)
            finally:
                self._end(pending)
        return results

    def abandon(self, pending: PendingCall) -> None:
        """Wait for a call and forget it."""
        with self.cuda:
            with contextlib.suppress(Exception):
                pending.staging.done.wait()
            self._end(pending)

    def _end(self, pending: PendingCall) -> None:
        pending.device_memory.clear()
        pending.results.clear()
        self._give_back(pending.staging, pending.executor)

    # Which call gets which executor and which staging buffers.

    def _choose_executor(self) -> ArrayStreamExecutor:
        """The executor with the fewest calls, so that its copies overlap with another one's computing.

        Among equals it is the first, whose contexts are in the caches.
        """
        with self._lock:
            if not self._executors:
                raise closed_error()
            executor = min(self._executors, key=lambda one: one.waiting)
            executor.waiting += 1
            return executor

    def _take_staging(self, blocking: bool) -> StagingBuffers:
        with self._lock:
            for index, staging in enumerate(self._spare_staging):
                if staging.blocking is blocking:
                    self._count_use(blocking)
                    return self._spare_staging.pop(index)
        staging = StagingBuffers(self.cuda, blocking)
        with self._lock:
            self._count_use(blocking)
        return staging

    def _count_use(self, blocking: bool) -> None:
        self._in_use[blocking] += 1
        # So many calls may overlap again later, and then need no new buffers.
        self._max_spare[blocking] = max(self._max_spare[blocking], self._in_use[blocking])

    def _give_back(self, staging: StagingBuffers, executor: ArrayStreamExecutor | None) -> None:
        with self._lock:
            if executor is not None:
                executor.waiting -= 1
            self._in_use[staging.blocking] -= 1
            spare = sum(one.blocking is staging.blocking for one in self._spare_staging)
            if self._executors and spare < self._max_spare[staging.blocking]:
                self._spare_staging.append(staging)

    def close(self) -> None:
        """Wait for running work and free everything; running calls still get their results."""
        if self.cuda.is_gone:
            return
        with self._lock:
            executors = list(self._executors)
            self._executors.clear()
            spare_staging = list(self._spare_staging)
            self._spare_staging.clear()
        self._copier.close()
        with self.cuda, relaxed_capture_mode():
            for executor in executors:
                with executor.lock, contextlib.suppress(Exception):  # the other resources are freed nevertheless
                    executor.close()
                del executor
            executors.clear()
            spare_staging.clear()
            self._engine = None  # freed here, where its device is current


def _bytes(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    return math.prod(shape) * dtype.itemsize
