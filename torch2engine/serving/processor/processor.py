"""`EngineArtifact` → `Processor`: numpy in, numpy out, without PyTorch.

Enters: numpy arrays, one call or an endless row of them. Leaves: numpy arrays that the caller alone holds. Separate
because a serving process needs neither PyTorch's gigabytes nor the three seconds of its import. A process that has
PyTorch loaded anyway takes TRTModule, whose tensors need not leave the GPU.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, cast

from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.core.config import RuntimeConfig, require_choice, require_instance
from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.core.spec import Signature
from torch2engine.core.wording import kind_of
from torch2engine.serving.processor.array_stream_executor import closed_error
from torch2engine.serving.processor.arrays import Array, check_call, input_layout, live_arrays, match_out
from torch2engine.serving.processor.batches import group_samples, plan_batches, stack_samples
from torch2engine.serving.processor.processor_session import ProcessorSession
from torch2engine.serving.processor.staging import PendingCall, Timings
from torch2engine.trt.gpu import current_gpu_index
from torch2engine.trt.local_hardware import choose_engine

__all__ = ["Processor", "Timings"]

Results = OrderedDict[str, Array]

ALLOCATIONS = ("max", "reuse", "exact")
_CALLS_PER_STREAM = 2  # calls that may be under way for each stream
_LEAST_DEPTH = 4  # of a stream of calls


class Processor:
    """A TensorRT engine that takes and gives numpy arrays.

    It works on a GPU's primary context through pycuda. Others may use that GPU in the same process, such as PyTorch.
    The calling thread's current context stays as it was. Threads may share it. Use it as a context manager, or `close`
    it, to give its memory back at once. A copy works on the same GPU. A pickle takes the engine along, with the kernels
    compiled so far, but no GPU: what comes out of it starts at its first use. It takes the GPU that is current in that
    thread, else the first one that the process sees.

    Args:
        source: the folder that `save` wrote, or the engine; of a bundle, the plan for the GPU is taken.
        device: the GPU's number as CUDA counts the visible devices.
        streams: how many calls may run at the same time on the GPU. Each stream has its own contexts and device memory,
            made when that many calls first overlap.
        allocation: of the memory that outputs are written to. "max": once, for the largest shapes that any profile
            allows. "reuse": as large as the shapes of all calls so far. "exact": on the device anew for every call,
            which keeps no memory, but waits for the GPU and excludes CUDA graphs.
        runtime_config: `contexts` and `max_shapes` count for each stream. `cuda_graphs` and `kernel_specialization` are
            as for a TRTModule; "auto" captures at the third call of every shape, if no other thread can wait for the
            GPU.

    Raises:
        ArtifactError: corrupt, foreign, made for other hardware or another version, or no engine.
        InstallationError: no such GPU, no TensorRT of its flavour, no pycuda; or the engine has bfloat16 or float8
            inputs or outputs, and ml_dtypes is not installed.
        InputError: an option that is not valid, or that a Processor does not have.
        BuildError: the GPU's memory is full.

    >>> def classify(folder, images):
    ...     with t2e.Processor(folder) as processor:  # on the first GPU
    ...         return processor.infer({"x": images})["output"].argmax(1)
    >>> t2e.Processor(onnx)
    Traceback (most recent call last):
    torch2engine.ArtifactError: artifact: got an exported model; expected an engine, which a Processor runs; build it
    with torch2engine.build(artifact), or serve it by torch2engine.load
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | EngineArtifact | BundleArtifact,
        device: int = 0,
        streams: int = 2,
        allocation: str = "max",
        runtime_config: RuntimeConfig = RuntimeConfig(),
    ) -> None:
        require_choice("Processor(allocation=...)", allocation, ALLOCATIONS)
        require_instance("runtime_config", runtime_config, RuntimeConfig)
        _check_int("device", device, 0)
        _check_int("streams", streams, 1)
        _check_config(runtime_config)
        self._take_options(_Options(_engine(source, device), streams, allocation, runtime_config), device)
        self._start()

    def _take_options(self, options: _Options, device: int | None) -> None:
        """Set the parts of a Processor that has not started."""
        self._options = options
        self._device = device
        self._live_arrays = live_arrays(options.artifact)
        self._call_slots = threading.BoundedSemaphore(_CALLS_PER_STREAM * options.streams)
        self._starting = ForkSafeLock()
        self._live: ProcessorSession | None = None
        self._end_session: Callable[[], object] | None = None
        self._is_closed = False

    def _start(self) -> ProcessorSession:
        """Make the engine live, once.

        Raises:
            InputError: closed.
            InstallationError, ArtifactError, BuildError: as the constructor.
        """
        with self._starting:
            if self._is_closed:
                raise closed_error()
            if self._live is None:
                device = self._device
                if device is None:
                    device = current_gpu_index() or 0
                made = self._options.session(device)
                # At the latest when Python ends, while CUDA is still there.
                self._end_session = weakref.finalize(self, made.close)
                self._live = made
            return self._live

    @property
    def _session(self) -> ProcessorSession:
        """The session, started at the first use of a Processor that came as a pickle."""
        return self._live or self._start()

    @property
    def _artifact(self) -> EngineArtifact:
        return self._options.artifact

    @property
    def device(self) -> int | None:
        """The GPU's number; None until a Processor that came as a pickle is used."""
        return self._device if self._live is None else self._live.cuda.index

    # A pickle has no device's number: on another host, or under CUDA_VISIBLE_DEVICES, it would mean another GPU.

    def __reduce__(self) -> tuple[Any, ...]:
        artifact = self._artifact if self._live is None else self.compiled()
        return _from_pickle, (replace(self._options, artifact=artifact),)

    def __copy__(self) -> Processor:
        return _not_started(self._options, self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Processor:
        return self.__copy__()

    @property
    def signature(self) -> Signature:
        """Names, dtypes, axes and structure of a call."""
        return self._artifact.signature

    @property
    def precision(self) -> str:
        """The arithmetic: a name of the table of precisions, e.g. "fp32" or "int8"."""
        return self._artifact.precision

    @property
    def last_inference_ms(self) -> float | None:
        """Milliseconds that the engine itself took in the inference that ended last; None before the first."""
        last = self.timings()
        return None if last is None else last.compute_ms

    def timings(self) -> Timings | None:
        """The times of the steps of the inference that ended last; None before the first."""
        return None if self._live is None else self._live.last

    def infer(self, inputs: object, out: object = None) -> Results:
        """Answer one call.

        Args:
            inputs: one array; a list or tuple of the arguments by position; or a dict of them by name (a nested
                input's own name, ``"batch.ids"``, will do). A dict may give live parameters other values than the
                saved ones. Any strides and byte order; dtypes as in the signature, or
                ones that cast to them without loss. Page-locked arrays (see `empty`) spare a copy.
            out: the caller's own arrays for the results, of the same dtypes and shapes: one array for a single output,
                a list with one for each, or a dict for some.

        Returns:
            output name -> array, in the signature's order: the arrays of `out`, and fresh ones that no later call
            changes.
            No input is written into: what the model would write there is an output (see `Signature.writes`).

        Raises:
            InputError: missing, extra or other arguments; arrays in `out` that can't be written to; or closed.
            ShapeError, DtypeError: the call can't be answered; nothing was enqueued.
            DeviceError: in a fork of the process that made the Processor.
            BuildError: TensorRT or the GPU fails, mostly because memory is short.
        """
        call = check_call(self.signature, self._artifact.profiles, inputs, self._live_arrays)
        out_arrays = match_out(self.signature, out)
        with self._call_slots:
            return self._session.finish(self._session.start(call, out_arrays, blocking=False))

    def infer_stream(self, items: Iterable[Any], depth: int | None = None) -> Generator[Results]:
        """Answer one call after the other, while the inputs of the next and the results of the last are copied.

        Calls of any shapes may follow each other. An item is staged before the next one is fetched, so a source may
        fill the same arrays anew each time. Page-locked arrays are the exception: they must stay as they are until
        their results are there.

        Args:
            items: what `infer` takes, each; fetched in the caller's thread, up to `depth` ahead.
            depth: how many calls may be under way, at least 1; each holds page-locked memory. None: two for each of the
                `streams`, one that computes and one that waits for it, but at least 4. More are of no use.

        Returns:
            the results in the order of the items, as `infer` gives them. An item that can't be fetched or answered
            raises its error after the results before it, and ends the generator. Closing it waits for calls under way.

        Raises:
            InputError: no positive depth, or nothing to iterate over.
        """
        depth = self._checked_depth(depth)
        try:
            source = iter(items)
        except TypeError as error:
            got = kind_of(items)
            raise InputError(
                "infer_stream",
                got=got,
                allowed="an iterable of what infer takes",
                fix="pass a list or a generator of them",
            ) from error
        return self._stream(source, depth)

    def _checked_depth(self, depth: int | None) -> int:
        """How many calls of a stream of them may be under way.

        Raises:
            InputError: no positive int.
        """
        if depth is None:
            return max(_LEAST_DEPTH, _CALLS_PER_STREAM * self._options.streams)
        _check_int("depth", depth, 1)
        return depth

    def _stream(self, source: Iterator[Any], depth: int) -> Generator[Results]:
        under_way: deque[PendingCall] = deque()
        error: Exception | None = None
        more = True
        try:
            while True:
                while more and len(under_way) < depth:
                    try:
                        call = check_call(self.signature, self._artifact.profiles, next(source), self._live_arrays)
                        under_way.append(self._session.start(call, {}, blocking=True))
                    except StopIteration:
                        more = False
                    except Exception as caught:
                        error = caught
                        more = False
                if not under_way:
                    break
                yield self._session.finish(under_way.popleft())
            if error is not None:
                raise error
        finally:
            error = None  # its traceback holds this frame
            while under_way:
                self._session.abandon(under_way.popleft())

    def map(self, dataset: Iterable[Any], batch_size: int, depth: int | None = None) -> Generator[Results]:
        """Answer samples in batches.

        Args:
            dataset: samples, each what `infer` takes but without dimension 0; an array is one of its rows.
            batch_size: how many samples go together. If the profiles allow no such batch, the nearest size that they
                allow, smaller rather than larger. Copies of the last sample fill up the last batch.
            depth: as for `infer_stream`, in batches.

        Returns:
            the results of one sample after the other, without dimension 0; those of a batch are parts of one array.
            An error is raised after the results of the batches before it.

        Raises:
            InputError: no positive number, or dimension 0 is not one axis of all inputs and outputs.
        """
        _check_int("batch_size", batch_size, 1)
        batches = plan_batches(self.signature, self._artifact.profiles, batch_size)
        depth = self._checked_depth(depth)
        counts: deque[int] = deque()

        def made() -> Generator[dict[str, Array]]:
            first = 0
            for group in group_samples(dataset, batches.size):
                batch = stack_samples(self.signature, group, first, batches.padded_size(len(group)))
                counts.append(len(group))
                first += len(group)
                yield batch

        def rows() -> Generator[Results]:
            with contextlib.closing(self.infer_stream(made(), depth)) as answers:
                for results in answers:
                    for index in range(counts.popleft()):
                        yield OrderedDict((name, array[index, ...]) for name, array in results.items())

        return rows()

    def empty(self, **sizes: int) -> Results:
        """Page-locked arrays for inputs: `infer` and `infer_stream` copy those of 768 KiB and more to the GPU without
        staging them.

        Args:
            sizes: of axes, by name; those left out take the first profile's opt.

        Returns:
            input name -> array, C-contiguous, with undefined values; freed with its last reference, even after the
            Processor is closed.

        Raises:
            InputError: no such axis, or closed.
            ShapeError: sizes that no profile allows.
        """
        self._session.engine().check_process()
        places = input_layout(self.signature, self._artifact.profiles, sizes)
        made: Results = OrderedDict()
        with self._session.cuda as cuda:
            for name, (dtype, shape) in places.items():
                count = 1
                for size in shape:
                    count *= size
                made[name] = cuda.pinned(count * dtype.itemsize).view(dtype).reshape(shape)
        return made

    def compiled(self) -> EngineArtifact:
        """The engine with the kernels that TensorRT-RTX compiled so far; saved, it starts in a fraction of the time.

        Raises:
            InputError: closed.
        """
        engine = self._session.engine()
        engine.check_process()
        with self._session.cuda:
            kernels = engine.runtime_cache()
        return self._artifact.with_runtime_cache(kernels) if kernels else self._artifact

    def close(self) -> None:
        """Wait for running calls and free everything; later calls raise InputError."""
        with self._starting:
            self._is_closed = True
        if self._end_session is not None:
            self._end_session()

    def __enter__(self) -> Processor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.signature.inputs))
        outputs = ", ".join(map(str, self.signature.outputs))
        return f"Processor({inputs} -> {outputs}; {self.precision}, device={self.device})"


