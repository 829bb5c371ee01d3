"""`EngineArtifact` → `Engine`: deserialised on one device, with execution contexts that are enqueued by address.

Enters: a plan whose hashes were checked, and device addresses. Leaves: work on a stream. A room of its own, without
torch, because TRTModule and Processor drive the same engine with memory of different owners.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch2engine import device, trt
from torch2engine.artifact import EngineArtifact, Hardware
from torch2engine.config import TF32_OVERRIDE, float32_arithmetic
from torch2engine.errors import ArtifactError, BuildError, DeviceError, ShapeError
from torch2engine.spec import TensorSpec

__all__ = ["Context", "Engine"]

# Gives (address, owner) of that many bytes of device memory, 256-byte aligned, that live as long as the owner.
Allocate = Callable[[int], "tuple[int, Any]"]


class Engine:
    """A deserialised engine on one device.

    The caller makes the device current around every call. Methods are not thread-safe except `check_process`; hold
    `lock` from `Context.set_shapes` until `Context.enqueue` has returned.

    Args:
        artifact: the engine; its hashes were checked when it was loaded.
        index: the device's number as CUDA counts the visible devices.
        allocate: gives the device memory that the contexts work in.

    Raises:
        InstallationError: no such GPU, or no TensorRT of the artifact's flavour.
        ArtifactError: made for other hardware or another version, or TensorRT refuses the plan.
    """

    def __init__(self, artifact: EngineArtifact, index: int, allocate: Allocate) -> None:
        gpu = device.require_gpu(index)
        hardware = artifact.hardware
        rt = trt.find(hardware.flavour)
        artifact.check_hardware(
            Hardware(
                flavour=rt.name,
                flavour_version=rt.version,
                gpu=gpu.name,
                compute_capability=gpu.compute_capability,
                driver=gpu.driver,
            )
        )
        arithmetic = float32_arithmetic(rt.name, artifact.precision)
        if arithmetic != artifact.precision:
            raise _other_tf32(f"it computes in {artifact.precision}, and this process in {arithmetic}")
        self.lock = threading.Lock()
        self.signature = artifact.signature
        self._rt = rt
        self._allocate = allocate
        self._process = os.getpid()
        mark = rt.log.mark()
        self._runtime: trt.Runtime = rt.api.Runtime(rt.logger)
        self._engine: trt.ICudaEngine = trt.check(
            self._runtime.deserialize_cuda_engine(artifact.plan_buffer()),
            f"plan for {hardware.gpu or 'unknown GPU'} on {gpu.name}",
            rt,
            error=ArtifactError,
            since=mark,
            fix="build it again on this machine",
        )
        self._contexts: dict[int, Context] = {}
        self.inputs, self.outputs = self._tensors()

    def _tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The signature's tensors that the engine has; inputs that it never reads may be missing."""
        engine = self._engine
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        specs = {spec.name: spec for spec in (*self.signature.inputs, *self.signature.outputs)}
        lost = [spec.name for spec in self.signature.outputs if spec.name not in names]
        unknown = sorted(names - set(specs))
        if lost or unknown:
            raise ArtifactError(
                "plan",
                got=f"its tensors are {', '.join(sorted(names))}",
                allowed=f"the manifest says {', '.join(specs)}",
                fix="build it again",
            )
        for name in names:
            dtype = self._rt.dtype_name(engine.get_tensor_dtype(name))
            if dtype != specs[name].dtype:
                raise ArtifactError(
                    f"plan's tensor '{name}'", got=f"is {dtype}", allowed=specs[name].dtype, fix="build it again"
                )
            if engine.get_tensor_location(name) == self._rt.api.TensorLocation.HOST:
                raise ArtifactError(
                    f"plan's tensor '{name}'",
                    got="TensorRT wants it in host memory, because its values decide shapes",
                    allowed="tensors in device memory",
                    fix="derive these shapes from other inputs' shapes in the model",
                )
        inputs = tuple(spec for spec in self.signature.inputs if spec.name in names)
        return inputs, self.signature.outputs

    def check_process(self) -> None:
        """Refuse to run in a child that was forked after the engine was made.

        Raises:
            DeviceError: CUDA's state does not survive a fork.
        """
        if os.getpid() != self._process:
            raise DeviceError(
                "engine",
                got=f"it was made in process {self._process} and is called in its fork {os.getpid()}",
                allowed="the process that made it, since CUDA does not survive a fork",
                fix="start workers with the 'spawn' method, or load the artifact in the worker",
            )

    def context(self, profile: int, stream: int) -> Context:
        """The execution context of an optimization profile; made on first use.

        Args:
            profile: index into the profiles.
            stream: the handle of a stream on which a fresh context may choose its profile.

        Raises:
            BuildError: TensorRT can't make a context, mostly for want of memory.
        """
        if profile not in self._contexts:
            self._contexts[profile] = self._make_context(profile, stream)
        return self._contexts[profile]

    def drop_context(self, profile: int) -> None:
        """Forget a profile's context, which may be unusable after a failure; its streams must be idle."""
        self._contexts.pop(profile, None)

    def _make_context(self, profile: int, stream: int) -> Context:
        rt, mark = self._rt, self._rt.log.mark()
        config: trt.IRuntimeConfig = trt.check(self._engine.create_runtime_config(), "runtime config", rt, since=mark)
        config.set_execution_context_allocation_strategy(rt.api.ExecutionContextAllocationStrategy.USER_MANAGED)
        if rt.is_rtx:
            # By default RTX swaps in kernels compiled for each shape while calls go on, so answers checked once could
            # change later; and in 1.6.1 every shape but the first may then be wrong (EfficientNet-B0 in float32 on an
            # H200: relative error 3e-5 at the first batch size, 1.2 at each other; 4e-5 at all of them without).
            strategies = rt.api.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.NONE
            kept = config.dynamic_shapes_kernel_specialization_strategy == strategies.NONE
            trt.check(kept, "switching kernel specialisation off", rt, since=mark)
        made: trt.IExecutionContext = self._engine.create_execution_context(config)
        if not made and any(TF32_OVERRIDE in line for line in rt.log.lines(mark)):
            raise _other_tf32("it was built under another setting than this process has")
        trt.check(made, "execution context", rt, since=mark, fix=_FREE)
        trt.check(made.set_optimization_profile_async(profile, stream), f"profile {profile}", rt, since=mark)
        size = int(self._engine.get_device_memory_size_for_profile_v2(profile))
        owner = None
        if size:
            address, owner = self._allocate(size)
            made.set_device_memory(address, size)
        return Context(rt, made, self.inputs, self.outputs, owner, size)

    @property
    def memory_bytes(self) -> int:
        """Device memory that the contexts made so far work in, without weights."""
        return sum(context.memory_bytes for context in self._contexts.values())


