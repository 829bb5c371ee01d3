"""The sample's stages: one use of each kind that the checker has to follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sample import trt
from sample.trt import TensorRT, check


class Lane:
    """An engine's contexts."""

    def __init__(self, rt: TensorRT, engine: trt.ICudaEngine) -> None:
        self._rt = rt
        self._engine = engine
        self._contexts: dict[int, trt.IExecutionContext] = {}

    def context(self, profile: int) -> trt.IExecutionContext:
        """Give the context of a profile."""
        if profile not in self._contexts:
            strategy = self._rt.api.ExecutionContextAllocationStrategy.USER_MANAGED
            made = trt.present(self._engine.create_execution_context(strategy))
            self._contexts[profile] = made
        return self._contexts[profile]

    def enqueue(self, profile: int, stream: int) -> None:
        """Run."""
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shape = self._engine.get_tensor_profile_shape(name, profile)[0]
            check(self.context(profile).set_input_shape(name, shape=tuple(shape)), "set_input_shape")
        check(self.context(profile).execute_async_v3(stream_handle=stream), "execute_async_v3")


@dataclass
class Plan:
    """A built plan."""

    config: trt.IBuilderConfig
    tensors: list[trt.ITensor]


def build(rt: TensorRT, path: str) -> bytes:
    """Build an ONNX file."""
    builder = rt.api.Builder(rt.logger)
    flags = 1 << int(rt.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = check(builder.create_network(flags), "create_network")
    parser = rt.api.OnnxParser(network, rt.logger)
    if not parser.parse_from_file(path):
        raise ValueError([parser.get_error(index).desc() for index in range(parser.num_errors)])
    plan = Plan(builder.create_builder_config(), [network.get_input(i) for i in range(network.num_inputs)])
    configure(rt, builder, plan)
    with watched(rt, plan.config) as config:
        return bytes(check(builder.build_serialized_network(network, config), "build"))


def configure(rt: TensorRT, builder: trt.Builder, plan: Plan) -> None:
    """Set a builder's options."""
    plan.config.set_memory_pool_limit(pool=rt.api.MemoryPoolType.WORKSPACE, pool_size=1 << 20)
    plan.config.builder_optimization_level = 3
    profile = builder.create_optimization_profile()
    for index, tensor in enumerate(plan.tensors):
        if tensor.is_shape_tensor or tensor.dtype != rt.dtypes()[index]:
            continue
        profile.set_shape(tensor.name, min=(1,), opt=(2,), max=(4,))
    plan.config.add_optimization_profile(profile)
    if rt.is_rtx:
        _target(rt, plan.config)
    if not rt.is_rtx and hasattr(rt.api.BuilderFlag, "FP16"):
        plan.config.set_flag(rt.api.BuilderFlag.FP16)


def _target(rt: TensorRT, config: trt.IBuilderConfig) -> None:
    config.num_compute_capabilities = 1
    config.set_compute_capability(rt.api.ComputeCapability.CURRENT, 0)


@contextmanager
def watched(rt: TensorRT, config: trt.IBuilderConfig) -> Iterator[trt.IBuilderConfig]:
    """Watch a build."""

    class Monitor(rt.api.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.phases: list[str] = []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.append(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.phases.remove(phase_name)

    config.progress_monitor = Monitor()
    yield config


def outputs(rt: TensorRT) -> object:
    """Make an output allocator."""

    class Allocator(rt.api.IOutputAllocator):
        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return memory

    return Allocator()


def restore(rt: TensorRT, engine: trt.ICudaEngine, blob: bytes) -> trt.IRuntimeCache | None:
    """Give a context's runtime cache where there is such a thing."""
    config = engine.create_runtime_config()
    if not rt.has("IRuntimeConfig.create_runtime_cache"):
        return None
    strategy = getattr(config, "cuda_graph_strategy", None)
    if strategy is not None:
        config.cuda_graph_strategy = rt.api.CudaGraphStrategy.DISABLED
    cache = config.create_runtime_cache()
    return cache if cache.deserialize(blob) else None
