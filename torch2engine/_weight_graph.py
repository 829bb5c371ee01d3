"""An exported graph → the same with its weights worked out, and the program that works them out again.

Enters: the ir.Model of torch's exporter, not optimised, and the module. Leaves: a graph whose weights are parameters as
they are, values of the program, or constants; no rule looked at a parameter's value, which will be another one. Beside
`export` because optimisers fold parameters, merge equal ones and drop zeros, and a refit must know of none of that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import nn

from torch2engine.errors import ExportError
from torch2engine.weights import OPERATORS, Step, WeightProgram

__all__ = ["Weights"]

PREFIX = "model."  # of the module inside what is exported
# Convolution or matrix product that a BatchNorm behind it can be part of -> the axis of its weight's outputs.
_FOLDED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}


class Weights:
    """The weights of one exported graph.

    Args:
        model: ir.Model, changed in place.
        module: that it was exported from.
    """

    def __init__(self, model: Any, module: nn.Module) -> None:
        self._graph = model.graph
        live = dict(module.named_parameters(remove_duplicate=False)) | dict(
            module.named_buffers(remove_duplicate=False)
        )
        self._tensors: dict[str, torch.Tensor] = live
        self._sources: dict[Any, str] = {}
        for value in list(self._graph.initializers.values()):
            path = value.name.removeprefix(PREFIX)
            if value.name.startswith(PREFIX) and path in live:
                self._sources[value] = path
        self._steps: list[tuple[str, list[Any], Any, dict[str, Any]]] = []
        self._names: dict[Any, str] = {}
        self._program: WeightProgram | None = None

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
        self._fold_norms()
        self._split()

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
        used = {name for step in self._compiled for name in step.inputs} | set(weights.values())
        sources = {
            path: (tuple(self._tensors[path].shape), self._tensors[path].dtype)
            for path in self._sources.values()
            if path in used
        }
        return WeightProgram(
            sources=sources,
            shared=self._shared(sources),
            constants=self._constants,
            steps=tuple(self._compiled),
            weights=weights,
            fixed=tuple(fixed),
        )

    def _shared(self, sources: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
        groups: dict[int, list[str]] = {}
        for path, tensor in self._tensors.items():
            groups.setdefault(id(tensor), []).append(path)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1 and set(group) & set(sources))

    # BatchNorm

    def _fold_norms(self) -> None:
        """Make BatchNorm part of the product before it, as steps of the program."""
        for node in list(self._graph):
            if node.op_type != "BatchNormalization" or any(value not in self._sources for value in node.inputs[1:]):
                continue
            product = node.inputs[0].producer()
            if product is None or not self._takes_norm(product) or len(list(node.inputs[0].uses())) != 1:
                continue
            if len({value.dtype for value in (*product.inputs[1:], *node.inputs[1:]) if value is not None}) > 1:
                continue  # it would be rounded where the model does not
            epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
            gamma, beta, mean, variance = node.inputs[1:]
            bias = product.inputs[2] if len(product.inputs) > 2 else None
            axis = _FOLDED[product.op_type]
            weight = self._step("FoldedWeight", [product.inputs[1], gamma, variance], epsilon=epsilon, axis=axis)
            shift = self._step("FoldedBias", [bias, gamma, beta, mean, variance], epsilon=epsilon)
            folded = ir.Node(
                "",
                product.op_type,
                [product.inputs[0], weight, shift],
                attributes=list(product.attributes.values()),
                name=product.name,
                metadata_props=dict(product.metadata_props),
            )
            made, last = folded.outputs[0], node.outputs[0]
            made.shape, made.type = last.shape, last.type
            self._graph.insert_before(product, folded)
            ir.convenience.replace_all_uses_with(last, made, replace_graph_outputs=True)
            self._graph.remove([node, product], safe=True)
            made.name = last.name

    def _takes_norm(self, product: Any) -> bool:
        attributes = product.attributes

        def number(name: str, default: float) -> float:
            return attributes[name].value if name in attributes else default

        weights = [value for value in product.inputs[1:] if value is not None]
        if product.op_type not in _FOLDED or any(value not in self._sources for value in weights):
            return False
        if product.op_type == "Gemm":
            return number("transB", 0) == 1 and number("alpha", 1.0) == number("beta", 1.0) == 1.0
        return product.op_type == "Conv" or number("group", 1) == 1

    def _step(self, op: str, inputs: list[Any], **attributes: Any) -> Any:
        """A value that a step makes."""
        value = ir.Value(name=f"{inputs[1].name}/{op}")
        self._steps.append((op, inputs, value, attributes))
        return value

    # Parameters alone

    def _split(self) -> None:
        """Take what depends on parameters alone out of the graph, and put its values there."""
        graph = self._graph
        derived = {*self._sources, *(value for _, _, value, _ in self._steps)}
        inside: list[Any] = []
        for node in graph:
            inputs = [value for value in node.inputs if value is not None]
            known = all(value in derived or _constant(value) is not None for value in inputs)
            if known and any(value in derived for value in inputs) and node.op_type not in ("Shape", "Size"):
                self._check(node)
                inside.append(node)
                derived.update(node.outputs)
                attributes = {name: _plain(name, part) for name, part in node.attributes.items()}
                self._steps.append((node.op_type, list(node.inputs), node.outputs[0], attributes))
        self._compile()
        values = self._run()
        inner = set(inside)
        edge = [out for node in inside for out in node.outputs if _leaves(out, inner, graph)]
        edge += [value for op, _, value, _ in self._steps if op in ("FoldedWeight", "FoldedBias")]
        self._replaced: dict[Any, Any] = {}
        for value in edge:
            tensor = values[self._name(value)].contiguous().cpu().clone()
            new = ir.Value(name=value.name, shape=ir.Shape(tensor.shape), type=_type(tensor))
            new.const_value = tensor_adapters.TorchTensor(tensor, name=value.name)
            ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
            self._replaced[value] = new
        graph.remove(inside, safe=True)
        for new in self._replaced.values():
            graph.register_initializer(new)
        for value in list(graph.initializers.values()):
            if not value.uses() and value not in graph.outputs:
                graph.initializers.pop(value.name)

    def _check(self, node: Any) -> None:
        if node.op_type not in OPERATORS or node.domain or len(node.outputs) != 1:
            raise ExportError(
                "refittable weights",
                got=f"{node.op_type} works on parameters alone, and a refit does not know how to do that",
                allowed=", ".join(sorted(OPERATORS)),
                fix="work this out in a buffer beforehand, or deploy without refittable=True",
            )

    def _name(self, value: Any) -> str:
        """A value's name in the program, which later names in the graph don't change."""
        if value in self._sources:
            return self._sources[value]
        return self._names.setdefault(value, f"%{len(self._names)}")

    def _compile(self) -> None:
        self._constants: dict[str, torch.Tensor] = {}
        self._compiled: list[Step] = []
        for op, inputs, output, attributes in self._steps:
            names = tuple("" if value is None else self._name(value) for value in inputs)
            for value, name in zip(inputs, names, strict=True):
                if value is not None and value not in self._sources and (held := _constant(value)) is not None:
                    self._constants[name] = torch.tensor(held.numpy())
            self._compiled.append(Step(op, names, self._name(output), attributes))

    def _run(self) -> dict[str, torch.Tensor]:
        wanted = {step.output: step.output for step in self._compiled}
        program = WeightProgram({}, (), self._constants, tuple(self._compiled), wanted, ())
        return program.run({path: self._tensors[path].detach().cpu() for path in self._sources.values()})


def _constant(value: Any) -> Any:
    """The tensor of a value that no parameter decides, or None."""
    held = value.const_value
    if held is None and (maker := value.producer()) is not None and maker.op_type == "Constant":
        held = ir.convenience.get_const_tensor(value)
    return held


def _leaves(value: Any, inside: set[Any], graph: Any) -> bool:
    return value in graph.outputs or any(use.node not in inside for use in value.uses())


def _plain(name: str, attribute: Any) -> Any:
    value: Any = attribute.value
    if name == "to":
        return tensor_adapters.to_torch_dtype(ir.DataType(value))
    return tuple(cast("list[Any]", value)) if isinstance(value, (list, tuple)) else value


def _type(tensor: torch.Tensor) -> Any:
    return ir.TensorType(tensor_adapters.from_torch_dtype(tensor.dtype))
