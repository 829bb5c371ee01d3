"""A saved model in parts → an object that answers its calls on one device.

Enters: a `PartsArtifact`. Leaves: flat inputs answered by its engines and by PyTorch. Separate from `parts_backend`
because locks, processes and saving mean nothing here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch.nn import Parameter

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.artifact.saved_folder import CUT, PROGRAM
from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import ArtifactError
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.explanation import GraphPartRecord, Obstacle
from torch2engine.deployed.fresh_outputs import fresh_outputs, memory_of
from torch2engine.deployed.module_access import current_artifact_of
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.deployed.whole_graph import WholeGraphs
from torch2engine.fallback.cuda_graph_refusals import reason_against_capture
from torch2engine.fallback.deployable_graph import operator_of, source_of
from torch2engine.fallback.fixed_engines import FixedEngines
from torch2engine.fallback.graph_layout import GraphLayout, result_names
from torch2engine.fallback.part_runner import PartRunner
from torch2engine.fallback.partition import operators_in_pytorch, placement, repeat_cut
from torch2engine.fallback.program_file import read_program
from torch2engine.fallback.run_record import RunRecord, synchronized_seconds
from torch2engine.fallback.saved_cut import SavedCut, SavedEngine
from torch2engine.fallback.size_versions import Version

__all__ = ["PartsSession"]

_logger = logging.getLogger(__name__)

_MOST_ANSWERED = 256


class PartsSession:
    """The engines, the graph and the weights of a model in parts. Threads may share it, but for a refit.

    Args:
        artifact: the model.
        device: where it runs.
        runtime_config: how TensorRT engines answer.
        record: takes what the parts find out about themselves.

    Raises:
        ArtifactError: the artifact is not valid, or not for this GPU.
        InstallationError: no GPU, or no TensorRT of the flavour.
    """

    def __init__(
        self, artifact: PartsArtifact, device: torch.device, runtime_config: RuntimeConfig, record: RunRecord
    ) -> None:
        self.device = device
        self._runtime_config = runtime_config
        self._record = record
        self._modules: dict[str, DeployedModule[Any]] = {}
        self._built_from: dict[str, OnnxArtifact | EngineArtifact] = {}
        self._parts: list[FixedEngines] = []
        self._dtypes = [torch_dtype(spec.dtype) for spec in artifact.signature.inputs]
        self._answered: set[tuple[torch.Size, ...]] = set()
        where = f"{artifact}"
        cut = SavedCut.from_json(artifact.read(CUT), where)
        self._program = read_program(artifact.read(PROGRAM), where, device)

        def make_runner(number: int, graph_module: fx.GraphModule, layout: GraphLayout) -> PartRunner:
            saved = cut.parts[number]
            if result_names(graph_module.graph) != saved.results:
                raise ValueError(f"part {number} returns {', '.join(result_names(graph_module.graph))}")
            part = FixedEngines(graph_module, layout)
            for engine in saved.engines:
                part.versions.add(Version(self._load(artifact, engine), engine.sizes, engine.is_range))
            self._parts.append(part)
            return PartRunner(graph_module, layout, part, record, saved.reason)

        for obstacle in cut.obstacles:
            record.add_obstacle(obstacle)
        constants = [*self._program.weights, *self._program.constants]
        try:
            self._graph = repeat_cut(
                self._program.graph_module, constants, [part.nodes for part in cut.parts], make_runner
            )
        except (KeyError, ValueError) as error:
            raise ArtifactError(
                f"artifact '{where}'",
                got=f"a {CUT} that does not fit the {PROGRAM} ({error})",
                allowed="files of one model",
                fix="save it again or restore it from a copy",
                path=where,
            ) from error
        self._call_graph: Any = self._graph.forward  # without the hooks of a module, which nobody has set here
        self._place_weights(self._program.tensors)
        self._whole_graphs = self._make_whole_graphs()

    def _make_whole_graphs(self) -> WholeGraphs | None:
        """What captures whole calls; None where no CUDA graph may hold one, or the user wants none."""
        graphs = self._runtime_config.cuda_graphs
        modules = [version.value for part in self._parts for version in part.versions.made()]
        engines = [module for module in modules if isinstance(module, TRTModule)]
        if graphs is False or not engines:
            return None
        reason = reason_against_capture(operators_in_pytorch(self._graph), is_forced=graphs is True)
        if not reason:
            return WholeGraphs(self.device, self._runtime_config, engines)
        _logger.info("no CUDA graph holds a whole call: %s", reason)
        return None

    def _load(self, artifact: PartsArtifact, engine: SavedEngine) -> DeployedModule[Any]:
        built = artifact.engine(engine.name)
        module: DeployedModule[Any]
        if isinstance(built, EngineArtifact):
            module = TRTModule(built, runtime_config=self._runtime_config).bind(self.device)
        else:
            module = ORTModule(built)
        self._modules[engine.name] = module
        self._built_from[engine.name] = built
        return module

    def _place_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Make the values of a call without its inputs; each call takes a copy of this list."""
        self._weights = dict(weights)
        program = self._program
        names = [node.name for node in program.graph_module.graph.nodes if node.op == "placeholder"]
        self._slots = [names.index(name) for name in program.inputs]
        tensors = {**program.constants, **{name: weights[path] for name, path in program.weights.items()}}
        self._taken = frozenset(memory_of(tensor) for tensor in tensors.values())
        self._values: list[Any] = [tensors.get(name) for name in names]  # last: one assignment changes all weights

    def is_plain_call(self, leaves: Sequence[Any]) -> bool:
        """Whether inputs need no cast, copy or refusal, and have shapes that were answered before.

        Every check of the call contract is in here, in its cheapest form.

        Args:
            leaves: whatever the caller passed.
        """
        grad = torch.is_grad_enabled()
        shapes: list[torch.Size] = []
        try:
            for leaf, dtype in zip(leaves, self._dtypes, strict=True):
                # Other classes are no tensors, or subclasses with a meaning of their own.
                if type(leaf) is not torch.Tensor and type(leaf) is not Parameter:
                    return False
                if leaf.dtype is not dtype or leaf.device != self.device or (grad and leaf.requires_grad):
                    return False
                if leaf.is_neg() or not leaf.is_contiguous() or not leaf.data_ptr():
                    return False
                shapes.append(leaf.shape)
        except (RuntimeError, ValueError):  # a stand-in without memory, another layout, another number of inputs
            return False
        return tuple(shapes) in self._answered

    def remember(self, inputs: Sequence[torch.Tensor]) -> None:
        """Let later calls at the shapes of these inputs be plain ones."""
        if len(self._answered) >= _MOST_ANSWERED:
            self._answered = set()
        self._answered.add(tuple([tensor.shape for tensor in inputs]))

    def answer(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Answer flat inputs on the device, by one CUDA graph where there is one, else part by part."""
        if self._whole_graphs is None or self._record.is_timed:
            return self.run(inputs)
        return self._whole_graphs.answer(inputs, self.run)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Answer flat inputs on the device with fresh tensors, part by part."""
        values = list(self._values)
        for slot, tensor in zip(self._slots, inputs, strict=True):
            values[slot] = tensor
        return fresh_outputs(self._call_graph(*values), inputs, self._taken)

    def time_operators(self, inputs: Sequence[torch.Tensor]) -> dict[tuple[str, str], float]:
        """Time the operators that PyTorch runs outside of all parts, in one call; waits for the GPU after each.

        Returns:
            (operator, "FILE:LINE") -> seconds.
        """
        values = list(self._values)
        for slot, tensor in zip(self._slots, inputs, strict=True):
            values[slot] = tensor
        timer = _OperatorTimer(self._graph)
        with torch.no_grad():
            timer.run(*values)  # PyTorch's preparations at a first call are not counted
            timer.seconds.clear()
            timer.run(*values)
        return timer.seconds

    def placement(self, obstacles: Sequence[Obstacle]) -> list[GraphPartRecord]:
        """What runs where, in the order of the operators.

        Args:
            obstacles: the operators that no engine takes.
        """
        return placement(self._graph, obstacles)

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give new weights to all engines and to the operators in PyTorch.

        Args:
            weights: by path, on the device; they belong to this object now. Others stay as they are.

        Raises:
            RefitError: an engine does not take them; earlier ones have taken them.
        """
        program = self._program
        merged = {**self._weights, **weights}
        placeholders = {**program.constants, **{name: merged[path] for name, path in program.weights.items()}}
        with self._without_whole_graphs():
            for part in self._parts:
                part.refit(placeholders)
            self._place_weights(merged)

    def trim(self) -> None:
        """Wait for calls in flight and give back the engines' working memory and contexts, and all CUDA graphs."""
        with self._without_whole_graphs():
            for module in self._modules.values():
                if isinstance(module, TRTModule):
                    module.trim()

    def _without_whole_graphs(self) -> AbstractContextManager[None]:
        return nullcontext() if self._whole_graphs is None else self._whole_graphs.suspended()

    def changed_engines(self) -> dict[str, OnnxArtifact | EngineArtifact]:
        """The artifacts of engines to which calls and refits have added something, by name."""
        changed: dict[str, OnnxArtifact | EngineArtifact] = {}
        for name, module in self._modules.items():
            current = current_artifact_of(module)
            assert isinstance(current, (OnnxArtifact, EngineArtifact)), "the kinds that engines have"
            if current is not self._built_from[name]:
                changed[name] = current
        return changed


class _OperatorTimer(fx.Interpreter):
    """Runs a cut program, and times the operators that PyTorch runs outside of its parts."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seconds: dict[tuple[str, str], float] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.op != "call_function":
            return super().run_node(n)
        start = synchronized_seconds()
        result = super().run_node(n)
        key = (operator_of(n), source_of(n))
        self.seconds[key] = self.seconds.get(key, 0.0) + synchronized_seconds() - start
        return result
