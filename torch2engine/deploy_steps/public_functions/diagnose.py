"""A model and a deployed module whose answers differ → the first torch module that is wrong.

Enters: the model, the module and an input. Leaves: a `Diagnosis`. Separate from `check`, which compares outputs alone:
this compares what every module returns, by ONNX Runtime or by an engine whose outputs are marked.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import nn

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import ONNX
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.builder.build import build
from torch2engine.capture.examples import with_examples
from torch2engine.capture.module_calls import ModuleCall, record_module_calls
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import BuildConfig, Flavour, Tolerance
from torch2engine.core.errors import ArtifactError
from torch2engine.core.precisions import DEFAULT_PRECISION, FLOAT32_PRECISIONS, Float32PrecisionName
from torch2engine.deploy_steps.public_functions.check import capture_like
from torch2engine.deploy_steps.public_functions.compare_deployed import answer_on_any_device
from torch2engine.deploy_steps.public_functions.diagnosis import Diagnosis, ModuleDifference, Stage
from torch2engine.deploy_steps.reference_answers import answer_parity_cases
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.judge import judge
from torch2engine.deployed.module_access import artifact_of, runtime_kind
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.module_outputs import declare_outputs, find_module_outputs, following, sources_of
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.parity.compare import compare
from torch2engine.parity.tolerance_bounds import Bounds
from torch2engine.precision.lowered_parity import parity_cases_for

__all__ = ["diagnose"]

Arrays = dict[str, NDArray[Any]]


def diagnose(
    model: nn.Module, module: DeployedModule[Any], inputs: Any, *, tolerance: Tolerance | None = None
) -> Diagnosis:
    """Find the first torch module whose output differs between a model and the module that was deployed from it.

    The model.onnx of the deployed module runs in ONNX Runtime, and returns what every torch module makes. If these
    tensors are right and the engine's answer is wrong, TensorRT builds another engine, which returns the same tensors
    at these sizes.

    Args:
        model: the reference; it runs in evaluation mode, and is left as it was.
        module: what `deploy` or `load` gave.
        inputs: one call, in the form of deploy's sample_input.
        tolerance: when a tensor counts as equal; by default the one of the module's precision.

    Returns:
        the stage that is wrong, the first wrong module, the worst tensors, and a command that reproduces them.

    Raises:
        ArtifactError: the module comes without its model.onnx.
        InputError, ShapeError: the inputs do not fit the module.

    >>> t2e.diagnose(model, module, sample).passed
    True
    """
    model = unwrap(model)
    artifact = artifact_of(module)
    onnx_path = artifact.checked_onnx_path if isinstance(artifact, OnnxArtifact | EngineArtifact) else None
    if onnx_path is None:
        raise ArtifactError(f"{artifact!r}", got=f"no {ONNX}", allowed="a module with it", fix="deploy the model again")
    with undisturbed(model), torch.no_grad():
        captured = with_examples(capture_like(artifact, model, inputs), (inputs,))
        leaves = captured.sample
        cases = answer_parity_cases(captured, sensitivity_precisions=(artifact.precision,)).parity_cases
        calls = record_module_calls(model, lambda: captured.reference.call([leaf.clone() for leaf in leaves]))
    parity = judge(module, parity_cases_for(artifact.precision, cases), tolerance)
    if parity.passed:
        return Diagnosis(parity, "none", None, ())
    arrays = {
        spec.name: leaf.detach().cpu().numpy() for spec, leaf in zip(artifact.signature.inputs, leaves, strict=True)
    }
    bounds = Bounds.of(tolerance, artifact.precision, runtime_kind(module))
    with scratch_folder() as folder:
        marked = folder / ONNX
        graph = _MatchedGraph.by_onnxruntime(load_model(onnx_path), marked, arrays, calls)
        differences = graph.differences(graph.values, bounds)
        stage: Stage = "graph"
        if isinstance(module, TRTModule) and all(difference.parity.passed for difference in differences):
            differences = graph.differences(_engine_values(graph, marked, arrays, artifact, module), bounds)
            stage = "plan" if all(difference.parity.passed for difference in differences) else "engine"
    first = graph.first(differences)
    return Diagnosis(parity, stage, first, differences, _command(first, arrays, artifact))


@dataclass(frozen=True)
class _Match:
    """A tensor of the ONNX graph that stands for what a module returns.

    Args:
        call: of the module.
        value: what it returned.
        tensor: the tensor's name.
        computed_with: modules whose arithmetic is part of this tensor.
    """

    call: ModuleCall
    value: torch.Tensor
    tensor: str
    computed_with: tuple[str, ...]


@dataclass(frozen=True)
class _MatchedGraph:
    """An ONNX graph whose outputs stand for what modules return.

    Args:
        model: ModelProto with these outputs.
        values: of the outputs by name, as ONNX Runtime gives them.
        matches: which output stands for which module.
        sources: the user's line by name of a tensor.
    """

    model: Any
    values: Arrays
    matches: Sequence[_Match]
    sources: Mapping[str, str]

    @classmethod
    def by_onnxruntime(cls, model: Any, path: Path, arrays: Arrays, calls: Sequence[ModuleCall]) -> _MatchedGraph:
        """Let ONNX Runtime give every tensor that may stand for a module's output, and match them.

        Args:
            model: ModelProto; these tensors become its outputs.
            path: of the file to write.
            arrays: the inputs by name.
            calls: of the modules.
        """
        sources = sources_of(model)
        outputs = find_module_outputs(model)
        declare_outputs(model, [name for names in outputs.values() for name in names])
        save_model(model, path)
        values = OrtSession(path)(arrays)
        return cls(model, values, _match(outputs, values, calls), sources)

    def differences(self, values: Arrays, bounds: Bounds) -> tuple[ModuleDifference, ...]:
        """Compare what every module returns with the tensor that stands for it.

        Args:
            values: of the outputs by name.
            bounds: when two tensors count as equal.
        """
        found: list[ModuleDifference] = []
        for match in self.matches:
            candidate = torch.from_numpy(values[match.tensor]).to(match.value.dtype)
            row = compare({match.tensor: match.value}, {match.tensor: candidate}, bounds)[0]
            source = self.sources.get(match.tensor, "")
            found.append(ModuleDifference(match.call.path, match.tensor, source, row, match.computed_with))
        return tuple(found)

    def first(self, differences: Sequence[ModuleDifference]) -> ModuleDifference | None:
        """The first module that differs, and whose difference does not vanish in all that follows from it.

        A graph may compute a module's output in another way than PyTorch, and be right in the end.
        """
        next_of = following(self.model, {difference.tensor for difference in differences})
        wrong = {difference.tensor for difference in differences if not difference.parity.passed}
        for difference in differences:
            if difference.tensor in wrong:
                followers = next_of[difference.tensor]
                if not followers or followers & wrong:
                    return difference
        return None


def _engine_values(
    graph: _MatchedGraph, path: Path, arrays: Arrays, artifact: Artifact, module: TRTModule[Any]
) -> Arrays:
    """Build an engine that gives every output of a graph, and run it.

    Args:
        graph: its outputs get the types and sizes that its values have.
        path: of the file to write.
        arrays: the inputs by name. The engine takes their sizes alone.
        artifact: whose flavour and precision count.
        module: whose device runs it.
    """
    declare_outputs(graph.model, (), graph.values, arrays)
    save_model(graph.model, path)
    flavour = artifact.hardware.flavour if isinstance(artifact, EngineArtifact) else None
    is_float32 = artifact.precision in FLOAT32_PRECISIONS  # else the graph itself has the types
    precision = cast("Float32PrecisionName", artifact.precision if is_float32 else DEFAULT_PRECISION)
    engine = build(path, precision=precision, config=BuildConfig(flavour=cast("Flavour | None", flavour)))
    leaves = [torch.from_numpy(arrays[spec.name]) for spec in engine.signature.inputs]
    answers = answer_on_any_device(TRTModule(engine, device=module.device), leaves)
    return {name: answer.float().cpu().numpy() for name, answer in answers.items()}


def _match(
    outputs: Mapping[str, Sequence[str]], values: Mapping[str, NDArray[Any]], calls: Sequence[ModuleCall]
) -> list[_Match]:
    """Find the tensor that stands for each module's output: the last one of its shape.

    A module that is called more than once is left out, since its nodes have one origin. A module without nodes of its
    own was merged with the module before it, as a BatchNorm is with its convolution. The tensor of the earlier module
    then has the values of the later module.
    """
    counts = Counter(call.path for call in calls)
    stands_for: dict[str, ModuleCall] = {}  # path of the module whose nodes make a tensor -> whose output it is
    merged: dict[str, tuple[str, ...]] = {}
    maker: dict[str, str] = {}  # path of a module -> path of the module whose nodes make its output
    for call in calls:
        if counts[call.path] > 1 or not call.outputs:
            continue
        if call.path in outputs:
            maker[call.path] = call.path
            stands_for[call.path] = call
        elif len(call.inputs_from) == 1 and call.inputs_from[0] in maker:
            origin = maker[call.path] = maker[call.inputs_from[0]]
            merged[origin] = (*merged.get(origin, ()), stands_for[origin].path)
            stands_for[origin] = call
    matches: list[_Match] = []
    free = set(values)
    for origin, call in stands_for.items():
        for value in call.outputs:
            shaped = [name for name in outputs[origin] if name in free and values[name].shape == tuple(value.shape)]
            if shaped:
                matches.append(_Match(call, value, shaped[-1], merged.get(origin, ())))
                free.remove(shaped[-1])
    return matches


def _command(first: ModuleDifference | None, arrays: Arrays, artifact: Artifact) -> str:
    """The Polygraphy command that compares the first wrong tensor; random inputs of the same sizes stand for these."""
    if first is None:
        return ""
    is_rtx = isinstance(artifact, EngineArtifact) and artifact.hardware.flavour == "tensorrt_rtx"
    shapes = [f"{name}:[{','.join(map(str, array.shape))}]" for name, array in arrays.items()]
    words = ["polygraphy", "run", str(artifact.folder / ONNX), "--onnxrt", "--onnx-outputs", first.tensor]
    if isinstance(artifact, EngineArtifact):
        words += ["--trt", "--trt-outputs", first.tensor]
    words += ["--input-shapes", *shapes]
    return ("POLYGRAPHY_USE_TENSORRT_RTX=1 " if is_rtx else "") + shlex.join(words)
