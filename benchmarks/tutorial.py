"""The usual way to serve numpy arrays by TensorRT and pycuda, as tutorials have it: what Processor is held against.

Enters: an engine's artifact, then arrays. Leaves: arrays by name. Each call takes page-locked and device memory for
every tensor, stages the inputs, enqueues copies and engine on one stream, waits, and gives the memory back. Apart
because of torch2engine's runtime, which it is held against, it takes no more than the primary context.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.core.tf32 import float32_arithmetic
from torch2engine.serving.processor import cuda
from torch2engine.trt.bindings import check_return_value, find_tensorrt

__all__ = ["Tutorial"]


class Tutorial:
    """One engine, one context, one stream, for one thread.

    Args:
        artifact: the engine.
        specialized: let TensorRT-RTX compile kernels for the shapes that come, as it does unless it is told not to.
        choose: the profile for the shape of the first input; by default the first one, for all.
    """

    def __init__(
        self, artifact: EngineArtifact, specialized: bool, choose: Callable[[tuple[int, ...]], int] | None = None
    ) -> None:
        self._choose = choose
        self._precision = artifact.precision
        self._cuda: Any = importlib.import_module("pycuda.driver")
        self._primary = cuda.find(0)
        with self._primary:
            self._rt = find_tensorrt(artifact.hardware.flavour)
            self._runtime = self._rt.api.Runtime(self._rt.logger)
            engine = self._check(self._runtime.deserialize_cuda_engine(artifact.read_plan()), "plan")
            config = self._check(engine.create_runtime_config(), "runtime config")
            if self._rt.is_rtx and not specialized:
                strategies = self._rt.api.DynamicShapesKernelSpecializationStrategy
                config.dynamic_shapes_kernel_specialization_strategy = strategies.NONE
            with float32_arithmetic(self._precision):
                self._context = self._check(engine.create_execution_context(config), "execution context")
            self._engine = engine
            self._stream = self._cuda.Stream()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = self._rt.api.TensorIOMode
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        self._outputs = [name for name in names if engine.get_tensor_mode(name) == modes.OUTPUT]

    def _check(self, value: Any, what: str) -> Any:
        return check_return_value(value, what, self._rt)

    def infer(self, inputs: Any) -> OrderedDict[str, np.ndarray[Any, Any]]:
        """Answer one array, a list or a dict."""
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if not isinstance(inputs, Mapping):
            inputs = dict(zip(self._inputs, inputs, strict=True))
        with self._primary:
            return self._infer(inputs)

    def _infer(self, inputs: Mapping[str, Any]) -> OrderedDict[str, np.ndarray[Any, Any]]:
        context, stream = self._context, self._stream
        held: list[tuple[Any, Any]] = []
        if self._choose is not None:
            profile = self._choose(np.asarray(inputs[self._inputs[0]]).shape)
            if profile != context.active_optimization_profile:
                with float32_arithmetic(self._precision):  # TensorRT-RTX reads the variable when a profile changes
                    self._check(context.set_optimization_profile_async(profile, stream.handle), f"profile {profile}")
        for name in self._inputs:
            array = np.asarray(inputs[name])
            self._check(context.set_input_shape(name, array.shape), f"shape of '{name}'")
            host, memory = self._taken(name, array.shape)
            host[...] = array
            self._cuda.memcpy_htod_async(memory, host, stream)
            held.append((host, memory))
        results = OrderedDict(
            (name, self._taken(name, tuple(context.get_tensor_shape(name)))) for name in self._outputs
        )
        self._check(context.execute_async_v3(stream.handle), "enqueue")
        for host, memory in results.values():
            self._cuda.memcpy_dtoh_async(host, memory, stream)
        stream.synchronize()
        for _, memory in (*held, *results.values()):
            memory.free()
        # Copies, which are small: page-locked memory is given back in here, where the context is current.
        return OrderedDict((name, np.array(host)) for name, (host, _) in results.items())

    def _taken(self, name: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Page-locked and device memory for a tensor."""
        host = self._cuda.pagelocked_empty(shape, self._rt.api.nptype(self._engine.get_tensor_dtype(name)))
        memory = self._cuda.mem_alloc(host.nbytes)
        self._check(self._context.set_tensor_address(name, int(memory)), f"address of '{name}'")
        return host, memory
