"""A float32 model + the nodes that stay in float32 → one lowered graph, judged.

Enters: the exported model, parity cases, calibration data. Leaves: a `LoweredModel` for each choice of float32 nodes.
Separate because a budget makes several graphs of one model, and `budget_search` decides which.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch2engine.artifact.file_access import write_file
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.capture.live_parameters import saved_live_values
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import Precision, Tolerance, Tolerances
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import CAST_PRECISIONS, PRECISION_TYPES
from torch2engine.core.preprocess import ORIGIN
from torch2engine.core.progress import Reporter
from torch2engine.core.wording import did_you_mean
from torch2engine.deployed.judge import judge
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.onnx_graph.model_file import load_model
from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.parity.parity_report import ParityReport
from torch2engine.precision.calibration import Arrays, calibration_arrays, metric_of_budget, named_arrays
from torch2engine.precision.graph.cast import cast_graph, nodes_out_of_range
from torch2engine.precision.graph.count_nodes import count_nodes
from torch2engine.precision.graph.quantize import quantize
from torch2engine.precision.graph.tensor_maxima import absolute_maxima
from torch2engine.precision.lowered_model import LoweredModel
from torch2engine.precision.lowered_parity import (
    cast_case,
    cast_signature,
    parity_cases_for,
    tolerance_for,
)
from torch2engine.precision.retype_weights import retype_weight_program

__all__ = ["GraphLowering"]

_AS_ON_A_GPU = "rounding after every operator"

# The metric decides instead; elements that are not finite still fail.
_UNBOUNDED = Tolerance(rel_l2=1e6, max_rel=1e6, mismatch=1.0)


class GraphLowering:
    """Makes lowered graphs of one model.

    Args:
        artifact: the exported model.
        precision: the requested one, and what it may cost.
        cases: the parity cases; also the calibration data where there is no other.
        calibration, tolerance, flavour: as for `torch2engine.precision.lower.lower`.
        report: receives every batch of the calibration data.
    """

    def __init__(
        self,
        artifact: OnnxArtifact,
        precision: Precision,
        cases: Sequence[ParityCase],
        calibration: Iterable[Any] | None,
        tolerance: Tolerances | None,
        flavour: str | None,
        report: Reporter,
    ) -> None:
        self.artifact = artifact
        self.precision = precision
        self.cases = parity_cases_for(precision.dtype, cases)
        self._live = saved_live_values(artifact)
        self.metric = metric_of_budget(precision.budget, artifact.signature, calibration, self._live)
        self.tolerance = _UNBOUNDED if self.metric is not None else tolerance_for(precision, tolerance)
        self.judged_as = precision.lowest_type
        self.module_of_node = node_modules(load_model(artifact.checked_onnx_path))
        self._calibration = calibration
        self._flavour = flavour
        self._report = report

    def batches(self) -> Iterable[Arrays]:
        """Give calibration data as arrays, one batch at a time; the parity cases' inputs if there is no other."""
        if self._calibration is not None:
            return calibration_arrays(self._calibration, self.artifact.signature, self._report, self._live)
        return (named_arrays(self.artifact.signature, case.inputs) for case in self.cases)

    @cached_property
    def tensor_maxima(self) -> dict[str, float]:
        """The largest absolute value of every float32 tensor on the calibration data, which is read for it once."""
        return absolute_maxima(self.artifact.checked_onnx_path, self.batches())

    def requested_float32_nodes(self) -> dict[str, str]:
        """Find the nodes that `keep_fp32` names, and those of `preprocess`: node name -> reason.

        Raises:
            InputError: a path that fits no module.
        """
        # A mean that is rounded to 16 bits makes the same error in every pixel.
        reasons = {node: "makes the input of bytes" for node, module in self.module_of_node.items() if module == ORIGIN}
        modules = sorted(set(self.module_of_node.values()))
        for pattern in self.precision.keep_fp32:
            fitting = {m for m in modules if fnmatch.fnmatchcase(m, pattern) or fnmatch.fnmatchcase(m, f"{pattern}.*")}
            if not fitting:
                raise InputError(
                    "Precision.keep_fp32",
                    got=f"{pattern!r}, which names no module",
                    allowed="modules of the graph: " + ", ".join(repr(module) for module in modules[:20]),
                    fix=did_you_mean(pattern, modules) or "name one of these, with * and ? for any letters",
                )
            nodes = [node for node, module in self.module_of_node.items() if module in fitting]
            reasons |= dict.fromkeys(nodes, "named in keep_fp32")
        return reasons

    def overflowing_nodes(self) -> dict[str, str]:
        """Find the nodes whose values the precision can't hold: node name -> reason.

        Calibration data is read only for a precision whose range matters.
        """
        if self.precision.dtype not in CAST_PRECISIONS:
            return {}
        row = PRECISION_TYPES[self.precision.dtype]
        largest_of_node = nodes_out_of_range(self.artifact.checked_onnx_path, row.name, self.tensor_maxima)
        largest_of_module: dict[str, float] = {}
        for node, largest in largest_of_node.items():
            module = self.module_of_node[node]
            largest_of_module[module] = max(largest, largest_of_module.get(module, 0.0))
        headroom = " with room to spare" if row.has_headroom else ""
        return {
            node: f"reaches {largest_of_module[self.module_of_node[node]]:.3g}, which {row.dtype} can't hold{headroom}"
            for node in largest_of_node
        }

    def make(self, float32_reasons: Mapping[str, str]) -> LoweredModel:
        """Lower all nodes but some, and judge the result.

        Args:
            float32_reasons: nodes that stay in float32 -> why.
        """
        folder = scratch_folder()
        onnx_path = Path(folder.path) / "model.onnx"
        notes = self._write_graph(onnx_path, float32_reasons)
        self._write_weight_program(onnx_path)
        artifact = self.artifact.replace(
            folder=folder.path,
            owner=folder,
            signature=cast_signature(self.artifact.signature, self.precision),
            precision=self.precision.dtype,
        )
        cases = [cast_case(case, artifact.signature, self.precision.dtype) for case in self.cases]
        return LoweredModel(
            artifact=artifact,
            parity_cases=cases,
            tolerance=self.tolerance,
            judged_as=self.judged_as,
            outcome=count_nodes(load_model(onnx_path), self.precision.dtype, float32_reasons),
            reports=(self._judge(artifact, cases),),
            notes=notes,
            metric=self.metric,
            builder_precision=self.precision.builder_precision,
        )

    def _judge(self, artifact: OnnxArtifact, cases: Sequence[ParityCase]) -> ParityReport:
        parity = judge(ORTModule(artifact), cases, self.tolerance, precision=self.judged_as)
        return replace(parity, subject=f"{parity.subject}, {_AS_ON_A_GPU}")

    def _write_graph(self, target: Path, float32_reasons: Mapping[str, str]) -> tuple[str, ...]:
        """Quantise the graph, cast it, or both; returns notes."""
        precision = self.precision
        source = self.artifact.checked_onnx_path
        notes: tuple[str, ...] = ()
        if precision.is_quantized:
            # Only weights have four bits, so a node that is too large for float16 may have them too.
            float32_nodes = self.requested_float32_nodes() if precision.weights else float32_reasons
            notes = quantize(
                source, target, precision, self.batches(), float32_nodes=float32_nodes, flavour=self._flavour
            )
            source = target
        if precision.dtype in CAST_PRECISIONS:
            cast_graph(source, target, precision.dtype, float32_nodes=float32_reasons, low_io=precision.low_io)
        return notes

    def _write_weight_program(self, onnx_path: Path) -> None:
        """Write how the lowered graph's weights follow from the module's, if the model is refittable."""
        if WEIGHTS in self.artifact.files:
            program = WeightProgram.from_json(self.artifact.read(WEIGHTS))
            lowered = retype_weight_program(program, self.artifact.checked_onnx_path, onnx_path)
            write_file(onnx_path.with_name(WEIGHTS), lowered.to_json())
