"""TensorRT itself on an artifact's plan, with as little around it as can be: what every runtime is held against.

Enters: an engine's artifact and CUDA tensors. Leaves: contexts whose shapes, addresses and memory are set once, so that
a call is `execute_async_v3` alone. The kernels are those that TRTModule runs: the same plan, specialisation off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.core.select_profile import select_profile
from torch2engine.core.tf32 import float32_arithmetic
from torch2engine.trt.bindings import check_return_value, find_tensorrt

__all__ = ["RawContext", "RawEngine"]


class RawContext:
    """An execution context that is ready to run on one stream.

    Args:
        engine: where it comes from.
        context: TensorRT's own.
        inputs: CUDA tensors in the signature's order; kept alive.
        stream: where it runs.

    Attributes:
        enqueue: the call alone; it returns TensorRT's bool.
        outputs: in the signature's order; every call writes them anew.
        memory_bytes: what it works in.
    """

    def __init__(
        self, engine: RawEngine, context: Any, inputs: Sequence[torch.Tensor], stream: torch.cuda.Stream
    ) -> None:
        check, signature = engine.check, engine.artifact.signature
        self.context = context
        self.inputs = tuple(inputs)
        profile = engine.profile([tensor.shape for tensor in inputs])
        with float32_arithmetic(engine.artifact.precision):
            done = context.set_optimization_profile_async(profile, stream.cuda_stream)
        check(done, f"profile {profile}")
        for spec, tensor in zip(signature.inputs, inputs, strict=True):
            check(context.set_input_shape(spec.name, tuple(tensor.shape)), f"shape of '{spec.name}'")
        self.memory_bytes = int(context.update_device_memory_size_for_shapes())
        self._memory = torch.empty(max(self.memory_bytes, 256), dtype=torch.uint8, device=inputs[0].device)
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        self.outputs = tuple(
            torch.empty(
                tuple(context.get_tensor_shape(spec.name)),
                dtype=getattr(torch, spec.dtype),
                device=inputs[0].device,
            )
            for spec in signature.outputs
        )
        specs = (*signature.inputs, *signature.outputs)
        for spec, tensor in zip(specs, (*inputs, *self.outputs), strict=True):
            check(context.set_tensor_address(spec.name, tensor.data_ptr()), f"address of '{spec.name}'")
        self.enqueue: Callable[[], bool] = functools.partial(context.execute_async_v3, stream.cuda_stream)
        torch.cuda.synchronize()  # whoever wrote the inputs
        check(self.enqueue(), "enqueue")
        stream.synchronize()


class RawEngine:
    """A deserialised plan.

    Args:
        artifact: the engine.
        cache: TensorRT-RTX's compiled kernels, from `EngineArtifact.read_runtime_cache`; b"" for none.
    """

    def __init__(self, artifact: EngineArtifact, cache: bytes = b"") -> None:
        self.artifact = artifact
        self.rt = find_tensorrt(artifact.hardware.flavour)
        self._cache_bytes = cache
        self._kept: list[Any] = []
        self._runtime = self.rt.api.Runtime(self.rt.logger)
        self.engine = self.check(self._runtime.deserialize_cuda_engine(artifact.plan_buffer()), "plan")
        self._configs = {False: self.config(), True: None}

    def profile(self, shapes: Sequence[Sequence[int]]) -> int:
        """The profile that TRTModule uses for these shapes of the inputs."""
        signature, profiles = self.artifact.signature, self.artifact.profiles
        return select_profile(signature, profiles, signature.resolve(shapes)) if profiles else 0

    def check(self, value: Any, what: str) -> Any:
        """Refuse the None or False by which TensorRT says that something failed."""
        return check_return_value(value, what, self.rt)

    def config(self, *, graph: bool = False, engine: Any = None) -> Any:
        """A runtime config with TRTModule's settings.

        Args:
            graph: with TensorRT-RTX's own capture.
            engine: another engine, whose contexts are to allocate the memory that they work in.
        """
        api = self.rt.api
        config = self.check((engine or self.engine).create_runtime_config(), "runtime config")
        if engine is None:
            config.set_execution_context_allocation_strategy(api.ExecutionContextAllocationStrategy.USER_MANAGED)
        if not self.rt.is_rtx:
            return config
        config.dynamic_shapes_kernel_specialization_strategy = api.DynamicShapesKernelSpecializationStrategy.NONE
        if graph:
            config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._cache_bytes:
            cache = config.create_runtime_cache()
            if cache.deserialize(self._cache_bytes):  # False means a cold start, no more
                config.set_runtime_cache(cache)
                self._kept.append(cache)
        return config

    def context(self, inputs: Sequence[torch.Tensor], stream: torch.cuda.Stream, *, graph: bool = False) -> RawContext:
        """Make a context for these very tensors, and run it once.

        Args:
            inputs: CUDA tensors in the signature's order, contiguous and 256-byte aligned.
            stream: where it runs; not the default one.
            graph: let TensorRT-RTX capture and replay a graph by itself.
        """
        config = self._configs[graph]
        if config is None:
            config = self._configs[graph] = self.config(graph=graph)
        with float32_arithmetic(self.artifact.precision):
            made = self.check(self.engine.create_execution_context(config), "execution context")
        return RawContext(self, made, inputs, stream)

    @property
    def memory_bytes(self) -> int:
        """What a context needs to work in at any shape of profile 0."""
        return int(self.engine.get_device_memory_size_for_profile_v2(0))
