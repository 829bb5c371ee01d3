"""One ONNX file → one plan on disk, by TensorRT itself.

Enters: a `PlanRequest`. Leaves: the plan's file, and `PlanFacts` about what built it. Separate because only this file
talks to TensorRT's builder. It runs in a child process (see `child_process`), so it imports no torch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2engine.builder.parser_input import parser_input
from torch2engine.core.errors import BuildError, DynamicAxisError, InputError, InstallationError
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.core.progress import PhaseReport
from torch2engine.core.spec import Profile, Signature, TensorSpec
from torch2engine.core.wording import quote
from torch2engine.trt.bindings import (
    Builder,
    ComputeCapability,
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
    make_network,
)
from torch2engine.trt.gpu import list_gpus, make_gpu_current
from torch2engine.trt.memory import means_out_of_memory

__all__ = ["PlanFacts", "PlanRequest", "compile_plan", "decode_fields", "encode_fields"]

_WORKSPACE = re.compile(r"workspace", re.IGNORECASE)
# {a text in TensorRT's log: what the user can do}
_FIXES = {
    "no runners that implement it": "this TensorRT has no implementation of that node; replace it",
}
_LAST_LINES = 20
_RANGES = "a profile that it takes"
_FIX_OF_RANGES = "give other sizes in profiles="


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Everything that a child process must know to build a plan.

    Args:
        onnx_path: the ONNX file; its external data lie beside it.
        plan_path: the file to write the plan to.
        signature: the model's inputs and outputs.
        profiles: the optimization profiles; at least one.
        precision: "fp32" or "tf32".
        flavour: "tensorrt", "tensorrt_rtx" or None for the one that is installed.
        workspace_bytes: the limit, or None for TensorRT's own.
        gpu_index: the device to build on, as CUDA counts; None for CUDA's default.
        log_level: the lowest Python logging level of TensorRT's lines that are forwarded.
        progress: whether phases are reported.
        refittable: whether weights can be replaced later; needs a GPU.
        compute_capabilities: the GPUs that the plan is for; empty for TensorRT's choice.
        hardware_compatibility: as in `BuildConfig`.
        attention: the form in which TensorRT-RTX gets it, "node" or "products".
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
    compute_capabilities: Sequence[Sequence[int]] = ()
    hardware_compatibility: str | None = None
    attention: str = "node"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return encode_fields(vars(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PlanRequest:
        """The inverse of `to_json`."""
        return cls(**decode_fields(data))


def encode_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request, of which signature and profiles are no JSON values yet, as JSON values."""
    profiles = [profile.to_json() for profile in fields["profiles"]]
    return {**fields, "signature": fields["signature"].to_json(), "profiles": profiles}


def decode_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `encode_fields`."""
    profiles = tuple(Profile.from_json(profile) for profile in data["profiles"])
    return {**data, "signature": Signature.from_json(data["signature"]), "profiles": profiles}


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """Facts about the build of a plan: flavour, its version, and the GPU if there was one."""

    flavour: str
    flavour_version: str
    gpu: str | None = None
    compute_capability: Sequence[int] | None = None
    driver: str | None = None


@dataclass(frozen=True)
class _PlanBuild:
    """A build that is under way.

    Args:
        rt: TensorRT.
        request: what it builds.
        log_mark: the place in TensorRT's log at which the build began.
    """

    rt: TensorRT
    request: PlanRequest
    log_mark: int

    def check(self, value: Any, what: str, fix: str = "") -> Any:
        """Return the value, or raise a BuildError with TensorRT's lines if it is None."""
        return check_return_value(value, what, self.rt, since=self.log_mark, fix=fix)

    def log_lines(self, level: int = logging.WARNING) -> tuple[str, ...]:
        """TensorRT's lines since the build began, of this level and above."""
        return self.rt.log.lines(self.log_mark, level)

    def require_taken(self, option: str, wanted: object, taken: object, allowed: str, fix: str) -> None:
        """Compare what TensorRT has after an option was set with what it was set to: some setters give no answer.

        Raises:
            BuildError: it has something else.
        """
        if taken != wanted:
            got = f"{wanted!r}, which {self.rt.title} does not take"
            raise BuildError(f"BuildConfig.{option}", got=got, allowed=allowed, fix=fix, log=self.log_lines())

    def unavailable(self, option: str, wanted: object, allowed: str, fix: str) -> InputError:
        """The error for an option that this TensorRT does not have at all, or not with this value."""
        return InputError(f"BuildConfig.{option}", got=f"{wanted!r} with {self.rt.title}", allowed=allowed, fix=fix)


