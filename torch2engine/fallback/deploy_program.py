"""A program → engines for its parts, and the artifact of both.

Enters: a program's file, inputs to run it on, and deploy(). Leaves: the cut with an engine for every part that has one,
and a `PartsArtifact`. Separate from `deploy_in_parts` because nothing here knows the model that the program came from.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import sympy
import torch
from torch import fx, nn
from torch.utils._sympy.value_ranges import ValueRanges

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.file_access import write_file
from torch2engine.artifact.files import disk_errors
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact, write_engine
from torch2engine.artifact.saved_folder import CUT, PROGRAM, WEIGHTS
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.spec import Profile, Signature
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.explanation import Obstacle
from torch2engine.deployed.module_access import current_artifact_of
from torch2engine.exporter.free_sizes import makes_free_size
from torch2engine.exporter.functional_program import FunctionalProgram
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.deployable_graph import operator_of, source_of
from torch2engine.fallback.fixed_engines import FixedEngines
from torch2engine.fallback.graph_layout import GraphLayout, fake_value, result_names
from torch2engine.fallback.measured_cost import find_slow_parts
from torch2engine.fallback.part_call import DeployPart
from torch2engine.fallback.part_runner import PartRunner, reason_for_pytorch
from torch2engine.fallback.partition import PartitionedGraph
from torch2engine.fallback.program_file import read_program
from torch2engine.fallback.run_record import RunRecord
from torch2engine.fallback.saved_cut import SavedCut, SavedEngine, SavedPart
from torch2engine.fallback.size_versions import TooManySizesError

__all__ = ["DeployedProgram", "ProgramRequest", "deploy_program", "write_parts_artifact"]


@dataclass(frozen=True)
class ProgramRequest:
    """An exported program that is to be deployed in parts.

    Args:
        program: the file of the whole program.
        signature: of the whole call.
        device: where engines and program run.
        deploy_part: makes the engine of a part.
        only_faster: leave a part in PyTorch where PyTorch is faster.
    """

    program: bytes
    signature: Signature
    device: torch.device
    deploy_part: DeployPart
    only_faster: bool = False


@dataclass(frozen=True)
class DeployedProgram:
    """An exported program that is cut into parts, with their engines.

    Args:
        program: the file of the whole program.
        parts: by the names of their operators.
        obstacles: the operators that no engine takes.
    """

    program: bytes
    parts: Mapping[tuple[str, ...], PartRunner]
    obstacles: tuple[Obstacle, ...]


def deploy_program(request: ProgramRequest, calls: Sequence[Sequence[torch.Tensor]]) -> DeployedProgram:
    """Cut a program, and deploy each part on the inputs that it gets in these calls; the largest call comes first.

    Args:
        request: the program, and how to deploy a part.
        calls: flat inputs, on any device; they are copied.
    """
    program = read_program(request.program, "in memory", request.device)
    _allow_smallest_sizes(program, request.signature)
    _bound_value_dependent(program.graph_module.graph)
    record = RunRecord()
    deployer = _ProgramDeployer(request.deploy_part)

    def make_runner(graph_module: fx.GraphModule, layout: GraphLayout) -> PartRunner:
        engines = FixedEngines(graph_module, layout, deployer)
        refusal = reason_for_pytorch(graph_module, layout, CompileOptions.min_nodes)
        return PartRunner(graph_module, layout, engines, record, refusal)

    placeholders = [*program.weights, *program.constants]
    graph = PartitionedGraph(program.graph_module, placeholders, CompileOptions.min_nodes, make_runner, record)
    graph.refuse(_value_dependent(program.graph_module.graph))
    ordered = sorted(calls, key=lambda leaves: -sum(leaf.numel() for leaf in leaves))
    values = [
        program.values(program.tensors, [leaf.to(request.device, copy=True) for leaf in leaves]) for leaves in ordered
    ]
    with torch.no_grad():
        for call_values in values:
            graph(*call_values)
    if request.only_faster:
        graph.leave_slow_parts(lambda cut, parts: find_slow_parts(cut, parts, values[0], request.device))
    deployer.is_open = False
    parts = {part.nodes: part.runner for part in graph.parts()}
    return DeployedProgram(request.program, parts, tuple(record.obstacles.values()))


class _ProgramDeployer:
    """Deploys parts while the program is cut, and none afterwards."""

    def __init__(self, deploy_part: DeployPart) -> None:
        self._deploy_part = deploy_part
        self.is_open = True

    def __call__(
        self, part: nn.Module, tensors: Mapping[str, torch.Tensor], dynamic_axes: Mapping[str, Any]
    ) -> DeployedModule[Any]:
        if not self.is_open:
            raise TooManySizesError("no engine was deployed for these sizes")
        return self._deploy_part(part, tensors, dynamic_axes)


def _value_dependent(graph: fx.Graph) -> dict[str, Obstacle]:
    """The operators whose results have sizes that depend on values; an engine can only go on with such results."""
    return {
        node.name: Obstacle(operator_of(node), source_of(node), "the size of its result depends on values")
        for node in graph.nodes
        if makes_free_size(node)
    }


def _allow_smallest_sizes(program: FunctionalProgram, signature: Signature) -> None:
    """Let the axes begin where the call's axes do: torch traces from 2 on where an axis begins at 1.

    Whether a part holds for 1 too is decided by its own comparisons, and by that of the whole.
    """
    least = {axis.name: axis.min for axis in signature.axes}
    placeholders = {node.name: node for node in program.graph_module.graph.nodes if node.op == "placeholder"}
    for name, spec in zip(program.inputs, signature.inputs, strict=True):
        for size, dim in zip(fake_value(placeholders[name]).shape, spec.shape, strict=True):
            if dim not in least or not isinstance(size, torch.SymInt) or not isinstance(size.node.expr, sympy.Symbol):
                continue
            ranges: dict[sympy.Symbol, Any] = cast("Any", size.node.shape_env).var_to_range
            traced = ranges[size.node.expr]
            ranges[size.node.expr] = ValueRanges(min(least[str(dim)], traced.lower), traced.upper)


def _bound_value_dependent(graph: fx.Graph) -> None:
    """Give the sizes that depend on values the bounds that torch has found, which a saved program checks as it runs.

    A boolean index of 9 items, say, finds at most 9.
    """
    for node in graph.nodes:
        if node.target is not operator.le or not isinstance(node.args[0], fx.Node) or not isinstance(node.args[1], int):
            continue
        size = fake_value(node.args[0])
        if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
            cast("Any", size.node.shape_env).constrain_symbol_range(
                size.node.expr, compiler_min=0, compiler_max=node.args[1]
            )


def write_parts_artifact(
    cut: DeployedProgram,
    signature: Signature,
    profiles: Sequence[Profile],
    precision: str,
    weight_program: WeightProgram | None,
) -> PartsArtifact:
    """Write the artifact of a program in parts to a scratch folder.

    Args:
        cut: the program with its engines.
        signature, profiles, precision: of the whole.
        weight_program: how its weights follow from a model's, if it can be refitted.

    Raises:
        ArtifactError: the disk refused.
    """
    owner = scratch_folder()
    saved: list[SavedPart] = []
    for number, (nodes, runner) in enumerate(cut.parts.items()):
        fixed = runner.engines
        assert isinstance(fixed, FixedEngines), "the kind that deploy_program made"
        engines: list[SavedEngine] = []
        made = [] if runner.refusal else fixed.versions.made()
        for version_number, version_for_sizes in enumerate(made):
            artifact = current_artifact_of(version_for_sizes.value)
            assert isinstance(artifact, (OnnxArtifact, EngineArtifact)), "the kinds that engines have"
            name = f"part-{number}-{version_number}"
            write_engine(owner.path, name, artifact)
            engines.append(SavedEngine(name, version_for_sizes.sizes, version_for_sizes.is_range))
        saved.append(SavedPart(nodes, result_names(runner.graph_module.graph), runner.refusal, tuple(engines)))
    with disk_errors(owner.path):
        write_file(owner.path / PROGRAM, cut.program)
        write_file(owner.path / CUT, SavedCut(tuple(saved), cut.obstacles).to_json())
        if weight_program is not None:
            write_file(owner.path / WEIGHTS, weight_program.to_json())
    return PartsArtifact(
        owner.path,
        signature=signature,
        profiles=profiles,
        precision=precision,
        versions={name: version(name) for name in ("torch", "onnx", "onnxscript")},
        owner=owner,
    )
