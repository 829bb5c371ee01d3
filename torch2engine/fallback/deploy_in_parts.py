"""A model of which some operators have no engine → a module that runs these in PyTorch: deploy(fallback=True).

Enters: the arguments of deploy(), and deploy() itself. Leaves: the module of a whole engine where there is one, else a
`PartsModule` that was compared with the model. Separate because it takes the steps of deploy() for a program that no
single engine takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from torch2engine.artifact.engine_cache import Cache
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.fingerprint import fingerprints
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import (
    BuildConfig,
    Precision,
    Profiles,
    Runtime,
    RuntimeConfig,
    Tolerances,
    require_choice,
)
from torch2engine.core.errors import DynamicAxisError, ExportError, InputError, UnsupportedOperatorError
from torch2engine.core.precisions import DEFAULT_PRECISION
from torch2engine.core.progress import Progress
from torch2engine.core.spec import Preprocess
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.reference_answers import ReferenceAnswers, answer_parity_cases
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import choose_runtime
from torch2engine.deployed.judge import ENGINE_REPEATS, judge
from torch2engine.deployed.module_access import attach_model
from torch2engine.deployed.speed_at_opt import calls_of_both
from torch2engine.exporter.functional_program import FunctionalProgram, export_functional_program
from torch2engine.fallback.deploy_program import ProgramRequest, deploy_program, write_parts_artifact
from torch2engine.fallback.measured_cost import check_whole
from torch2engine.fallback.part_call import DeployPart
from torch2engine.fallback.part_tolerance import RoomForElements
from torch2engine.fallback.parts_module import PartsModule, placement_of
from torch2engine.fallback.program_file import write_program
from torch2engine.parity.parity_report import ParityReport

__all__ = ["with_fallback"]

P = ParamSpec("P")
R = TypeVar("R")

_OR_COMPILE = "; or torch.compile(model, backend='torch2engine'), which leaves such lines to Python"


def with_fallback(deploy: Callable[P, R]) -> Callable[P, R | PartsModule]:
    """Let deploy() take fallback=True.

    Args:
        deploy: the function of this name. It deploys the whole model if that is one engine, else each part.

    Returns:
        the same function, which may return a `PartsModule` under fallback=True.
    """

    @wraps(deploy)
    def deploy_or_cut(*args: P.args, **kwargs: P.kwargs) -> R | PartsModule:
        fallback = kwargs.get("fallback", False)
        require_choice("fallback", fallback, (False, True, "faster"))
        if not fallback:
            return deploy(*args, **kwargs)
        bound = inspect.signature(deploy).bind(*args, **kwargs)
        bound.apply_defaults()
        return _deploy_in_parts(deploy, _Arguments(**bound.arguments).with_recording())

    inner: Any = deploy
    outer: Any = deploy_or_cut
    outer.__kwdefaults__ = inner.__kwdefaults__  # the same dict: a default that is changed holds for both
    return deploy_or_cut


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    """All arguments of deploy(), as the user gave them. An option of deploy() that is missing here is a TypeError.

    Args: as for `deploy`.
    """

    # The model and its sample:
    model: Any
    sample_input: Any
    dynamic_axes: Mapping[str, Any] | None
    profiles: Profiles | None
    examples: Any  # any iterable; a tuple after `with_recording`
    preprocess: Preprocess | Mapping[str, Preprocess] | None
    live_parameters: Sequence[str]
    # Of every part, too:
    precision: str | Precision
    runtime: Runtime
    config: BuildConfig
    cache: Cache
    progress: Progress
    # Of the whole alone:
    calibration: Iterable[Any] | None
    tolerance: Tolerances | None
    runtime_config: RuntimeConfig
    cache_key: str | None
    fallback: bool | str

    @property
    def only_faster(self) -> bool:
        """Whether a part stays in PyTorch where its engine is slower."""
        return self.fallback == "faster"

    def with_recording(self) -> _Arguments:
        """Take from a recording what the user left out, and read the examples, once.

        Raises:
            InputError: as `ModelAndSample.of`; also for live parameters, since parts of a model have none.
        """
        _refuse_live_parameters(self.live_parameters)
        given = ModelAndSample.of(
            self.model, self.sample_input, self.dynamic_axes, self.profiles, self.preprocess, self.examples
        )
        return replace(self, **vars(given))


def _refuse_live_parameters(patterns: object) -> None:
    """Refuse live parameters: a part inside the model has no parameters of its own.

    Raises:
        InputError: there are some.
    """
    if patterns:
        raise InputError(
            "live_parameters",
            got=f"{patterns!r} with fallback",
            allowed="one of them, since parts of a model have no parameters of their own",
            fix="leave fallback out, or replace new weights with refit() and config=BuildConfig(refittable=True)",
        )


def _deploy_in_parts(deploy: Callable[..., Any], arguments: _Arguments) -> Any:
    """Deploy a model as one engine if that is possible; else leave in PyTorch the operators that no engine takes.

    Args:
        deploy: the function of this name.
        arguments: all of its arguments.

    Raises:
        ExportError: the model can't be exported; names torch.compile.
        InputError: an option means nothing for a model in parts.
        Torch2EngineError: as `deploy`, but for operators without an engine.
    """
    try:
        return deploy(**vars(replace(arguments, fallback=False)))
    except UnsupportedOperatorError as error:
        _check_options(arguments, error)
    except DynamicAxisError:
        raise
    except ExportError as error:
        raise ExportError(
            error.subject, got=error.got, allowed=error.allowed, fix=error.fix + _OR_COMPILE, source=error.source
        ) from error
    report = ReportBuilder(arguments.progress)
    runtime = choose_runtime(arguments.runtime, arguments.config, arguments.runtime_config)
    model = unwrap(arguments.model)
    with undisturbed(model):
        exported = _export_program(model, arguments, report)
    captured = exported.captured
    device = torch.device("cpu") if runtime == "onnxruntime" else captured.target_gpu
    deploy_part = partial(
        deploy,
        precision=arguments.precision,
        runtime=runtime,
        config=replace(arguments.config, compare_speed=False),  # nobody reads a part's report
        runtime_config=replace(arguments.runtime_config, out_of_range="error"),
        cache=arguments.cache,
        progress=arguments.progress,
    )
    with_room = RoomForElements(deploy_part, exported.precision)
    module, parity = _make_and_judge(exported, model, device, with_room, arguments, report)
    if not parity.passed and with_room.was_needed:
        del module  # its engines leave the GPU first
        module, parity = _make_and_judge(exported, model, device, deploy_part, arguments, report)
    report.add_parity(parity.raise_if_failed())
    sample = [leaf.to(device) for leaf in captured.sample]
    report.add_notes([*captured.notes, *(f"in PyTorch: {obstacle}" for obstacle in module.timed_obstacles(sample))])
    if arguments.only_faster and captured.sample[0].device.type == device.type:
        report.add_notes([_compare_speed(module, captured, device)])
    module.report = report.build(exported.precision, parts=placement_of(module, device))
    return module


@dataclass(frozen=True)
class _ExportedModel:
    """A model as torch's program, with the model's answers.

    Args:
        captured: the model's call.
        program: the file of the program.
        weights: how the program's weights follow from the model's.
        precision: the requested one, or the model's own.
        answers: what the module in parts is compared with.
    """

    captured: CapturedCall
    program: bytes
    weights: WeightProgram
    precision: str
    answers: ReferenceAnswers


def _export_program(model: nn.Module, arguments: _Arguments, report: ReportBuilder) -> _ExportedModel:
    """Capture a model's call, export its program and run it on the parity cases, inside `undisturbed(model)`."""
    with report.phase("capture"):
        captured = capture_call(
            model,
            arguments.sample_input,
            arguments.dynamic_axes,
            arguments.profiles,
            arguments.preprocess,
            arguments.examples,
        )
    with report.phase("export"):
        exported = export_functional_program(captured)
        captured = exported.captured
        weights = _weight_program(model, exported.program)
        program = write_program(exported.exported)
    requested = Precision.of(arguments.precision).dtype
    precision = captured.precision if requested == DEFAULT_PRECISION else requested
    with report.phase("reference"):
        answers = answer_parity_cases(captured, sensitivity_precisions=(precision,))
    return _ExportedModel(captured, program, weights, precision, answers)


