"""A model of which some operators have no engine → a module that runs these in PyTorch: deploy(fallback=True).

Enters: the arguments of deploy(), and deploy() itself. Leaves: the module of a whole engine where there is one, else a
`PartsModule` that was compared with the model. Separate because it takes the steps of deploy() for a program that no
single engine takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from torch2engine.capture.fingerprint import fingerprints
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import Precision, require_choice
from torch2engine.core.errors import DynamicAxisError, ExportError, InputError, UnsupportedOperatorError
from torch2engine.core.precisions import DEFAULT_PRECISION
from torch2engine.exporter.program import FunctionalProgram, export_functional_program
from torch2engine.fallback.deploy_program import ProgramRequest, deploy_program, write_parts_artifact
from torch2engine.fallback.measured_cost import check_whole
from torch2engine.fallback.parts_module import PartsModule
from torch2engine.fallback.program_file import write_program
from torch2engine.modules.deployed import attach_model
from torch2engine.modules.judge import ENGINE_REPEATS, judge
from torch2engine.pipeline.model_and_sample import ModelAndSample
from torch2engine.pipeline.reference_answers import answer_parity_cases
from torch2engine.pipeline.report_builder import ReportBuilder
from torch2engine.pipeline.request import choose_runtime

__all__ = ["with_fallback"]

P = ParamSpec("P")
R = TypeVar("R")

_OF_THE_CALL = ("sample_input", "dynamic_axes", "profiles", "preprocess", "examples")
_OF_EVERY_PART = ("precision", "config", "cache", "progress")

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
        _refuse_live_parameters(bound.arguments["live_parameters"])
        given = ModelAndSample.of(**{name: bound.arguments[name] for name in ("model", *_OF_THE_CALL)})
        return _deploy_in_parts(deploy, {**bound.arguments, **vars(given)})

    inner: Any = deploy
    outer: Any = deploy_or_cut
    outer.__kwdefaults__ = inner.__kwdefaults__  # the same dict: a default that is changed holds for both
    return deploy_or_cut


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


def _deploy_in_parts(deploy: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Deploy a model as one engine if that is possible; else leave the operators in PyTorch that no engine takes.

    Args:
        deploy: the function of this name.
        arguments: all of its arguments.

    Raises:
        ExportError: the model can't be exported; names torch.compile.
        InputError: an option means nothing for a model in parts.
        Torch2EngineError: as `deploy`, but for operators without an engine.
    """
    try:
        return deploy(**{**arguments, "fallback": False})
    except UnsupportedOperatorError as error:
        _check_options(arguments, error)
    except DynamicAxisError:
        raise
    except ExportError as error:
        raise ExportError(
            error.subject, got=error.got, allowed=error.allowed, fix=error.fix + _OR_COMPILE, source=error.source
        ) from error
    report = ReportBuilder(arguments["progress"])
    runtime = choose_runtime(arguments["runtime"], arguments["config"], arguments["runtime_config"])
    model = unwrap(arguments["model"])
    with undisturbed(model):
        with report.phase("capture"):
            captured = capture_call(model, **{name: arguments[name] for name in _OF_THE_CALL})
        with report.phase("export"):
            exported = export_functional_program(captured)
            captured = exported.captured
            weights = _weight_program(model, exported.program)
            program = write_program(exported.exported)
        requested = Precision.of(arguments["precision"]).dtype
        precision = captured.precision if requested == DEFAULT_PRECISION else requested
        with report.phase("reference"):
            answers = answer_parity_cases(captured, sensitivity_precisions=(precision,))
            cases = answers.parity_cases
    options = {name: arguments[name] for name in _OF_EVERY_PART} | {"runtime": runtime}
    options["runtime_config"] = replace(arguments["runtime_config"], out_of_range="error")
    device = torch.device("cpu") if runtime == "onnxruntime" else captured.target_gpu
    with report.phase("parts"):
        only_faster = arguments["fallback"] == "faster"
        request = ProgramRequest(program, device, partial(deploy, **options), only_faster)
        cut = deploy_program(request, [case.inputs for case in cases])
        refit_program = weights if arguments["config"].refittable else None
        artifact = write_parts_artifact(cut, captured.signature, captured.profiles, precision, refit_program)
        del cut  # its engines leave the GPU before the same ones are loaded
        eager = model if arguments["runtime_config"].out_of_range == "eager" else None
        module = PartsModule(artifact, None, device, arguments["runtime_config"], eager)
    if refit_program is not None:
        samples = [(case.name, case.inputs) for case in cases]
        attach_model(module, model, samples, arguments["tolerance"])
    with report.phase("parity"):
        parity = judge(module, cases, arguments["tolerance"], answers.notes, ENGINE_REPEATS, precision)
        report.add_parity(parity.raise_if_failed())
    sample = [leaf.to(device) for leaf in captured.sample]
    report.add_notes([*captured.notes, *(f"in PyTorch: {obstacle}" for obstacle in module.timed_obstacles(sample))])
    if only_faster and captured.sample[0].device.type == device.type:
        with undisturbed(model):
            report.add_notes([check_whole(lambda: module.infer(sample), lambda: captured.reference(sample), device)])
    module.report = report.build(precision)
    return module


def _check_options(arguments: Mapping[str, Any], error: UnsupportedOperatorError) -> None:
    """Refuse options that mean nothing for a model in parts.

    Raises:
        InputError: naming the option.
    """
    out_of_range = arguments["runtime_config"].out_of_range
    if arguments["calibration"] is not None:
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
