"""An ONNX model whose recurrent layers are loops that do no more in a step than they must.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because the file keeps ONNX's operators,
which other readers know. TensorRT-RTX 1.6.1 runs such an operator as a loop with four kernels a step, one of them the
product with the input. That product needs no earlier step, so one product computes it for all steps, and two kernels a
step are left. The loop is a Scan: it takes any number of steps, and is built as fast as the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2engine.onnx_graph.tensor_types import without_weight_values
from torch2engine.onnx_graph.walk import operators_of

__all__ = ["scan_recurrent_layers"]

_FIRST_OPSET = 13  # from here on, axes and the sizes of parts are inputs
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")
_DIRECTIONS: Mapping[str, tuple[bool, ...]] = {  # for each direction, whether it runs from the end to the beginning
    "forward": (False,),
    "reverse": (True,),
    "bidirectional": (False, True),
}
# Attributes that change the arithmetic of a step; PyTorch's layers have none of them.
_UNUSUAL = ("clip", "activation_alpha", "activation_beta")
_FLAGS = ("layout", "input_forget")


@dataclass(frozen=True)
class _Layer:
    """A recurrent node as it is computed.

    Args:
        node: LSTM, GRU or RNN.
        kind: a row of `_KINDS`.
        activation: ONNX's name of the one that an RNN has.
        backwards: for each direction, whether it runs from the end to the beginning.
        dtype: of all tensors.
    """

    node: Any
    kind: _Kind
    activation: str
    backwards: tuple[bool, ...]
    dtype: Any

    @property
    def hidden(self) -> int:
        return int(self.node.inputs[2].shape[2])

    def input(self, index: int) -> Any | None:
        """An input of the node; None for one that is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None


@dataclass(frozen=True)
class _Kind:
    """One kind of layer.

    Args:
        gates: how many blocks of H rows its weights have.
        states: 2 with a cell, else 1.
        adds_state_bias_early: whether the bias of the product with the state may be added to that with the input.
        step: (writer, layer, what the input gives, what the state gives, states) -> the states after the step; the
            first two tensors are [directions, batch, gates * H], each state is [directions, batch, H].
    """

    gates: int
    states: int
    adds_state_bias_early: bool
    step: Callable[[_Writer, _Layer, Any, Any, Sequence[Any]], list[Any]]