def _other_tf32(got: str) -> ArtifactError:
    return ArtifactError(
        f"engine and {TF32_OVERRIDE}",
        got=got,
        allowed="one setting for building and running, since TensorRT-RTX chooses its kernels by it",
        fix=f"start Python with {TF32_OVERRIDE} as it was for the build (0 for fp32), or build the engine again",
    )


_FREE = "free GPU memory, or build with a smaller max in the profiles"


class Context:
    """One execution context with the memory that it works in."""

    def __init__(
        self,
        rt: trt.TensorRT,
        context: trt.IExecutionContext,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        memory: Any,
        memory_bytes: int,
    ) -> None:
        self._rt = rt
        self._context: trt.IExecutionContext = context
        self._inputs = inputs
        self._outputs = outputs
        self._memory = memory
        self.memory_bytes = memory_bytes

    def set_shapes(self, shapes: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
        """Set the inputs' shapes.

        Returns:
            the outputs' shapes in the signature's order.

        Raises:
            ShapeError: TensorRT refuses a shape, or an output's shape depends on values.
        """
        rt, mark = self._rt, self._rt.log.mark()
        for spec in self._inputs:
            done = self._context.set_input_shape(spec.name, tuple(shapes[spec.name]))
            trt.check(done, f"shape {list(shapes[spec.name])} of input '{spec.name}'", rt, error=ShapeError, since=mark)
        found: list[tuple[int, ...]] = []
        for spec in self._outputs:
            shape = tuple(int(dim) for dim in self._context.get_tensor_shape(spec.name))
            if any(dim < 0 for dim in shape):
                raise ShapeError(
                    f"output '{spec.name}'",
                    name=spec.name,
                    got=f"its shape {list(shape)} depends on the inputs' values",
                    allowed="output shapes that follow from input shapes",
                    fix="return a padded tensor and a count",
                )
            found.append(shape)
        return found

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        """Enqueue one inference; the memory must stay as it is until the stream has passed it.

        Args:
            addresses: device address of every input and output, non-null and 256-byte aligned.
            stream: a CUDA stream's handle, not the legacy default stream's, where TensorRT would synchronise.

        Raises:
            BuildError: TensorRT refuses; the message has its own lines.
        """
        rt, mark = self._rt, self._rt.log.mark()
        for spec in (*self._inputs, *self._outputs):
            done = self._context.set_tensor_address(spec.name, addresses[spec.name])
            trt.check(done, f"address of '{spec.name}'", rt, since=mark)
        trt.check(self._context.execute_async_v3(stream), "enqueue", rt, error=BuildError, since=mark, fix=_FREE)