def compile_plan(request: PlanRequest, report: PhaseReport) -> PlanFacts:
    """Build a plan and write it to its file.

    Args:
        request: what to build.
        report: called from TensorRT's own threads while it builds.

    Returns:
        facts about the build.

    Raises:
        InstallationError: no TensorRT, or the requested GPU can't be used.
        UnsupportedOperatorError: every node that TensorRT can't build.
        DynamicAxisError, InputError: the graph and the signature don't fit.
        BuildError: anything else, with TensorRT's own lines.
    """
    rt = find_tensorrt(request.flavour)
    if request.refittable:
        _check_gpu(rt)
    if request.gpu_index:
        make_gpu_current(request.gpu_index)
    build = _PlanBuild(rt, request, rt.log.mark())
    builder: Builder = build.check(rt.api.Builder(rt.logger), "TensorRT's builder")
    network = _parse(build, builder)
    _check_network(build, network)
    config = _configure(build, builder)
    if request.progress:
        config.progress_monitor = _make_monitor(rt, report)
    for profile in request.profiles:
        _add_profile(build, builder, network, config, profile)
    plan: IHostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_error(build)
    with Path(request.plan_path).open("wb") as file:
        file.write(plan)
    return _facts_of_build(rt, request.gpu_index or 0)


def _facts_of_build(rt: TensorRT, gpu_index: int) -> PlanFacts:
    gpus = list_gpus()
    if gpu_index >= len(gpus):
        return PlanFacts(flavour=rt.name, flavour_version=rt.version)
    builder_gpu = gpus[gpu_index]
    return PlanFacts(
        flavour=rt.name,
        flavour_version=rt.version,
        gpu=builder_gpu.name,
        compute_capability=builder_gpu.compute_capability,
        driver=builder_gpu.driver,
    )


def _check_gpu(rt: TensorRT) -> None:
    """Refuse a refittable engine on a machine without a GPU.

    TensorRT-RTX 1.6 builds other engines there, and fails on refittable ones in words that don't say why.

    Raises:
        InstallationError: there is no GPU.
    """
    if not list_gpus():
        raise InstallationError(
            "BuildConfig.refittable",
            got=f"True for {rt.title} on a machine without a GPU",
            allowed="a GPU, since refittable engines are built on one only",
            fix="build on the machine that runs the engine, or leave refittable out",
        )


def _parse(build: _PlanBuild, builder: Builder) -> INetworkDefinition:
    rt = build.rt
    network: INetworkDefinition = build.check(make_network(rt, builder), "TensorRT's network")
    parser: OnnxParser = rt.api.OnnxParser(network, rt.logger)
    path = build.request.onnx_path
    refittable = build.request.refittable
    cuts_sums = not refittable and not PRECISION_TYPES[build.request.precision].uses_tf32
    changed = parser_input(
        Path(path),
        is_rtx=rt.is_rtx,
        cuts_sums=cuts_sums,
        is_refittable=refittable,
        fuses_attention=build.request.attention == "node",
    )
    # The path is needed, because external data are found beside the file.
    is_parsed = parser.parse_from_file(path) if changed is None else parser.parse(changed, path)
    if not is_parsed:
        # Imported only here, since it loads onnx.
        from torch2engine.builder.unsupported import explain_refusal

        raise explain_refusal(rt, builder, parser, Path(path), build.log_mark)
    _let_attention_decompose(rt, network)
    return network


def _let_attention_decompose(rt: TensorRT, network: INetworkDefinition) -> None:
    """Have attention computed in parts where there is no fused kernel for it. The builder would fail otherwise."""
    attention_layer = getattr(rt.api, "IAttentionInputLayer", None)
    if attention_layer is None:  # an older TensorRT, whose parser has no Attention
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == rt.api.LayerType.ATTENTION_INPUT:
            layer.__class__ = attention_layer  # a network gives every layer the base class
            layer.attention.decomposable = True


def _check_network(build: _PlanBuild, network: INetworkDefinition) -> None:
    """Refuse a network whose inputs and outputs differ from the signature's.

    An input that nothing uses may be missing from the network; the runtime binds by name and skips it.
    """
    signature = build.request.signature
    inputs = {spec.name: spec for spec in signature.inputs}
    for index in range(network.num_inputs):
        tensor: ITensor = network.get_input(index)
        spec = inputs.get(tensor.name)
        if spec is None:
            # TensorRT renames an input that is also an output
            raise BuildError(
                f"network input '{tensor.name}'",
                got="a name that the signature has not",
                allowed=f"one of {', '.join(inputs)}",
                fix="if an input is returned as it came, put an Identity between",
            )
        _check_input(build, spec, tensor)
    outputs: dict[str, ITensor] = {}
    for index in range(network.num_outputs):
        tensor = network.get_output(index)
        outputs[tensor.name] = tensor
    for spec in signature.outputs:
        if spec.name not in outputs:
            raise BuildError(
                f"output '{spec.name}'",
                got="no such output in the network",
                allowed=f"one of {', '.join(outputs)}",
                fix="export the model again",
            )
        _check_dtype(build, spec, outputs[spec.name], "output")


