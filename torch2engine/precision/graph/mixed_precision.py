"""A float32 ONNX model → the same with any choice of its modules in a low type.

Enters: the model and inputs. Leaves: answers of any mixture, and errors by module. Separate because hundreds of
mixtures of one graph are computed. Each module gets a switch, so that the graph is opened only once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.precisions import PRECISION_TYPES, QUANTIZED_PRECISIONS
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.onnx_graph.strict_rounding import EXACT_OPS
from torch2engine.onnx_graph.tensor_types import element_type, float32_tensors

__all__ = ["MixedPrecisionModel", "relative_error"]

_SWITCHES = "torch2engine.switches"
_QUANTIZED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LEAST_SCALE = 1e-12  # for tensors of zeros

Arrays = Mapping[str, NDArray[Any]]


class MixedPrecisionModel:
    """A model whose modules can be switched to a low type, one by one; a context manager.

    Args:
        source: the float32 model.
        precision: one of `LOW_PRECISIONS`. A quantised one uses one scale for each tensor, which is enough to compare
            modules.
        float32_nodes: names of nodes that stay in float32 in every mixture.
        maxima: largest absolute value by tensor, for a quantised precision.
    """

    def __init__(
        self,
        source: Path,
        precision: str,
        float32_nodes: Collection[str] = (),
        maxima: Mapping[str, float] | None = None,
    ) -> None:
        self._folder = scratch_folder()
        target = self._folder.path / "model.onnx"
        model = load_model(source)
        module_of_node = {node: module for node, module in node_modules(model).items() if node not in float32_nodes}
        self.modules: tuple[str, ...] = tuple(sorted(set(module_of_node.values())))
        _SwitchInserter(model, precision, module_of_node, self.modules, maxima or {}).rewrite()
        save_model(model, target)
        del model
        self._session = OrtSession(target, as_it_is=True)

    def __enter__(self) -> MixedPrecisionModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.__exit__(kind, error, at)

    def __call__(self, inputs: Arrays, low_modules: Collection[str]) -> dict[str, NDArray[Any]]:
        """Compute the answer with these modules in the low type: arrays by output name."""
        switches = np.array([module in low_modules for module in self.modules], dtype=np.bool_)
        return self._session({**inputs, _SWITCHES: switches})

    def module_errors(self, batches: Sequence[Arrays]) -> dict[str, float]:
        """Measure the relative L2 error of the outputs for each module, when it alone is low.

        Args:
            batches: inputs.

        Returns:
            module path -> the largest error over outputs and batches, largest first; inf where an output is not finite.
        """
        exact = [self(batch, ()) for batch in batches]
        errors: dict[str, float] = {}
        for module in self.modules:
            answers = [self(batch, (module,)) for batch in batches]
            errors[module] = max(relative_error(right, answer) for right, answer in zip(exact, answers, strict=True))
        return dict(sorted(errors.items(), key=lambda item: -item[1]))


def relative_error(reference: Arrays, answer: Arrays) -> float:
    """Compute the relative L2 error, the largest over all outputs; of integers the share that differs."""
    return max((_output_error(right, answer[name]) for name, right in reference.items()), default=0.0)


def _output_error(reference: NDArray[Any], answer: NDArray[Any]) -> float:
    if reference.dtype.kind != "f":
        differing = np.asarray(reference != answer, dtype=np.float64)
        return float(differing.mean()) if reference.size else 0.0
    is_finite = np.isfinite(reference)
    expected = reference.astype(np.float64)[is_finite]
    found = answer.astype(np.float64)[is_finite]
    if not np.isfinite(found).all():
        return float("inf")
    norm = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(found - expected))
    if norm:
        return error / norm
    return 0.0 if error == 0 else float("inf")


class _SwitchInserter:
    """One rewriting: around each node of a module its inputs and outputs are rounded, if the module's switch is on.

    Args:
        model: ModelProto, changed in place.
        precision: the low precision.
        module_of_node: module by node name.
        modules: in the order of their switches.
        maxima: largest absolute value by tensor, for a quantised precision.
    """

    def __init__(
        self,
        model: Any,
        precision: str,
        module_of_node: Mapping[str, str],
        modules: Sequence[str],
        maxima: Mapping[str, float],
    ) -> None:
        import onnx

        self._helper: Any = onnx.helper
        self._numpy: Any = onnx.numpy_helper
        self._proto: Any = onnx.TensorProto
        self._graph = model.graph
        self._row = PRECISION_TYPES[precision]
        self._is_quantized = precision in QUANTIZED_PRECISIONS
        self._maxima = {**maxima, **_weight_maxima(model, maxima)} if self._is_quantized else {}
        self._module_of_node = module_of_node
        self._index_of_module = {module: index for index, module in enumerate(modules)}
        self._nodes: list[Any] = []
        self._rounded_inputs: dict[tuple[str, str], str] = {}
        self._name_count = 0
        self._float32_tensors = float32_tensors(model)

    def rewrite(self) -> None:
        """Insert the switches, and put the new nodes into the model."""
        self._add_switches()
        for node in list(self._graph.node):
            module = self._module_of_node.get(node.name)
            if module is None or not self._is_changed(node):
                self._nodes.append(node)
            else:
                self._round_around(node, module)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _add_switches(self) -> None:
        """Add an input with a bool for each module, and a node that takes out each."""
        count = len(self._index_of_module)
        self._graph.input.append(self._helper.make_tensor_value_info(_SWITCHES, self._proto.BOOL, [count]))
        for module, index in self._index_of_module.items():
            number = self._numpy.from_array(np.array(index, dtype=np.int64), f"torch2engine.number{index}")
            self._graph.initializer.append(number)
            self._add("Gather", [_SWITCHES, number.name], self._switch(module))

    def _is_changed(self, node: Any) -> bool:
        """Whether the type would change what a node computes."""
        if self._is_quantized:
            return node.op_type in _QUANTIZED_OPS
        return node.op_type not in EXACT_OPS and node.op_type != "Constant"

    def _round_around(self, node: Any, module: str) -> None:
        for index, name in enumerate(node.input):
            is_bias = self._is_quantized and index >= 2
            if name in self._float32_tensors and not is_bias:
                node.input[index] = self._rounded_input(name, module)
        self._nodes.append(node)
        if self._is_quantized:
            return
        for index, name in enumerate(node.output):
            if name in self._float32_tensors:
                exact = self._new_name("exact")
                node.output[index] = exact
                self._round(exact, name, module)

    def _rounded_input(self, name: str, module: str) -> str:
        """Give a tensor as a module reads it; it is made once for each module."""
        if (name, module) not in self._rounded_inputs:
            rounded = self._new_name("seen")
            self._rounded_inputs[name, module] = rounded
            self._round(name, rounded, module)
        return self._rounded_inputs[name, module]

    def _round(self, exact: str, name: str, module: str) -> None:
        """Make `name` the tensor `exact`, rounded if the module's switch is on."""
        rounded = self._new_name("rounded")
        narrow = self._new_name("low")
        number = element_type(self._row.name)
        if self._is_quantized:
            scale = self._new_name("scale")
            zero = self._new_name("zero")
            size = max(self._maxima.get(exact, 0.0) / self._row.largest, _LEAST_SCALE)
            self._graph.initializer.append(self._numpy.from_array(np.array(size, dtype=np.float32), scale))
            self._graph.initializer.append(self._helper.make_tensor(zero, number, [], [0]))
            self._add("QuantizeLinear", [exact, scale, zero], narrow)
            self._add("DequantizeLinear", [narrow, scale, zero], rounded)
        else:
            self._add("Cast", [exact], narrow, to=number)
            self._add("Cast", [narrow], rounded, to=self._proto.FLOAT)
        self._add("Where", [self._switch(module), rounded, exact], name)

    def _switch(self, module: str) -> str:
        return f"torch2engine.switch{self._index_of_module[module]}"

    def _add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append(self._helper.make_node(op, inputs, [output], **attributes))

    def _new_name(self, stem: str) -> str:
        self._name_count += 1
        return f"torch2engine.{stem}{self._name_count}"


def _weight_maxima(model: Any, known: Mapping[str, float]) -> dict[str, float]:
    from onnx import TensorProto, numpy_helper

    return {
        tensor.name: float(np.max(np.abs(numpy_helper.to_array(tensor)), initial=0.0))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in known
    }
