"""An exported graph → the same with its weights worked out, and the program that works them out again.

Enters: the ir.Model of torch's exporter, not optimised, and the module. Leaves: a graph whose weights are parameters as
they are, values of the program, or constants; no rule looked at a parameter's value, which will be another one. Beside
`export` because optimisers fold parameters, merge equal ones and drop zeros, and a refit must know of none of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import nn

from torch2engine.capture.fingerprint import fingerprints
from torch2engine.capture.weight_program import WEIGHT_OPERATORS, WeightProgram, WeightStep

__all__ = ["Weights"]

PREFIX = "model."  # of the module inside what is exported
# Convolution or matrix product that a BatchNorm behind it can be part of -> the axis of its weight's outputs.
_FOLDED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}
# A graph that spreads a parameter out does so when it runs: neither its file nor a refit shall carry that.
_MOST_GROWTH, _SMALL = 2, 4096
_LARGEST_CONSTANT = 65_536


class Weights:
    """The weights of one exported graph.

    What the program can't work out, or had better not, stays in the graph, as does the parameter that it starts from.

    Args:
        model: ir.Model, changed in place.
        module: that it was exported from.
    """

    def __init__(self, model: Any, module: nn.Module) -> None:
        self._graph = model.graph
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._parameters = tuple(parameters)
        self._tensors: dict[str, torch.Tensor] = parameters | dict(module.named_buffers(remove_duplicate=False))
        self._sources: dict[Any, str] = {}
        for value in list(self._graph.initializers.values()):
            path = value.name.removeprefix(PREFIX)
            if value.name.startswith(PREFIX) and path in self._tensors:
                self._sources[value] = path
        self._names: dict[Any, str] = {}
        self._known: dict[Any, torch.Tensor] = {}  # values that follow from parameters, as they are now
        self._constants: dict[str, torch.Tensor] = {}
        self._steps: list[WeightStep] = []
        self._edge: list[Any] = []  # values of steps that the graph reads
        self._replaced: dict[Any, Any] = {}

    @torch.no_grad()
    def optimize(self, optimize: Callable[[], object]) -> None:
        """Run an optimiser that sees parameters as inputs, whose values nobody knows."""
        graph = self._graph
        held = {value: value.const_value for value in self._sources}
        before = len(graph.inputs)
        for value in self._sources:
            graph.initializers.pop(value.name)
            value.const_value = None
            graph.inputs.append(value)
        optimize()
        del graph.inputs[before:]
        for value, tensor in held.items():
            value.const_value = tensor
            graph.register_initializer(value)
        self._known = {value: self._tensors[path].detach().cpu() for value, path in self._sources.items()}
        taken = [node for node in graph if self._take(node)]
        self._fold_norms()
        self._place(taken)

    def program(self) -> WeightProgram:
        """The program, under the names that the graph's weights have now."""
        produced = {**{value: value for value in self._sources}, **{new: old for old, new in self._replaced.items()}}
        weights: dict[str, str] = {}
        fixed: list[str] = []
        for value in self._graph.initializers.values():
            if value in produced:
                weights[value.name] = self._name(produced[value])
            else:
                fixed.append(value.name)
        needed, steps = set(weights.values()), list[WeightStep]()
        for step in reversed(self._steps):
            if step.output in needed:
                needed.update(step.inputs)
                steps.append(step)
        sources = {
            path: (tuple(self._tensors[path].shape), self._tensors[path].dtype)
            for path in self._sources.values()
            if path in needed
        }
        groups: dict[int, list[str]] = {}
        for path, tensor in self._tensors.items():
            groups.setdefault(id(tensor), []).append(path)
        return WeightProgram(
            sources=sources,
            shared=tuple(tuple(group) for group in groups.values() if len(group) > 1 and set(group) & sources.keys()),
            constants={name: tensor for name, tensor in self._constants.items() if name in needed},
            steps=tuple(reversed(steps)),
            weights=weights,
            fixed=tuple(fixed),
            fingerprint=fingerprints({path: self._tensors[path] for path in sources}),
            parameters=self._parameters,
        )

    def _name(self, value: Any) -> str:
        """A value's name in the program, which later names in the graph don't change."""
        if value in self._sources:
            return self._sources[value]
        return self._names.setdefault(value, f"%{len(self._names)}")

    def _tensor(self, value: Any) -> torch.Tensor | None:
        """A value that a parameter or nothing at all decides, as it is now; None for one that inputs decide."""
        if value is None or value in self._known:
            return self._known.get(value)
        held = value.const_value
        if held is None and (maker := value.producer()) is not None and maker.op_type == "Constant":
            held = ir.convenience.get_const_tensor(value)
        if held is None or held.nbytes > _LARGEST_CONSTANT:
            return None
        raw, dtype = bytearray(held.tobytes()), tensor_adapters.to_torch_dtype(held.dtype)
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return flat.reshape(tuple(held.shape.numpy()))

    def _step(self, op: str, inputs: Sequence[Any], output: Any, attributes: dict[str, Any]) -> bool:
        """Make a step, if its operator can do that."""
        tensors = [self._tensor(value) for value in inputs]
        try:
            made = WEIGHT_OPERATORS[op](cast("list[torch.Tensor]", tensors), attributes)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return False
        size = sum(self._known[value].numel() for value in inputs if value in self._known)
        if made.numel() > max(_MOST_GROWTH * size, _SMALL):
            return False
        names = tuple("" if value is None else self._name(value) for value in inputs)
        for value, name, tensor in zip(inputs, names, tensors, strict=True):
            if tensor is not None and value not in self._known:
                self._constants[name] = tensor
        self._known[output] = made
        self._steps.append(WeightStep(op, names, self._name(output), attributes))
        return True

    def _take(self, node: Any) -> bool:
        """Whether a node is a step of the program from now on."""
        inputs = [value for value in node.inputs if value is not None]
        derived = [value for value in inputs if value in self._known]
        if not derived or node.op_type not in WEIGHT_OPERATORS or node.domain or len(node.outputs) != 1:
            return False
        # ONNX counts in integers otherwise than PyTorch, and no weight is one.
        if not all(self._known[value].is_floating_point() for value in derived):
            return False
        if any(self._tensor(value) is None for value in inputs):
            return False
        attributes = {name: _plain(name, part) for name, part in node.attributes.items()}
        return self._step(node.op_type, list(node.inputs), node.outputs[0], attributes)

    # BatchNorm

    def _fold_norms(self) -> None:
        """Make BatchNorm part of the product before it, as steps of the program."""
        for node in list(self._graph):
            if node.op_type != "BatchNormalization" or len(node.outputs) != 1:
                continue
            product = node.inputs[0].producer()
            if product is None or not self._takes_norm(product, node):
                self._spread(node)
                continue
            epsilon = _epsilon(node)
            gamma, beta, mean, variance = node.inputs[1:]
            bias = product.inputs[2] if len(product.inputs) > 2 else None
            weight, shift = (ir.Value(name=f"{node.name}/{what}{len(self._steps)}") for what in ("weight", "bias"))
            axis = {"epsilon": epsilon, "axis": _FOLDED[product.op_type]}
            made = self._step("FoldedWeight", [product.inputs[1], gamma, variance], weight, axis)
            made = made and self._step("FoldedBias", [bias, gamma, beta, mean, variance], shift, {"epsilon": epsilon})
            if made:
                self._edge += [weight, shift]
                self._put(product, node, weight, shift)

    def _spread(self, norm: Any) -> None:
        """Make a BatchNorm that no product takes (x - mean) · scale + beta, in this order, which loses no digits.

        Of the four tensors of a BatchNorm TensorRT's parser makes two of its own, which nobody could replace.
        """
        x, gamma, beta, mean, variance = norm.inputs
        tensors = [self._tensor(value) for value in norm.inputs[1:]]
        if x.shape is None or x.dtype is None or any(tensor is None for tensor in tensors):
            return
        dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
        if dtypes != {tensor_adapters.to_torch_dtype(x.dtype)} or not set(norm.inputs[1:]) & self._known.keys():
            return
        flat = ir.Value(name=f"{norm.name}/flat")
        if not self._step("NormScale", [gamma, variance], flat, {"epsilon": _epsilon(norm)}):
            return
        sides = self._constant(torch.tensor([-1] + [1] * (len(x.shape) - 2)), norm)
        parts = {op: ir.Value(name=f"{norm.name}/{op.lower()}") for op in ("Sub", "Mul", "Add")}
        for part, source in zip(parts.values(), (mean, flat, beta), strict=True):
            if not self._step("Reshape", [source, sides], part, {}):
                return
        self._edge += parts.values()
        last, value = norm.outputs[0], x
        for op, part in parts.items():
            node = ir.Node("", op, [value, part], name=f"{norm.name}/{op}", metadata_props=dict(norm.metadata_props))
            value = node.outputs[0]
            value.name, value.shape, value.type = f"{norm.name}/{op.lower()}ed", last.shape, last.type
            self._graph.insert_before(norm, node)
        ir.convenience.replace_all_uses_with(last, value, replace_graph_outputs=True)
        self._graph.remove(norm, safe=True)
        value.name = last.name

    def _constant(self, tensor: torch.Tensor, near: Any) -> Any:
        """A value of the program that nothing decides."""
        value = ir.Value(name=f"{near.name}/constant{len(self._constants)}")
        value.const_value = tensor_adapters.TorchTensor(tensor)
        return value

    def _put(self, product: Any, norm: Any, weight: Any, bias: Any) -> None:
        """One product in the place of a product and its norm."""
        folded = ir.Node(
            "",
            product.op_type,
            [product.inputs[0], weight, bias],
            attributes=list(product.attributes.values()),
            name=product.name,
            metadata_props=dict(product.metadata_props),
        )
        made, last = folded.outputs[0], norm.outputs[0]
        made.shape, made.type = last.shape, last.type
        self._graph.insert_before(product, folded)
        ir.convenience.replace_all_uses_with(last, made, replace_graph_outputs=True)
        self._graph.remove([norm, product], safe=True)
        made.name = last.name

    def _takes_norm(self, product: Any, norm: Any) -> bool:
        between, attributes = norm.inputs[0], product.attributes

        def number(name: str, default: float) -> float:
            return attributes[name].value if name in attributes else default

        if product.op_type not in _FOLDED or len(list(between.uses())) != 1 or between in self._graph.outputs:
            return False
        tensors = [self._tensor(value) for value in (*product.inputs[1:], *norm.inputs[1:]) if value is not None]
        if len({None if tensor is None else tensor.dtype for tensor in tensors}) != 1 or tensors[0] is None:
            return False  # inputs decide some, or it would be rounded where the model does not
        if product.op_type == "Gemm":
            return number("transB", 0) == 1 and number("alpha", 1.0) == number("beta", 1.0) == 1.0
        return product.op_type == "Conv" or number("group", 1) == 1

    # The graph

    def _place(self, taken: Sequence[Any]) -> None:
        """Take the nodes that became steps out of the graph, and put their values there."""
        graph, inside = self._graph, set(taken)
        for node in taken:
            (value,) = node.outputs
            if value in graph.outputs or any(use.node not in inside for use in value.uses()):
                self._edge.append(value)
        for value in self._edge:
            tensor = self._known[value].contiguous().clone()
            kind = ir.TensorType(tensor_adapters.from_torch_dtype(tensor.dtype))
            new = ir.Value(name=value.name, shape=ir.Shape(tensor.shape), type=kind)
            new.const_value = tensor_adapters.TorchTensor(tensor, name=value.name)
            ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
            self._replaced[value] = new
        graph.remove(taken, safe=True)
        for new in self._replaced.values():
            graph.register_initializer(new)
        for value in list(graph.initializers.values()):
            if not value.uses() and value not in graph.outputs:
                graph.initializers.pop(value.name)


def _plain(name: str, attribute: Any) -> Any:
    value: Any = attribute.value
    if name == "to":
        return tensor_adapters.to_torch_dtype(ir.DataType(value))
    return tuple(cast("list[Any]", value)) if isinstance(value, (list, tuple)) else value


def _epsilon(norm: Any) -> float:
    return float(norm.attributes["epsilon"].as_float()) if "epsilon" in norm.attributes else 1e-5