def _check_input(build: _PlanBuild, spec: TensorSpec, tensor: ITensor) -> None:
    _check_dtype(build, spec, tensor, "input")
    if tensor.is_shape_tensor:
        raise InputError(
            f"input '{spec.name}'",
            name=spec.name,
            got="values that decide shapes inside the network",
            allowed="inputs that are data",
            fix="make it a constant, or take the size from another input's dynamic axis",
        )
    shape = tuple(tensor.shape)
    if len(shape) != len(spec.shape):
        raise BuildError(
            f"input '{spec.name}'",
            got=f"{len(shape)} dimensions in the network",
            allowed=f"{len(spec.shape)}",
            fix="export the model again",
        )
    for position, (dim, size) in enumerate(zip(spec.shape, shape, strict=True)):
        if isinstance(dim, str) and size != -1:
            raise DynamicAxisError(
                f"axis '{dim}'",
                axis=dim,
                got=f"the size {size}, fixed in the ONNX graph (dimension {position} of input '{spec.name}')",
                allowed="a symbolic dimension",
                fix="export with that dimension dynamic",
            )


def _check_dtype(build: _PlanBuild, spec: TensorSpec, tensor: ITensor, kind: str) -> None:
    dtype = build.rt.dtype_name(tensor.dtype)
    if dtype != spec.dtype:
        raise BuildError(
            f"{kind} '{spec.name}'",
            got=f"{dtype} from TensorRT",
            allowed=f"{spec.dtype}, as the signature says",
            fix="export the model again",
        )


def _configure(build: _PlanBuild, builder: Builder) -> IBuilderConfig:
    rt = build.rt
    request = build.request
    config: IBuilderConfig = build.check(builder.create_builder_config(), "TensorRT's builder config")
    if PRECISION_TYPES[request.precision].uses_tf32:
        config.set_flag(rt.api.BuilderFlag.TF32)
    else:
        config.clear_flag(rt.api.BuilderFlag.TF32)  # builders start with it on
    if request.refittable:
        config.set_flag(rt.api.BuilderFlag.REFIT)
    if request.compute_capabilities:
        _set_compute_capabilities(build, config)
    if request.hardware_compatibility is not None:
        _set_hardware_compatibility(build, config, request.hardware_compatibility)
    # names, shapes and formats of every layer stay readable in the engine
    config.profiling_verbosity = rt.api.ProfilingVerbosity.DETAILED
    if request.workspace_bytes is not None:
        _set_workspace(build, config, request.workspace_bytes)
    return config


def _set_workspace(build: _PlanBuild, config: IBuilderConfig, size: int) -> None:
    """Bound the device memory that a layer may work in.

    Raises:
        BuildError: TensorRT does not take the size.
    """
    pool = build.rt.api.MemoryPoolType.WORKSPACE
    config.set_memory_pool_limit(pool, size)
    taken = config.get_memory_pool_limit(pool)
    fix = "give less than the GPU's memory"
    build.require_taken("workspace_bytes", size, taken, "bytes of device memory", fix)


def _set_compute_capabilities(build: _PlanBuild, config: IBuilderConfig) -> None:
    """Build for these GPUs.

    Raises:
        InputError: this TensorRT can't build for one of them.
    """
    rt = build.rt
    wanted = [tuple(pair) for pair in build.request.compute_capabilities]
    if not rt.is_rtx:
        allowed = "those that it can build for: none but the present GPU"
        fix = "leave it out, or build with flavour='tensorrt_rtx'"
        raise build.unavailable("compute_capabilities", wanted[0], allowed, fix)
    members: Mapping[str, ComputeCapability] = rt.api.ComputeCapability.__members__
    digits = {name.removeprefix("SM"): member for name, member in members.items()}
    known: dict[tuple[int, ...], ComputeCapability] = {
        (int(text[:-1]), int(text[-1])): member for text, member in digits.items() if text.isdigit()
    }
    missing = [pair for pair in wanted if pair not in known]
    if missing:
        allowed = f"those that it can build for: {', '.join(map(str, sorted(known)))}"
        raise build.unavailable("compute_capabilities", missing[0], allowed, "pass some of these, or leave it out")
    config.num_compute_capabilities = len(wanted)
    for index, pair in enumerate(wanted):
        taken = config.set_compute_capability(known[pair], index)
        build.check(taken, f"compute capability {pair}")


