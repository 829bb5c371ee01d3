"""One ONNX file → one plan on disk, by TensorRT itself.

Enters: a `PlanRequest`. Leaves: the plan's file and the facts of what built it. Beside `build` because this is all that
talks to TensorRT's builder; it runs in a process of its own (see `_build_process`) and so imports neither onnx nor
torch unless something has failed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch2engine.core.errors import BuildError, DynamicAxisError, InputError, InstallationError
from torch2engine.core.spec import Profile, Signature, TensorSpec
from torch2engine.trt.gpu import list_gpus, make_gpu_current
from torch2engine.trt.library import (
    Builder,
    IBuilderConfig,
    IHostMemory,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITensor,
    OnnxParser,
    TensorRT,
    check_return_value,
    find_tensorrt,
    means_out_of_memory,
)

__all__ = ["PhaseReport", "PlanFacts", "PlanRequest", "compile_plan"]

# (phase, steps done, steps in all): 0 done when a phase begins, all done when it ends, others inside it in between
PhaseReport: TypeAlias = Callable[[str, int, int], None]

_WORKSPACE = re.compile(r"workspace", re.IGNORECASE)
# what TensorRT says -> what mends it
_FIXES = (
    (re.compile(r"Attention operation was not supported"), "export with opset 22 or lower, or in float16 or bfloat16"),
    (re.compile(r"no runners that implement it"), "this TensorRT has no implementation of that node; replace it"),
)


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to build.

    Args:
        onnx_path: the model; external data beside it.
        plan_path: where the plan goes.
        signature: what the model takes and gives.
        profiles: at least one.
        precision: "fp32" or "tf32".
        flavour: "tensorrt", "tensorrt_rtx" or None for the one that is installed.
        workspace_bytes: the limit, or None for TensorRT's own.
        gpu_index: the device to build on, as CUDA counts; None for CUDA's default.
        log_level: the Python logging level from which TensorRT's lines are wanted.
        progress: whether phases are to be reported.
        refittable: whether weights can be replaced later; needs a GPU.
    """

    onnx_path: str
    plan_path: str
    signature: Signature
    profiles: tuple[Profile, ...]
    precision: str
    flavour: str | None = None
    workspace_bytes: int | None = None
    gpu_index: int | None = None
    log_level: int = logging.WARNING
    progress: bool = False
    refittable: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        profiles = [profile.to_json() for profile in self.profiles]
        return {**vars(self), "signature": self.signature.to_json(), "profiles": profiles}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PlanRequest:
        """The inverse of `to_json`."""
        fields = dict(data)
        fields["signature"] = Signature.from_json(data["signature"])
        fields["profiles"] = tuple(Profile.from_json(profile) for profile in data["profiles"])
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """What built a plan: flavour, its version, and the GPU if there was one."""

    flavour: str
    flavour_version: str
    gpu: str | None = None
    compute_capability: Sequence[int] | None = None
    driver: str | None = None


@dataclass(frozen=True)
class _Attempt:
    """A build under way: TensorRT, what is wanted, and where its log stood when this began."""

    rt: TensorRT
    request: PlanRequest
    since: int

    def check(self, value: Any, what: str, fix: str = "") -> Any:
        return check_return_value(value, what, self.rt, since=self.since, fix=fix)


def compile_plan(request: PlanRequest, report: PhaseReport) -> PlanFacts:
    """Build a plan and write it to its file.

    Args:
        request: what to build.
        report: called from TensorRT's own threads while it builds.

    Returns:
        the facts of what built it.

    Raises:
        InstallationError: no TensorRT, or the GPU asked for can't be used.
        UnsupportedOperatorError: every node that TensorRT can't build.
        DynamicAxisError, InputError: the graph and the signature don't fit.
        BuildError: anything else, with TensorRT's own lines.
    """
    rt = find_tensorrt(request.flavour)
    if request.refittable:
        _check_gpu(rt)
    if request.gpu_index:
        make_gpu_current(request.gpu_index)
    attempt = _Attempt(rt, request, rt.log.mark())
    builder: Builder = attempt.check(rt.api.Builder(rt.logger), "TensorRT's builder")
    network = _parse(attempt, builder)
    _check_network(attempt, network)
    config = _configure(attempt, builder)
    if request.progress:
        config.progress_monitor = _make_monitor(rt, report)
    for profile in request.profiles:
        _add_profile(attempt, builder, network, config, profile)
    plan: IHostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_error(attempt)
    with Path(request.plan_path).open("wb") as file:
        file.write(plan)
    gpus = list_gpus()
    index = request.gpu_index or 0
    if index >= len(gpus):
        return PlanFacts(flavour=rt.name, flavour_version=rt.version)
    gpu = gpus[index]
    return PlanFacts(
        flavour=rt.name,
        flavour_version=rt.version,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
    )