class _Writer:
    """Writes nodes whose names begin with the layer's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.nodes: list[Any] = []

    def __call__(self, operator: str, *inputs: Any, **attributes: Any) -> Any:
        """Write a node with one result, and return that."""
        import onnx_ir as ir

        return self.add(ir.Node("", operator, inputs, attributes=ir.convenience.convert_attributes(attributes)))[0]

    def add(self, node: Any) -> Sequence[Any]:
        """Name a node and its results, which may not have a name of the other graph, and return these."""
        node.name = f"{self._name}_{len(self.nodes)}"
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}:{index}"
        self.nodes.append(node)
        return node.outputs

    def integers(self, *numbers: int) -> Any:
        import onnx_ir as ir

        return self("Constant", value=ir.tensor(numbers, dtype=ir.DataType.INT64))

    def cut(self, value: Any, start: int, end: int, axis: int, step: int = 1) -> Any:
        """`value[start:end:step]` along an axis."""
        bounds = [self.integers(number) for number in (start, end, axis, step)]
        return self("Slice", value, *bounds)

    def blocks(self, value: Any, size: int, count: int) -> list[Any]:
        """The parts of the last axis."""
        return [self.cut(value, size * index, size * (index + 1), -1) for index in range(count)]

    def reversed(self, value: Any, axis: int) -> Any:
        lowest = -(2**31)
        return self.cut(value, -1, lowest, axis, -1)

    def joined(self, values: Sequence[Any], axis: int) -> Any:
        return values[0] if len(values) == 1 else self("Concat", *values, axis=axis)


def _lstm_step(write: _Writer, layer: _Layer, given: Any, recalled: Any, states: Sequence[Any]) -> list[Any]:
    gates = write.blocks(write("Add", given, recalled), layer.hidden, 4)
    takes, gives, keeps = (write("Sigmoid", gate) for gate in gates[:3])
    kept = write("Mul", keeps, states[1])
    cell = write("Add", kept, write("Mul", takes, write("Tanh", gates[3])))
    return [write("Mul", gives, write("Tanh", cell)), cell]


def _gru_step(write: _Writer, layer: _Layer, given: Any, recalled: Any, states: Sequence[Any]) -> list[Any]:
    from_input = write.blocks(given, layer.hidden, 3)
    from_state = write.blocks(recalled, layer.hidden, 3)
    keeps, resets = (write("Sigmoid", write("Add", *pair)) for pair in zip(from_input[:2], from_state[:2], strict=True))
    new = write("Tanh", write("Add", from_input[2], write("Mul", resets, from_state[2])))
    return [write("Add", new, write("Mul", keeps, write("Sub", states[0], new)))]


def _rnn_step(write: _Writer, layer: _Layer, given: Any, recalled: Any, states: Sequence[Any]) -> list[Any]:
    del states
    return [write(layer.activation, write("Add", given, recalled))]


_KINDS: Mapping[str, _Kind] = {
    "LSTM": _Kind(4, 2, True, _lstm_step),
    "GRU": _Kind(3, 1, False, _gru_step),
    "RNN": _Kind(1, 1, True, _rnn_step),
}


def scan_recurrent_layers(model: Any, folder: Path) -> Any | None:
    """Write LSTM, GRU and RNN nodes as loops behind one product of the whole input.

    No weight is read or renamed. A node stays that has lengths for each sequence,
    peepholes, other activations than PyTorch's layers, or a reset gate before the product.

    Args:
        model: a ModelProto.
        folder: where its external data lie; none are read.

    Returns:
        another ModelProto; None where no node is written.
    """
    del folder
    if operators_of(model).isdisjoint(_KINDS):
        return None
    import onnx  # only here: onnx and onnx_ir take long to load
    import onnx_ir

    ir: Any = onnx_ir
    shape_inference: Any = onnx.shape_inference
    written = ir.from_proto(model)
    if written.opset_imports.get("", 0) < _FIRST_OPSET:
        return None
    inferred = shape_inference.infer_shapes(without_weight_values(model)).graph
    _add_types(written, {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.input)})
    layers = [layer for node in written.graph if (layer := _read_layer(node)) is not None]
    for layer in layers:
        _write_layer(layer)
    return ir.to_proto(written) if layers else None


def _add_types(model: Any, types: Mapping[str, Any]) -> None:
    """Tell the tensors that recurrent nodes read their types and sizes, as far as ONNX can infer them."""
    import onnx_ir as ir

    for value in [value for node in model.graph if node.op_type in _KINDS for value in node.inputs[:3]]:
        if value.name in types and (value.shape is None or value.type is None):
            sizes = [dimension.dim_value or None for dimension in types[value.name].shape.dim]
            value.shape = ir.Shape(sizes)
            value.type = ir.TensorType(ir.DataType(types[value.name].elem_type))


def _read_layer(node: Any) -> _Layer | None:
    """Read a node of the main graph; None for one that is no recurrent layer of PyTorch's kinds."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _KINDS:
        return None
    attributes = node.attributes
    if any(name in attributes for name in _UNUSUAL) or any(attributes.get_int(name, 0) for name in _FLAGS):
        return None
    backwards = _DIRECTIONS[attributes.get_string("direction", "forward")]
    activation = _usual_activation(node, len(backwards))
    # Lengths of sequences, and peepholes.
    has_more = any(value is not None for value in (*node.inputs[4:5], *node.inputs[7:]))
    if activation is None or has_more:
        return None
    if node.op_type == "GRU" and not attributes.get_int("linear_before_reset", 0):
        return None
    needed = node.inputs[:3]
    is_known = all(value.shape is not None and len(value.shape) == 3 for value in needed)
    if not is_known or not all(isinstance(size, int) for value in needed[1:] for size in value.shape):
        return None
    dtype = node.inputs[1].dtype
    return _Layer(node, _KINDS[node.op_type], activation, backwards, dtype) if dtype.name in _FLOATS else None


def _usual_activation(node: Any, directions: int) -> str | None:
    """The first activation, if all are those of PyTorch's layers; else None."""
    usual = {"LSTM": [["Sigmoid", "Tanh", "Tanh"]], "GRU": [["Sigmoid", "Tanh"]], "RNN": [["Tanh"], ["Relu"]]}
    choices = usual[node.op_type]
    given = [name.capitalize() for name in node.attributes.get_strings("activations", [])]
    return next((choice[0] for choice in choices if given in ([], choice * directions)), None)


def _write_layer(layer: _Layer) -> None:
    """Put the products, the loop and the order of its results in the node's place."""
    import onnx_ir as ir

    node = layer.node
    write = _Writer(f"{node.name}/scan")
    given = _products_with_input(write, layer)
    states = [_initial_state(write, layer, index) for index in range(layer.kind.states)]
    after, steps = _loop(write, layer, given, states)
    results = [_in_order_of_time(write, layer, steps), *after]
    old = [value for value in node.outputs if value.name]
    new = [result for value, result in zip(node.outputs, results, strict=False) if value.name]
    for value, result in zip(old, new, strict=True):
        result.shape = value.shape
        result.type = value.type
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], write.nodes, old, new)