def _make_and_judge(
    exported: _ExportedModel,
    model: nn.Module,
    device: torch.device,
    deploy_part: DeployPart,
    arguments: _Arguments,
    report: ReportBuilder,
) -> tuple[PartsModule, ParityReport]:
    """Deploy the parts of a model, and compare the whole with the model."""
    answers = exported.answers
    cases = answers.parity_cases
    with report.phase("parts"):
        module = _make_module(exported, model, device, deploy_part, arguments)
    if arguments.config.refittable:
        attach_model(module, model, [(case.name, case.inputs) for case in cases], arguments.tolerance)
    with report.phase("parity"):
        return module, judge(module, cases, arguments.tolerance, answers.notes, ENGINE_REPEATS, exported.precision)


def _make_module(
    exported: _ExportedModel, model: nn.Module, device: torch.device, deploy_part: DeployPart, arguments: _Arguments
) -> PartsModule:
    """Cut a program around the operators that no engine takes, and deploy the parts."""
    captured = exported.captured
    request = ProgramRequest(exported.program, captured.signature, device, deploy_part, arguments.only_faster)
    cut = deploy_program(request, [case.inputs for case in exported.answers.parity_cases])
    refit_program = exported.weights if arguments.config.refittable else None
    artifact = write_parts_artifact(cut, captured.signature, captured.profiles, exported.precision, refit_program)
    del cut  # its engines leave the GPU before the same ones are loaded
    reference = model if arguments.runtime_config.out_of_range == "eager" else None
    return PartsModule(artifact, None, device, arguments.runtime_config, reference)