def _set_hardware_compatibility(build: _PlanBuild, config: IBuilderConfig, level: str) -> None:
    """Build for other GPUs as well.

    Raises:
        InputError: this TensorRT says otherwise which GPUs a plan is for.
        BuildError: it does not take the level.
    """
    rt = build.rt
    if rt.is_rtx:
        allowed = "None: its plans run on several GPUs anyway"
        fix = "leave it out, or name GPUs in compute_capabilities"
        raise build.unavailable("hardware_compatibility", level, allowed, fix)
    levels = rt.api.HardwareCompatibilityLevel
    names = {"same_compute_capability": levels.SAME_COMPUTE_CAPABILITY, "ampere_plus": levels.AMPERE_PLUS}
    config.hardware_compatibility_level = names[level]
    is_taken = config.hardware_compatibility_level == names[level]
    fix = "leave it out, and build a plan on each GPU"
    build.require_taken("hardware_compatibility", level, level if is_taken else None, "a level that it supports", fix)


def _add_profile(
    build: _PlanBuild,
    builder: Builder,
    network: INetworkDefinition,
    config: IBuilderConfig,
    profile: Profile,
) -> None:
    subject = f"optimization profile ({profile})"
    trt_profile: IOptimizationProfile = build.check(builder.create_optimization_profile(), subject)
    inputs = {spec.name: spec for spec in build.request.signature.inputs}
    for index in range(network.num_inputs):
        tensor: ITensor = network.get_input(index)
        smallest, opt, largest = (inputs[tensor.name].sized(profile.sizes(corner)) for corner in range(3))
        try:
            trt_profile.set_shape(tensor.name, smallest, opt, largest)
        except (ValueError, TypeError) as error:
            raise BuildError(
                subject,
                got=f"{smallest}, {opt}, {largest} for input '{tensor.name}', which TensorRT refuses: {quote(error)}",
                allowed=_RANGES,
                fix=_FIX_OF_RANGES,
                log=build.log_lines(),
            ) from error
    if not trt_profile or config.add_optimization_profile(trt_profile) < 0:
        raise BuildError(
            subject, got="a profile that TensorRT refuses", allowed=_RANGES, fix=_FIX_OF_RANGES, log=build.log_lines()
        )


def _build_error(build: _PlanBuild) -> BuildError:
    """The failure in TensorRT's words. Memory is named as the cause only where these words name it."""
    warnings = build.log_lines()
    errors = build.log_lines(logging.ERROR)
    about_memory = [line for line in warnings if means_out_of_memory(line)]
    if about_memory:
        return BuildError(
            build.rt.title,
            got="too little memory",
            allowed="more of it",
            fix=", or ".join(_memory_fixes(build.request, about_memory)),
            log=(errors or about_memory)[-_LAST_LINES:],
            out_of_memory=True,
        )
    text = "\n".join(warnings)
    fix = next((fix for phrase, fix in _FIXES.items() if phrase in text), "")
    lines = (errors or warnings)[-_LAST_LINES:]
    # Imported only here, since it loads onnx.
    from torch2engine.builder.blamed_nodes import blamed_nodes

    nodes = [f"from {node}" for node in blamed_nodes(Path(build.request.onnx_path), lines)]
    return BuildError(
        build.rt.title,
        got="no engine",
        allowed="one",
        fix=fix or ("replace the named operation in the model" if nodes else ""),
        log=[*lines, *nodes],
    )


def _memory_fixes(request: PlanRequest, log: Sequence[str]) -> list[str]:
    """List the changes that may let a build succeed with the available memory."""
    fixes: list[str] = []
    if request.workspace_bytes is not None and any(_WORKSPACE.search(line) for line in log):
        fixes.append(f"raise workspace_bytes (it is {request.workspace_bytes})")
    largest = " | ".join(str(profile) for profile in request.profiles if profile.ranges)
    if largest:
        fixes.append(f"lower the largest sizes of the profiles ({largest})")
    fixes.append("free GPU memory")
    return fixes


def _make_monitor(rt: TensorRT, report: PhaseReport) -> IProgressMonitor:
    class Monitor(rt.api.IProgressMonitor):
        """Counts steps. TensorRT calls it from several threads, and may end a phase before its last step."""

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
