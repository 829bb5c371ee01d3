"""A model of which some operators have no engine → a module that runs these in PyTorch: deploy(fallback=True).

Enters: the arguments of deploy(), and deploy() itself. Leaves: the module of a whole engine where there is one, else a
`PartsModule` that was compared with the model. Separate because it repeats deploy() for every part of one program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from torch2engine.capture.examples import read_examples
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import Precision, Tolerances
from torch2engine.core.errors import DynamicAxisError, ExportError, InputError, UnsupportedOperatorError
from torch2engine.exporter.program import FunctionalProgram, export_functional_program
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.explanation import Obstacle, RunRecord
from torch2engine.fallback.graph_layout import fake_value
from torch2engine.fallback.graph_part import operator_of, source_of
from torch2engine.fallback.part_engine import DeployPart
from torch2engine.fallback.part_runner import PartRunner
from torch2engine.fallback.partition import PartitionedGraph
from torch2engine.fallback.parts_module import PartsModule
from torch2engine.fallback.size_versions import TooManySizesError
from torch2engine.modules.deployed import DeployedModule
from torch2engine.parity.bounds import Bounds
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport
from torch2engine.pipeline.deploy_report import ReportBuilder

__all__ = ["with_fallback"]

P = ParamSpec("P")
R = TypeVar("R")

_OF_THE_CALL = ("sample_input", "dynamic_axes", "profiles", "preprocess", "examples")
_OF_EVERY_PART = ("precision", "runtime", "config", "runtime_config", "cache", "progress")

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
        if not kwargs.get("fallback"):
            return deploy(*args, **kwargs)
        call = inspect.signature(deploy).bind(*args, **kwargs)
        call.apply_defaults()
        arguments = {**call.arguments, "fallback": False, "examples": read_examples(call.arguments["examples"])}
        return _deploy_in_parts(deploy, arguments)

    inner: Any = deploy
    outer: Any = deploy_or_cut
    outer.__kwdefaults__ = inner.__kwdefaults__  # the same dict: a default that is changed holds for both
    return deploy_or_cut


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
        return deploy(**arguments)
    except UnsupportedOperatorError as error:
        _check_options(arguments, error)
    except DynamicAxisError:
        raise
    except ExportError as error:
        raise ExportError(
            error.subject, got=error.got, allowed=error.allowed, fix=error.fix + _OR_COMPILE, source=error.source
        ) from error
    report = ReportBuilder()
    model = unwrap(arguments["model"])
    with undisturbed(model):
        with report.phase("capture"):
            captured = capture_call(model, **{name: arguments[name] for name in _OF_THE_CALL})
        with report.phase("export"):
            program = export_functional_program(captured)
        with report.phase("reference"):
            cases, notes = make_parity_cases(program.captured)
        weights = _copied_weights(model, program)
    deploy_part = partial(deploy, **{name: arguments[name] for name in _OF_EVERY_PART})
    with report.phase("parts"):
        module = _make_parts(program, weights, cases, deploy_part)
    precision = Precision.of(arguments["precision"]).dtype
    with report.phase("parity"):
        report.add_parity(_compare(module, cases, arguments["tolerance"], precision, notes).raise_if_failed())
    report.add_notes([*captured.notes, *(f"in PyTorch: {obstacle}" for obstacle in module.obstacles)])
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
    if arguments["config"].refittable:
        raise _without_meaning("config.refittable", "True", "False, since a model in parts keeps its weights", error)
    if out_of_range != "error":
        allowed = "'error', since parts have sizes of their own"
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


def _copied_weights(model: nn.Module, program: FunctionalProgram) -> dict[str, torch.Tensor]:
    """The weights that the program reads, by path, as they are now."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {path: tensors[path].detach().clone() for path in program.weights.values()}


def _value_dependent(graph: fx.Graph) -> dict[str, Obstacle]:
    """The operators whose results have sizes that depend on values; an engine can only go on with such results."""
    return {
        node.name: Obstacle(operator_of(node), source_of(node), "the size of its result depends on values")
        for node in graph.nodes
        if _free_sizes(node) and not any(map(_free_sizes, node.all_input_nodes))
    }


def _free_sizes(node: fx.Node) -> bool:
    value = fake_value(node)
    return isinstance(value, torch.Tensor) and bool(free_unbacked_symbols(value.shape))


class _PartDeployer:
    """Deploys parts while the module is made, and none in a later call."""

    def __init__(self, deploy_part: DeployPart) -> None:
        self._deploy_part = deploy_part
        self.is_open = True

    def __call__(
        self, part: nn.Module, tensors: Mapping[str, torch.Tensor], dynamic_axes: Mapping[str, Any]
    ) -> DeployedModule[Any]:
        if not self.is_open:
            raise TooManySizesError("no engine was deployed for these sizes")
        return self._deploy_part(part, tensors, dynamic_axes)


def _make_parts(
    program: FunctionalProgram,
    weights: Mapping[str, torch.Tensor],
    cases: Sequence[ParityCase],
    deploy_part: DeployPart,
) -> PartsModule:
    """Cut the program, and deploy its parts on what the parity cases make of their inputs; the largest case first."""
    record = RunRecord()
    options = CompileOptions(weights="versioned")  # the module's own copies, which nobody else has
    deployer = _PartDeployer(deploy_part)
    graph = PartitionedGraph(
        program.graph_module,
        [*program.weights, *program.constants],
        options.min_nodes,
        lambda graph_module, layout: PartRunner(graph_module, layout, options, deployer, record),
        record,
    )
    graph.refuse(_value_dependent(program.graph_module.graph))
    module = PartsModule(program, graph, weights, record)
    for case in sorted(cases, key=lambda case: -sum(leaf.numel() for leaf in case.inputs)):
        module.infer(case.inputs)
    deployer.is_open = False
    return module


def _compare(
    module: PartsModule,
    cases: Sequence[ParityCase],
    tolerance: Tolerances | None,
    precision: str,
    notes: Sequence[str],
) -> ParityReport:
    bounds = Bounds.of(tolerance, precision)
    report = ParityReport((), "PyTorch vs engines and PyTorch", bounds.tolerance, tuple(notes))
    for case in cases:
        bounds.check_names(case.outputs)
        report = report.add(compare(case.outputs, module.infer(case.inputs), bounds, case=case.name))
    return report
