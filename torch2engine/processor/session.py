"""An engine with its lanes and tickets: calls are started and finished here, and everything is given back.

Enters: checked calls. Leaves: results as arrays that are the caller's own. Apart from `processor` because this is what
must be given back in order, at the latest when Python ends, while the Processor that holds it may be dropped anyhow.
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
from torch2engine.processor import cuda
from torch2engine.processor.arrays import Array, Call, numpy_dtype
from torch2engine.processor.host_copy import Copier
from torch2engine.processor.staging import Job, Ticket, Timings, layout
from torch2engine.processor.stream_executor import Lane, Room, closed
from torch2engine.trt.context import Context
from torch2engine.trt.engine import Engine
from torch2engine.trt.gpu import relaxed_capture_mode

__all__ = ["Pipeline"]

_LARGE_BYTES = 3 << 18  # below that a copy costs about what asking CUDA whether it is needed does
_LEAST_TICKETS = 8


class Pipeline:
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
        self.cuda = cuda.find(index)
        self._copier = Copier()
        # The garbage collector may end a stream of calls in a thread that holds it.
        self._lock = threading.RLock()
        self._tickets: list[Ticket] = []
        self._kept = {blocking: max(_LEAST_TICKETS, 2 * streams) for blocking in (True, False)}
        self._under_way = {True: 0, False: 0}
        self._room = Room()
        self.last: Timings | None = None
        self._lanes: list[Lane] = []
        self._engine: Engine | None = None
        with self.cuda:
            self._engine = engine = Engine(artifact, index, config.kernel_specialization)
            spare = self._reserve(engine, artifact) if allocation == "max" else []
            for _ in range(streams):
                self._lanes.append(Lane(engine, self.cuda, config, allocation, self._room, spare))
                spare = []

    def _reserve(self, engine: Engine, artifact: EngineArtifact) -> list[Context]:
        """Find out how much the largest call of any profile takes; gives the context that told it."""
        context, stream = engine.make_context(), self.cuda.stream()
        dtypes = [numpy_dtype(spec) for spec in engine.outputs]
        for number, profile in enumerate(artifact.profiles):
            shapes = [spec.sized(profile.sizes(2)) for spec in artifact.signature.inputs]
            found = context.set_shapes(number, shapes, stream.handle)
            known = [shape if min(shape, default=0) >= 0 else (0,) for shape in found]
            inputs = [_bytes(shape, dtype) for shape, dtype in zip(shapes, self._dtypes, strict=True)]
            outputs = [_bytes(shape, dtype) for shape, dtype in zip(known, dtypes, strict=True)]
            self._room.inputs = max(self._room.inputs, layout(inputs).total)
            self._room.outputs = max(self._room.outputs, layout(outputs).total)
        stream.wait()
        return [context]

    def start(self, call: Call, out: Mapping[str, Array], blocking: bool) -> Job:
        """Enqueue a call; the caller's arrays may change afterwards, unless they are large and page-locked.

        Args:
            call: checked.
            out: the caller's own arrays for outputs, as `read_out` gives them.
            blocking: whether `finish` sleeps rather than spins.

        Raises:
            InputError, ShapeError, DtypeError: closed, or arrays that don't take the outputs.
            DeviceError: in a fork.
            BuildError: TensorRT or the driver refuses; nothing of the call is running any more.
        """
        self.engine().check_process()
        began = perf_counter()
        with self.cuda:
            ticket = self._take(blocking)
            lane: Lane | None = None
            try:
                job = self._staged(call, dict(out), ticket, began)
                lane = self._choose()
                job.lane = lane
                with lane.lock:
                    lane.run(job)
            except BaseException:
                self._give_back(ticket, lane)
                raise
        return job

    def engine(self) -> Engine:
        """The engine.

        Raises:
            InputError: it was closed.
        """
        engine = self._engine
        if engine is None:
            raise closed()
        return engine

    def _staged(self, call: Call, out: dict[str, Array], ticket: Ticket, began: float) -> Job:
        """Copy what is not page-locked already into the ticket's memory."""
        inputs = layout([_bytes(shape, dtype) for shape, dtype in zip(call.shapes, self._dtypes, strict=True)])
        direct: list[int] = []
        for index, (array, dtype) in enumerate(zip(call.arrays, self._dtypes, strict=True)):
            large = array.nbytes >= _LARGE_BYTES and array.dtype == dtype and array.flags.c_contiguous
            if large and self.cuda.is_pinned(array):
                direct.append(index)
        rest = [index for index in range(len(call.arrays)) if index not in direct]
        if rest:
            ticket.make_room(max(inputs.total, self._room.inputs), self._room.outputs)
        pairs: list[tuple[Array, Array]] = []
        for index in rest:
            offset, size, array = inputs.offsets[index], inputs.sizes[index], call.arrays[index]
            target = ticket.inputs[offset : offset + size].view(self._dtypes[index]).reshape(array.shape)
            pairs.append((target, array))
        self._copier.copy(pairs)
        return Job(call, ticket, out, began, inputs, frozenset(direct))

    def finish(self, job: Job) -> OrderedDict[str, Array]:
        """Wait for a call and give its outputs; once a job.

        Raises:
            BuildError: the GPU failed.
        """
        with self.cuda:
            try:
                job.ticket.done.wait()
                waited = perf_counter() - job.began
                results: OrderedDict[str, Array] = OrderedDict()
                pairs: list[tuple[Array, Array]] = []
                for one in job.results:
                    target = np.empty(one.shape, one.dtype) if one.target is None else one.target
                    results[one.name] = target
                    if one.staged is not None:
                        size = target.size * one.dtype.itemsize
                        pairs.append((target, one.staged[:size].view(one.dtype).reshape(one.shape)))
                self._copier.copy(pairs)
                self.last = job.ticket.timings(waited)
            finally:
                self._end(job)
        return results

    def abandon(self, job: Job) -> None:
        """Wait for a call and forget it."""
        with self.cuda:
            with contextlib.suppress(Exception):
                job.ticket.done.wait()
            self._end(job)

    def _end(self, job: Job) -> None:
        job.kept.clear()
        job.results.clear()
        self._give_back(job.ticket, job.lane)

    # Who gets which lane and which ticket.

    def _choose(self) -> Lane:
        """The lane with the fewest calls; of several the first, whose contexts the caches know."""
        with self._lock:
            if not self._lanes:
                raise closed()
            lane = min(self._lanes, key=lambda lane: lane.waiting)
            lane.waiting += 1
            return lane

    def _take(self, blocking: bool) -> Ticket:
        with self._lock:
            for index, ticket in enumerate(self._tickets):
                if ticket.blocking is blocking:
                    self._count(blocking)
                    return self._tickets.pop(index)
        ticket = Ticket(self.cuda, blocking)
        with self._lock:
            self._count(blocking)
        return ticket

    def _count(self, blocking: bool) -> None:
        self._under_way[blocking] += 1
        self._kept[blocking] = max(self._kept[blocking], self._under_way[blocking])  # so many may come again

    def _give_back(self, ticket: Ticket, lane: Lane | None) -> None:
        with self._lock:
            if lane is not None:
                lane.waiting -= 1
            self._under_way[ticket.blocking] -= 1
            alike = sum(one.blocking is ticket.blocking for one in self._tickets)
            if self._lanes and alike < self._kept[ticket.blocking]:
                self._tickets.append(ticket)

    def close(self) -> None:
        """Wait for what is running and give everything back; calls under way still get their results."""
        if self.cuda.is_gone:
            return
        with self._lock:
            lanes, self._lanes = self._lanes, []
            tickets, self._tickets = self._tickets, []
        self._copier.close()
        with self.cuda, relaxed_capture_mode():
            for lane in lanes:
                with lane.lock, contextlib.suppress(Exception):  # the others are given back all the same
                    lane.close()
            lanes.clear()
            tickets.clear()
            self._engine = None  # here, where its device is current


def _bytes(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    return math.prod(shape) * dtype.itemsize