@dataclass(frozen=True)
class _Options:
    """The arguments of a Processor, except for the GPU.

    Args:
        artifact: the engine.
        streams, allocation, runtime_config: as for `Processor`.
    """

    artifact: EngineArtifact
    streams: int
    allocation: str
    runtime_config: RuntimeConfig

    def session(self, device: int) -> ProcessorSession:
        """Make the engine live on a GPU."""
        return ProcessorSession(self.artifact, device, self.streams, self.allocation, self.runtime_config)


def _not_started(options: _Options, device: int | None) -> Processor:
    processor = Processor.__new__(Processor)
    processor._take_options(options, device)  # pyright: ignore[reportPrivateUsage]  # the same file
    return processor


def _from_pickle(options: _Options) -> Processor:
    return _not_started(options, None)


def _engine(source: object, device: int) -> EngineArtifact:
    """The engine, loaded if need be.

    Raises:
        ArtifactError: corrupt, foreign, or an exported model.
        InputError: neither a path nor an engine.
    """
    where = ""
    found = source
    if isinstance(source, (str, os.PathLike)):
        where = os.fspath(cast("os.PathLike[str]", source))
        found = load_artifact(where, to_run=True)
    if isinstance(found, BundleArtifact):
        found = choose_engine(found, device)
    if isinstance(found, (OnnxArtifact, PartsArtifact)):
        in_parts = isinstance(found, PartsArtifact)
        build = "" if in_parts else "build it with torch2engine.build(artifact), or "
        raise ArtifactError(
            f"artifact '{where}'" if where else "artifact",
            got="a model in parts, some of which PyTorch runs" if in_parts else "an exported model",
            allowed="an engine, which a Processor runs",
            fix=f"{build}serve it by torch2engine.load",
            path=where,
        )
    require_instance("Processor(source=...)", found, EngineArtifact)
    assert isinstance(found, EngineArtifact)
    return found


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(
            f"Processor, {name}", got=repr(value), allowed=f"an int of at least {least}", fix="pass such a number"
        )


def _check_config(config: RuntimeConfig) -> None:
    """Refuse options that would have no effect."""
    plain = RuntimeConfig()
    for name in ("streams", "output", "out_of_range", "shared_memory"):
        if getattr(config, name) != getattr(plain, name):
            raise InputError(
                f"RuntimeConfig.{name}",
                got=f"{getattr(config, name)!r} for a Processor",
                allowed="contexts, max_shapes, cuda_graphs and kernel_specialization",
                fix="pass streams= to the Processor itself" if name == "streams" else "leave it out",
            )