def _compare_speed(module: PartsModule, captured: CapturedCall, device: torch.device) -> str:
    """Time calls of the module beside those of the model, both as a user makes them.

    The float32 switches and attention kernels are the user's: eager must not be slowed down for the comparison.

    Raises:
        BuildError: as `check_whole`.
    """
    model = captured.reference.model
    sample = [leaf.to(device) for leaf in captured.sample]
    with undisturbed(model, is_exact=False):
        return check_whole("model in parts", *calls_of_both(module, captured.reference, sample), device)


def _check_options(arguments: _Arguments, error: UnsupportedOperatorError) -> None:
    """Refuse options that mean nothing for a model in parts.

    Raises:
        InputError: naming the option.
    """
    out_of_range = arguments.runtime_config.out_of_range
    if arguments.calibration is not None:
        raise _without_meaning("calibration", "data", "none, since parts take tensors inside the model", error)
    if out_of_range == "split":
        allowed = "'error' or 'eager', since nobody knows how entries influence each other in PyTorch"
        raise _without_meaning("runtime_config.out_of_range", repr(out_of_range), allowed, error)


def _without_meaning(subject: str, got: str, allowed: str, error: UnsupportedOperatorError) -> InputError:
    refusal = InputError(
        subject,
        got=f"{got} for a model that no single engine takes",
        allowed=allowed,
        fix="leave it out, or replace the operators that the cause of this error names",
    )
    refusal.__cause__ = error
    return refusal


def _weight_program(model: nn.Module, program: FunctionalProgram) -> WeightProgram:
    """The program of a refit: the weights that the graph reads, as they are in the model."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    live = parameters | dict(model.named_buffers(remove_duplicate=False))
    read = {node.name for node in program.graph_module.graph.nodes if node.users}
    paths = {path: path for placeholder, path in program.weights.items() if placeholder in read}
    same: dict[int, list[str]] = {}
    for path, tensor in live.items():
        same.setdefault(id(tensor), []).append(path)
    return WeightProgram(
        sources={path: (tuple(live[path].shape), live[path].dtype) for path in paths},
        shared=tuple(tuple(group) for group in same.values() if len(group) > 1 and paths.keys() & set(group)),
        constants={},
        steps=(),
        weights=paths,
        fixed=(),
        fingerprint=fingerprints({path: live[path] for path in paths}),
        parameters=tuple(parameters),
    )