def _check_gpu(rt: TensorRT) -> None:
    """Without a GPU TensorRT-RTX 1.6 builds engines, but fails on refittable ones in words that don't say why.

    Raises:
        InstallationError: there is no GPU.
    """
    if not list_gpus():
        raise InstallationError(
            "BuildConfig.refittable",
            got=f"True for {rt.title} on a machine without a GPU",
            allowed="refittable engines are built on a GPU only",
            fix="build on the machine that runs the engine, or leave refittable out",
        )


def make_network(rt: TensorRT, builder: Builder) -> INetworkDefinition:
    """Make an empty network whose dtypes are those of the graph and nothing else.

    TensorRT 11 and RTX know no other kind and keep the flag for its name alone; its number differs between versions.
    """
    return builder.create_network(1 << int(rt.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def _parse(attempt: _Attempt, builder: Builder) -> INetworkDefinition:
    rt = attempt.rt
    network: INetworkDefinition = attempt.check(make_network(rt, builder), "TensorRT's network")
    parser: OnnxParser = rt.api.OnnxParser(network, rt.logger)
    # By path: bytes alone would lose external data.
    if not parser.parse_from_file(attempt.request.onnx_path):
        from torch2engine.builder.unsupported import explain  # reads ONNX, which a build that works does not need

        raise explain(rt, builder, parser, Path(attempt.request.onnx_path), attempt.since)
    return network


def _check_network(attempt: _Attempt, network: INetworkDefinition) -> None:
    """Refuse a network that does not take and give what the signature says.

    An input that nothing uses may be gone; the runtime binds by name and skips it.
    """
    signature = attempt.request.signature
    inputs = {spec.name: spec for spec in signature.inputs}
    for index in range(network.num_inputs):
        tensor: ITensor = network.get_input(index)
        spec = inputs.get(tensor.name)
        if spec is None:
            # TensorRT renames an input that is also an output
            raise BuildError(
                f"network input '{tensor.name}'",
                got="the signature has none of that name",
                allowed=", ".join(inputs),
                fix="if an input is returned as it came, put an Identity between",
            )
        _check_input(attempt, spec, tensor)
    found: dict[str, ITensor] = {}
    for index in range(network.num_outputs):
        tensor = network.get_output(index)
        found[tensor.name] = tensor
    for spec in signature.outputs:
        if spec.name not in found:
            raise BuildError(f"output '{spec.name}'", got="the network has it not", allowed=", ".join(found))
        _check_dtype(attempt, spec, found[spec.name], "output")


def _check_input(attempt: _Attempt, spec: TensorSpec, tensor: ITensor) -> None:
    _check_dtype(attempt, spec, tensor, "input")
    if tensor.is_shape_tensor:
        raise InputError(
            f"input '{spec.name}'",
            name=spec.name,
            got="its values decide shapes inside the network",
            allowed="inputs that are data",
            fix="make it a constant, or take the size from another input's dynamic axis",
        )
    shape = tuple(tensor.shape)
    if len(shape) != len(spec.shape):
        raise BuildError(
            f"input '{spec.name}'", got=f"the network gives it {len(shape)} dimensions", allowed=f"{len(spec.shape)}"
        )
    for position, (dim, size) in enumerate(zip(spec.shape, shape, strict=True)):
        if isinstance(dim, str) and size != -1:
            raise DynamicAxisError(
                f"axis '{dim}'",
                axis=dim,
                got=f"the ONNX graph fixes it to {size} (dimension {position} of input '{spec.name}')",
                allowed="a symbolic dimension",
                fix="export with that dimension dynamic",
            )


def _check_dtype(attempt: _Attempt, spec: TensorSpec, tensor: ITensor, what: str) -> None:
    dtype = attempt.rt.dtype_name(tensor.dtype)
    if dtype != spec.dtype:
        raise BuildError(
            f"{what} '{spec.name}'", got=f"TensorRT makes it {dtype}", allowed=f"the signature says {spec.dtype}"
        )


def _configure(attempt: _Attempt, builder: Builder) -> IBuilderConfig:
    rt, request = attempt.rt, attempt.request
    config: IBuilderConfig = attempt.check(builder.create_builder_config(), "TensorRT's builder config")
    if request.precision == "tf32":
        config.set_flag(rt.api.BuilderFlag.TF32)
    else:
        config.clear_flag(rt.api.BuilderFlag.TF32)  # builders start with it on
    if request.refittable:
        config.set_flag(rt.api.BuilderFlag.REFIT)
    # names, shapes and formats of every layer stay readable in the engine
    config.profiling_verbosity = rt.api.ProfilingVerbosity.DETAILED
    if request.workspace_bytes is not None:
        pool = rt.api.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, request.workspace_bytes)
        if config.get_memory_pool_limit(pool) != request.workspace_bytes:
            raise BuildError(
                "BuildConfig.workspace_bytes",
                got=f"TensorRT refuses {request.workspace_bytes}",
                fix="give less than the GPU's memory",
                log=rt.log.lines(attempt.since),
            )
    return config


def _add_profile(
    attempt: _Attempt,
    builder: Builder,
    network: INetworkDefinition,
    config: IBuilderConfig,
    profile: Profile,
) -> None:
    what = f"optimization profile ({profile})"
    trt_profile: IOptimizationProfile = attempt.check(builder.create_optimization_profile(), what)
    inputs = {spec.name: spec for spec in attempt.request.signature.inputs}
    for index in range(network.num_inputs):
        tensor: ITensor = network.get_input(index)
        low, opt, high = (inputs[tensor.name].sized(profile.sizes(which)) for which in range(3))
        try:
            trt_profile.set_shape(tensor.name, low, opt, high)
        except (ValueError, TypeError) as error:
            raise BuildError(
                what,
                got=f"TensorRT refuses {low}, {opt}, {high} for input '{tensor.name}': {error}",
                log=attempt.rt.log.lines(attempt.since),
            ) from error
    if not trt_profile or config.add_optimization_profile(trt_profile) < 0:
        raise BuildError(what, got="TensorRT refuses it", log=attempt.rt.log.lines(attempt.since))


def _build_error(attempt: _Attempt) -> BuildError:
    """What went wrong, in TensorRT's words, with memory named as the cause where they name it."""
    request = attempt.request
    lines = attempt.rt.log.lines(attempt.since, logging.ERROR)[-20:]
    subject = attempt.rt.title
    hints = attempt.rt.log.lines(attempt.since)
    memory = [line for line in hints if means_out_of_memory(line)]
    if memory:
        largest = " | ".join(str(profile) for profile in request.profiles if profile.ranges)
        fixes = [f"lower the largest sizes of the profiles ({largest})"] if largest else []
        fixes.append("free GPU memory")
        if request.workspace_bytes is not None and any(_WORKSPACE.search(line) for line in memory):
            fixes.insert(0, f"raise workspace_bytes (it is {request.workspace_bytes})")
        return BuildError(
            subject,
            got="it ran out of memory",
            fix=", or ".join(fixes),
            log=lines or memory[-20:],
            out_of_memory=True,
        )
    text = "\n".join(hints)
    fix = next((fix for pattern, fix in _FIXES if pattern.search(text)), "")
    return BuildError(subject, got="it could not build an engine", fix=fix, log=lines or hints[-20:])


def _make_monitor(rt: TensorRT, report: PhaseReport) -> IProgressMonitor:
    class Monitor(rt.api.IProgressMonitor):
        """Counts the steps; TensorRT calls it from several threads, and phases end before their last step."""

        def __init__(self) -> None:
            rt.api.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if step + 1 < self._steps[phase_name]:
                report(phase_name, step + 1, self._steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            report(phase_name, self._steps[phase_name], self._steps[phase_name])

    return Monitor()
