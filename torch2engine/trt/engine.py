"""`EngineArtifact` → `Engine`: deserialised on one device, a maker of execution contexts.

Enters: a plan whose hashes were checked. Leaves: contexts that are enqueued by address, and the kernels that
TensorRT-RTX compiled for them. Separate, and without torch, because PyTorch and pycuda may both own the memory and the
streams that its contexts use.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.core.constants import BUILDER_CONSTANT
from torch2engine.core.errors import ArtifactError, DeviceError, InputError, RefitError
from torch2engine.core.precisions import DEFAULT_PRECISION
from torch2engine.core.spec import TensorSpec
from torch2engine.core.tf32 import float32_arithmetic
from torch2engine.trt.bindings import (
    EngineInspector,
    ICudaEngine,
    IExecutionContext,
    IHostMemory,
    IRuntimeCache,
    IRuntimeConfig,
    Refitter,
    Runtime,
    Weights,
    check_return_value,
    find_tensorrt,
)
from torch2engine.trt.context import Context
from torch2engine.trt.engine_agreement import check_engine
from torch2engine.trt.gpu import require_gpu
from torch2engine.trt.local_hardware import hardware_of

__all__ = ["Engine"]

_logger = logging.getLogger("torch2engine.runtime")
_TENSORRT_OBJECTS = ("_refitter", "_config", "_cache", "_engine", "_runtime")  # in the order of their destruction


class Engine:
    """A deserialised engine on one device.

    The caller makes the device current around every call. Threads may share it.

    Args:
        artifact: the engine; its hashes were checked when it was loaded. With a runtime cache for this GPU and driver,
            TensorRT-RTX does not compile its kernels again.
        index: the device's number as CUDA counts the visible devices.
        kernel_specialization: "none", "lazy" or "eager", as in `RuntimeConfig`.
        compiles_tf32: whether this process compiles a "tf32" engine's kernels in TF32. It then does so for every engine
            (see `core.tf32`). Else those kernels that the artifact lacks are float32: right, and slower.

    Raises:
        InstallationError: no such GPU, or no TensorRT of the artifact's flavour.
        ArtifactError: made for other hardware or another version, or TensorRT refuses the plan.
        InputError: a kernel_specialization that this TensorRT does not have.
    """

    def __init__(
        self,
        artifact: EngineArtifact,
        index: int,
        kernel_specialization: str = "none",
        *,
        compiles_tf32: bool = False,
    ) -> None:
        self._process: int | None = None  # until there is something to give back
        gpu = require_gpu(index)
        hardware = artifact.hardware
        rt = find_tensorrt(hardware.flavour)
        artifact.check_hardware(hardware_of(rt, gpu))
        self.signature = artifact.signature
        self._precision = artifact.precision
        self._kernel_precision = artifact.precision if compiles_tf32 else DEFAULT_PRECISION
        self._rt = rt
        mark = rt.log.mark()
        self._runtime: Runtime = rt.api.Runtime(rt.logger)
        plan = artifact.plan_buffer()
        with rt.call_lock, float32_arithmetic(self._precision):
            made = self._runtime.deserialize_cuda_engine(plan)
        self._engine: ICudaEngine = check_return_value(
            made,
            f"plan for {hardware.gpu or 'unknown GPU'} on {gpu.name}",
            rt,
            error=ArtifactError,
            since=mark,
            fix="build it again on this machine",
        )
        self._process = os.getpid()
        self.inputs, self.outputs = self._tensors(artifact)
        self._cache: IRuntimeCache = None
        self._refitter: Refitter = None
        self._layers = ""  # as the inspector gave them
        with rt.call_lock:
            self._config: IRuntimeConfig = self._configure(kernel_specialization, artifact.read_runtime_cache())

    def _tensors(self, artifact: EngineArtifact) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The signature's tensors that the engine has; inputs that it never reads may be missing."""
        engine = self._engine
        check_engine(engine, self._rt, artifact)
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        for name in names:
            if engine.get_tensor_location(name) == self._rt.api.TensorLocation.HOST:
                raise ArtifactError(
                    f"plan's tensor '{name}'",
                    got="host memory, where TensorRT wants it because its values decide shapes",
                    allowed="device memory",
                    fix="derive these shapes from other inputs' shapes in the model",
                )
        inputs = tuple(spec for spec in self.signature.inputs if spec.name in names)
        return inputs, self.signature.outputs

    def _configure(self, kernel_specialization: str, cache: bytes) -> IRuntimeConfig:
        """The configuration that every context is made with."""
        rt = self._rt
        mark = rt.log.mark()
        config: IRuntimeConfig = check_return_value(
            self._engine.create_runtime_config(), "runtime config", rt, since=mark
        )
        config.set_execution_context_allocation_strategy(rt.api.ExecutionContextAllocationStrategy.USER_MANAGED)
        if rt.is_rtx:
            # By default RTX compiles kernels for each shape in the background, and changes over between calls. So
            # answers that were checked could change later. In 1.6.1 every shape but the first may then be wrong:
            # EfficientNet-B0 in float32 on an H200 has a relative error of 3e-5 at the first batch size, and 1 at each
            # other, even with a context for each shape.
            strategies = rt.api.DynamicShapesKernelSpecializationStrategy
            names = {"none": strategies.NONE, "lazy": strategies.LAZY, "eager": strategies.EAGER}
            strategy = names[kernel_specialization]
            config.dynamic_shapes_kernel_specialization_strategy = strategy
            taken = config.dynamic_shapes_kernel_specialization_strategy == strategy
            check_return_value(taken, f"kernel specialization '{kernel_specialization}'", rt, since=mark)
            made: IRuntimeCache = check_return_value(config.create_runtime_cache(), "runtime cache", rt, since=mark)
            with float32_arithmetic(self._kernel_precision):  # they may be the first kernels of this process
                is_taken = made.deserialize(cache or bytes(made.serialize()))
            if cache and not is_taken:
                _logger.info("the runtime cache was made by another GPU, driver or version: kernels are compiled anew")
            check_return_value(config.set_runtime_cache(made), "runtime cache", rt, since=mark)
            self._cache = made
        elif kernel_specialization != "none":
            raise InputError(
                "RuntimeConfig.kernel_specialization",
                got=f"{kernel_specialization!r} with {rt.title}",
                allowed="'none', since only TensorRT-RTX compiles kernels while it runs",
                fix="leave it out",
            )
        return config

    def check_process(self) -> None:
        """Refuse to run in a child that was forked after the engine was made.

        Raises:
            DeviceError: CUDA's state does not survive a fork.
        """
        if os.getpid() != self._process:
            raise DeviceError(
                "engine",
                got=f"a call in the fork {os.getpid()} of process {self._process}, which made it",
                allowed="the process that made it, since CUDA does not survive a fork",
                fix="start workers with the 'spawn' method, or load the artifact in the worker",
            )

    def make_context(self) -> Context:
        """An execution context without shapes and memory.

        Raises:
            BuildError: TensorRT can't make a context; the message has its own lines.
        """
        rt = self._rt
        with rt.call_lock:
            mark = rt.log.mark()
            with float32_arithmetic(self._precision):
                made: IExecutionContext = self._engine.create_execution_context(self._config)
            check_return_value(made, "execution context", rt, since=mark)
        return Context(rt, made, self._precision, self.signature.inputs, self.inputs, self.outputs, self.memory_bytes)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The default argument is there even when Python has cleared the globals of this file, at its end.
        # TensorRT's objects go in the order in which they must be destroyed. No context is left: whoever has one also
        # holds this engine.
        if not is_finalizing() and os.getpid() == self._process:
            parts = {name: self.__dict__.pop(name, None) for name in _TENSORRT_OBJECTS}
            held = {name: part for name, part in parts.items() if part is not None}
            del parts
            self._rt.call_lock.release_when_idle(held)

    @property
    def is_constant(self) -> bool:
        """Whether no refit can change it."""
        return not self._engine.refittable

    def memory_bytes(self, profile: int) -> int:
        """Device memory, in bytes, that a context needs for the largest shapes of a profile, without weights."""
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def layers(self) -> str:
        """The engine inspector's list of layers, as JSON; its words differ between versions. It is asked once."""
        rt = self._rt
        with rt.call_lock:
            if self._layers:
                return self._layers
            mark = rt.log.mark()
            inspector: EngineInspector = check_return_value(
                self._engine.create_engine_inspector(), "engine inspector", rt, since=mark
            )
            with float32_arithmetic(self._precision):
                text: str = inspector.get_engine_information(rt.api.LayerInformationFormat.JSON)
            del inspector  # while nothing else runs in TensorRT
            self._layers = text
        return text

    def check_weights(self, given: Collection[str], fixed: Collection[str]) -> None:
        """Make sure that a refit gives every weight of the engine, except those that never change.

        The builder's own constants never change either; it has named them.

        Args:
            given: names of weights that follow from a module.
            fixed: names of those that don't.

        Raises:
            RefitError: names the weights that are neither, and the given ones that the engine does not have.
        """
        rt = self._rt
        with rt.call_lock:
            names = set(self._make_refitter().get_all_weights())
        unknown = sorted(name for name in names - set(given) - set(fixed) if not name.startswith(BUILDER_CONSTANT))
        lost = sorted(set(given) - names)
        if unknown or lost:
            got = [f"weights {_listed(unknown)} that follow from nothing in the module"] if unknown else []
            got += [f"weights {_listed(lost)} that TensorRT worked into something else"] if lost else []
            raise RefitError(
                "engine",
                got=" and ".join(got),
                allowed="an engine whose weights are the graph's",
                fix="deploy it without BuildConfig(refittable=True)",
            )

    def refit(self, weights: Mapping[str, tuple[str, int, int]], stream: int, wait: Callable[[], object]) -> None:
        """Put other weights into the engine, of which no context may be running.

        Args:
            weights: name -> (dtype, address on the engine's device, number of elements); all that the engine has but
                the fixed ones.
            stream: handle of the CUDA stream to work on.
            wait: waits for it.

        Raises:
            RefitError: TensorRT refuses one, or needs more of them; some weights may be new and some old.
        """
        rt = self._rt
        api = rt.api
        with rt.call_lock:
            mark = rt.log.mark()
            refitter = self._make_refitter()
            try:
                for name, (dtype, address, count) in weights.items():
                    one: Weights = api.Weights(rt.dtype(dtype), address, count)
                    taken = refitter.set_named_weights(name, one, api.TensorLocation.DEVICE)
                    check_return_value(taken, f"weight '{name}'", rt, error=RefitError, since=mark)
                if missing := refitter.get_missing_weights():
                    raise RefitError(
                        "engine",
                        got=f"a request of TensorRT for {_listed(sorted(missing))} too",
                        allowed="the weights that follow from the module",
                        fix="deploy the model again",
                    )
                self._layers = ""
                with float32_arithmetic(self._precision):
                    done = refitter.refit_cuda_engine_async(stream)
                wait()
                check_return_value(done, "refit", rt, error=RefitError, since=mark)
            finally:
                for name in weights:  # or TensorRT would keep addresses that are soon somebody else's
                    refitter.unset_named_weights(name)
                del refitter  # an error's frame must not hold it longer than the engine

    def _make_refitter(self) -> Refitter:
        """The engine's refitter, made once.

        Raises:
            RefitError: the plan was not built for it.
        """
        rt = self._rt
        if self._refitter is None:
            if not self._engine.refittable:
                raise RefitError(
                    "engine",
                    got="a plan that was built without BuildConfig(refittable=True)",
                    allowed="one that was built with it",
                    fix="build or deploy it again with that",
                )
            mark = rt.log.mark()
            made = rt.api.Refitter(self._engine, rt.logger)
            self._refitter = check_return_value(made, "refitter", rt, error=RefitError, since=mark)
        return self._refitter

    def serialized(self) -> bytes:
        """The plan as it is now, refits included."""
        rt = self._rt
        with rt.call_lock:
            mark = rt.log.mark()
            data: IHostMemory = check_return_value(self._engine.serialize(), "plan", rt, since=mark)
            return bytes(data)

    def add_kernels(self, kernels: bytes) -> bool:
        """Add kernels that `runtime_cache` of an equal engine gave; TensorRT-RTX compiles these no more.

        Returns:
            whether TensorRT-RTX takes them: they may come from another GPU, driver or version.
        """
        if self._cache is None:
            return False
        with self._rt.call_lock, float32_arithmetic(self._kernel_precision):
            return bool(self._cache.deserialize(kernels))

    def runtime_cache(self) -> bytes:
        """The kernels that TensorRT-RTX compiled so far; empty for TensorRT, which compiles when it builds."""
        rt = self._rt
        if self._cache is None:
            return b""
        with rt.call_lock:
            mark = rt.log.mark()
            data: IHostMemory = check_return_value(self._cache.serialize(), "runtime cache", rt, since=mark)
            return bytes(data)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(f"'{name}'" for name in names[:8]) + more