def _products_with_input(write: _Writer, layer: _Layer) -> Any:
    """What the input gives each step: [directions, T, batch, gates * H], in the order in which the loop runs."""
    x, weight = layer.node.inputs[:2]
    bias = layer.input(3)
    directions = len(layer.backwards)
    size = int(weight.shape[2])
    width = layer.kind.gates * layer.hidden
    rows = write("Unsqueeze", x, write.integers(0))  # [1, T, batch, I]
    rows = write.joined([write.reversed(rows, 1) if is_back else rows for is_back in layer.backwards], axis=0)
    rows = write("Reshape", rows, write.integers(directions, -1, size))
    products = write("MatMul", rows, write("Transpose", weight, perm=[0, 2, 1]))
    if bias is not None:
        of_input = write.cut(bias, 0, width, -1)
        if layer.kind.adds_state_bias_early:
            of_input = write("Add", of_input, write.cut(bias, width, 2 * width, -1))
        products = write("Add", products, write("Unsqueeze", of_input, write.integers(1)))
    steps_and_batch = write.cut(write("Shape", x), 0, 2, 0)
    sizes = write("Concat", write.integers(directions), steps_and_batch, write.integers(width), axis=0)
    return write("Reshape", products, sizes)


def _initial_state(write: _Writer, layer: _Layer, index: int) -> Any:
    """A state before the first step, [directions, batch, H]: zeros where the node has none."""
    import onnx_ir as ir

    given = layer.input(5 + index)
    if given is not None:
        return given
    batch = write.cut(write("Shape", layer.input(0)), 1, 2, 0)
    sizes = write("Concat", write.integers(len(layer.backwards)), batch, write.integers(layer.hidden), axis=0)
    return write("ConstantOfShape", sizes, value=ir.tensor([0.0], dtype=layer.dtype))


def _loop(write: _Writer, layer: _Layer, given: Any, states: Sequence[Any]) -> tuple[list[Any], Any]:
    """Write the loop.

    Returns:
        the states after the last step, and the hidden states of all steps: [T, directions, batch, H].
    """
    import onnx_ir as ir

    def tensor(name: str, width: int) -> Any:
        shape = ir.Shape([len(layer.backwards), None, width])
        return ir.Value(name=f"{layer.node.name}/{name}", shape=shape, type=ir.TensorType(layer.dtype))

    # The state's product keeps the node's name: by that, reports find in which precision the layer is computed.
    turned = write("Transpose", layer.input(2), perm=[0, 2, 1])
    state_bias = _bias_in_loop(write, layer)
    inside = _Writer(f"{layer.node.name}/step")
    before = [tensor(f"state_{index}", layer.hidden) for index in range(layer.kind.states)]
    given_now = tensor("given", layer.kind.gates * layer.hidden)
    recalled = inside("MatMul", before[0], turned)
    recalled.producer().name = layer.node.name
    if state_bias is not None:
        recalled = inside("Add", recalled, state_bias)
    after = layer.kind.step(inside, layer, given_now, recalled, before)
    shown = inside("Identity", after[0])
    results = [*after, shown]
    for value in results:
        value.shape = before[0].shape
        value.type = before[0].type
    body = ir.Graph([*before, given_now], results, nodes=inside.nodes, name=f"{layer.node.name}/body")
    scan = ir.Node(
        "",
        "Scan",
        [*states, given],
        attributes=[
            ir.AttrGraph("body", body),
            ir.AttrInt64("num_scan_inputs", 1),
            ir.AttrInt64s("scan_input_axes", [1]),
        ],
        num_outputs=len(results),
    )
    *states_after, steps = write.add(scan)
    return states_after, steps


def _bias_in_loop(write: _Writer, layer: _Layer) -> Any | None:
    """The bias of the product with the state, [directions, 1, gates * H], where it can't be added before the loop."""
    bias = layer.input(3)
    if bias is None or layer.kind.adds_state_bias_early:
        return None
    width = layer.kind.gates * layer.hidden
    return write("Unsqueeze", write.cut(bias, width, 2 * width, -1), write.integers(1))


def _in_order_of_time(write: _Writer, layer: _Layer, steps: Any) -> Any:
    """The steps of each direction in the order of time, [T, directions, batch, H]."""
    parts = [
        write.reversed(part, 0) if is_back else part
        for index, is_back in enumerate(layer.backwards)
        for part in [write.cut(steps, index, index + 1, 1) if len(layer.backwards) > 1 else steps]
    ]
    return write("Identity", parts[0]) if parts == [steps] else write.joined(parts, axis=1)
