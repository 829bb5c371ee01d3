"""A float32 ONNX model → what it costs to compute each of its modules alone in a low type.

Enters: the model and inputs. Leaves: errors by module, and answers of any mixture. A room of its own because it asks
hundreds of mixtures of one graph: each module gets a switch, and the graph is opened once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.core.config import QUANTIZED
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.node_origins import node_modules
from torch2engine.onnx_graph.session import OrtSession
from torch2engine.onnx_graph.strict_rounding import EXACT_OPS
from torch2engine.onnx_graph.tensor_types import float32_tensors

__all__ = ["Mixtures"]

_SWITCHES = "torch2engine.switches"
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Arrays = Mapping[str, NDArray[Any]]


class Mixtures:
    """A model whose modules can be switched to a low type, one by one; a context manager.

    Args:
        source: the float32 model.
        dtype: "fp16", "bf16", "int8" or "fp8"; the last two with one scale for each tensor, which is enough to compare
            modules by.
        keep: names of nodes that stay in float32 in every mixture.
        maxima: largest absolute value by tensor, for "int8" and "fp8".
    """

    def __init__(
        self, source: Path, dtype: str, keep: Collection[str] = (), maxima: Mapping[str, float] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="torch2engine-")
        target = Path(self._folder.name) / "model.onnx"
        model = load_model(source)
        of_node = {name: module for name, module in node_modules(model).items() if name not in keep}
        self.modules: tuple[str, ...] = tuple(sorted(set(of_node.values())))
        _Switchboard(model, dtype, of_node, self.modules, maxima or {}).rewrite()
        save_model(model, target)
        del model
        self._session = OrtSession(target, as_it_is=True)

    def __enter__(self) -> Mixtures:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.cleanup()

    def __call__(self, inputs: Arrays, low: Collection[str]) -> dict[str, NDArray[Any]]:
        """The answer with these modules in the low type: arrays by output name."""
        switches = np.array([module in low for module in self.modules], dtype=np.bool_)
        return self._session({**inputs, _SWITCHES: switches})

    def errors(self, batches: Sequence[Arrays], among: Collection[str] | None = None) -> dict[str, float]:
        """Relative L2 error of the outputs when one module alone is low, the largest over outputs and batches.

        Args:
            batches: inputs.
            among: modules to ask of; None: all.

        Returns:
            module path -> error, largest first; inf where an output is not finite.
        """
        exact = [self(batch, ()) for batch in batches]
        found: dict[str, float] = {}
        for module in self.modules if among is None else among:
            answers = [self(batch, (module,)) for batch in batches]
            found[module] = max(distance(right, answer) for right, answer in zip(exact, answers, strict=True))
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def distance(right: Arrays, answer: Arrays) -> float:
    """Relative L2 error, the largest over all outputs; integers count as numbers that differ or not."""
    worst = 0.0
    for name, expected in right.items():
        found = answer[name]
        if expected.dtype.kind != "f":
            differing = np.asarray(expected != found, dtype=np.float64)
            worst = max(worst, float(differing.mean()) if expected.size else 0.0)
            continue
        wanted, got = expected.astype(np.float64), found.astype(np.float64)
        usable = np.isfinite(wanted)
        wanted, got = wanted[usable], got[usable]
        if not np.isfinite(got).all():
            return float("inf")
        norm, error = float(np.linalg.norm(wanted)), float(np.linalg.norm(got - wanted))
        worst = max(worst, error / norm if norm else (0.0 if error == 0 else float("inf")))
    return worst


class _Switchboard:
    """One rewriting: around each node of a module its inputs and outputs are rounded, if the module's switch is on.

    Args:
        model: ModelProto, changed in place.
        dtype: "fp16" or "bf16".
        of_node: module by node name.
        order: modules in the order of their switches.
        maxima: largest absolute value by tensor, for "int8" and "fp8".
    """

    def __init__(
        self,
        model: Any,
        dtype: str,
        of_node: Mapping[str, str],
        order: Sequence[str],
        maxima: Mapping[str, float],
    ) -> None:
        import onnx

        self._helper: Any = onnx.helper
        self._numpy: Any = onnx.numpy_helper
        self._proto: Any = onnx.TensorProto
        self._graph = model.graph
        self._dtype = dtype
        self._maxima = {**maxima, **_weight_maxima(model, maxima)} if dtype in QUANTIZED else {}
        self._of_node = of_node
        self._order = {module: index for index, module in enumerate(order)}
        self._nodes: list[Any] = []
        self._switched: dict[tuple[str, str], str] = {}
        self._made = 0
        self._floats = float32_tensors(model)

    def rewrite(self) -> None:
        self._graph.input.append(self._helper.make_tensor_value_info(_SWITCHES, self._proto.BOOL, [len(self._order)]))
        for module, index in self._order.items():
            number = self._numpy.from_array(np.array(index, dtype=np.int64), f"torch2engine.number{index}")
            self._graph.initializer.append(number)
            self._add("Gather", [_SWITCHES, number.name], self._switch(module))
        for node in list(self._graph.node):
            module = self._of_node.get(node.name)
            if module is None or node.op_type in EXACT_OPS or node.op_type == "Constant" or not self._computes(node):
                self._nodes.append(node)
                continue
            for index, name in enumerate(node.input):
                if name in self._floats and (self._dtype not in QUANTIZED or index < 2):  # a bias stays as it is
                    node.input[index] = self._rounded(name, module)
            self._nodes.append(node)
            for index, name in enumerate(node.output):
                if name in self._floats and self._dtype not in QUANTIZED:
                    exact = node.output[index] = self._name("exact")
                    self._round(exact, name, module)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _rounded(self, name: str, module: str) -> str:
        """A tensor as a module reads it; made once for each."""
        if (name, module) not in self._switched:
            self._switched[name, module] = self._name("seen")
            self._round(name, self._switched[name, module], module)
        return self._switched[name, module]

    def _computes(self, node: Any) -> bool:
        """Whether the type would change a node: quantisation is for products alone."""
        return self._dtype not in QUANTIZED or node.op_type in _PRODUCTS

    def _round(self, exact: str, name: str, module: str) -> None:
        rounded = self._name("rounded")
        narrow = self._name("low")
        if self._dtype in QUANTIZED:
            largest, kind = (127.0, "INT8") if self._dtype == "int8" else (448.0, "FLOAT8E4M3FN")
            scale, zero = self._name("scale"), self._name("zero")
            size = max(self._maxima.get(exact, 0.0) / largest, 1e-12)
            self._graph.initializer.append(self._numpy.from_array(np.array(size, dtype=np.float32), scale))
            self._graph.initializer.append(self._helper.make_tensor(zero, getattr(self._proto, kind), [], [0]))
            self._add("QuantizeLinear", [exact, scale, zero], narrow)
            self._add("DequantizeLinear", [narrow, scale, zero], rounded)
        else:
            self._add(
                "Cast", [exact], narrow, to=self._proto.FLOAT16 if self._dtype == "fp16" else self._proto.BFLOAT16
            )
            self._add("Cast", [narrow], rounded, to=self._proto.FLOAT)
        self._add("Where", [self._switch(module), rounded, exact], name)

    def _switch(self, module: str) -> str:
        return f"torch2engine.switch{self._order[module]}"

    def _add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append(self._helper.make_node(op, inputs, [output], **attributes))

    def _name(self, what: str) -> str:
        self._made += 1
        return f"torch2engine.{what}{self._made}"


def _weight_maxima(model: Any, known: Mapping[str, float]) -> dict[str, float]:
    from onnx import TensorProto, numpy_helper

    return {
        tensor.name: float(np.max(np.abs(numpy_helper.to_array(tensor)), initial=0.0))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in known
    }
