"""An exported ONNX graph → the same with its weights computed, and the program that computes them again.

Enters: the ir.Model of torch's exporter, not optimised, and the module. Leaves: an ONNX graph whose weights are
unchanged parameters, values of the program, or constants. No rule has read the value of a parameter, since that will
change. Separate because optimisers fold parameters, merge equal ones and drop zeros. After a refit, all of that would
be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from torch import nn

from torch2engine.capture.fingerprint import fingerprints
from torch2engine.capture.torch_types import real_form
from torch2engine.capture.weight_program import WEIGHT_OPERATORS, WeightProgram, WeightStep
from torch2engine.exporter.computed_constants import attribute_value, readable_tensor
from torch2engine.exporter.flat_module import FLAT_MODULE_PREFIX

__all__ = ["WeightTracer"]

# Operators that a BatchNorm behind them can be folded into -> the axis of their weight that counts outputs.
_OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}
# An ONNX graph expands a parameter when it runs; neither its file nor a refit holds the larger tensor.
_LARGEST_GROWTH = 2
_SMALL_SIZE = 4096  # elements; growth up to here does no harm
_LARGEST_CONSTANT = 65_536  # bytes


class WeightTracer:
    """Finds how the weights of one exported ONNX graph follow from a module.

    A node that the program can't or should not compute stays in the ONNX graph, with the parameter that it reads.

    Args:
        model: ir.Model, changed in place.
        module: that it was exported from.
    """

    def __init__(self, model: Any, module: nn.Module) -> None:
        self._onnx_graph = model.graph
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self._parameter_paths = tuple(parameters)
        self._live: dict[str, torch.Tensor] = parameters | dict(module.named_buffers(remove_duplicate=False))
        self._path_of: dict[Any, str] = {}  # the graph's values that are parameters or buffers
        for value in self._onnx_graph.initializers.values():
            path = value.name.removeprefix(FLAT_MODULE_PREFIX)
            if value.name.startswith(FLAT_MODULE_PREFIX) and path in self._live:
                self._path_of[value] = path
        self._recorder = _StepRecorder(self._path_of)
        self._results: list[Any] = []  # values of the program that the remaining nodes of the graph read
        self._program_value_of: dict[Any, Any] = {}  # an initializer in a result's place -> that result

    @torch.no_grad()
    def optimize(self, optimize: Callable[[], object]) -> None:
        """Optimise the ONNX graph with parameters unknown, then move the nodes that only weights decide.

        Args:
            optimize: optimises the model in place.
        """
        self._optimize_with_parameters_as_inputs(optimize)
        self._recorder.derived = {
            value: real_form(self._live[path].detach().cpu()) for value, path in self._path_of.items()
        }
        moved = [node for node in self._onnx_graph if self._recorder.record_node(node)]
        for node in list(self._onnx_graph):
            if node.op_type == "BatchNormalization" and len(node.outputs) == 1:
                self._move_batch_norm(_BatchNorm.of(node))
        self._replace_moved_nodes(moved)

    def _optimize_with_parameters_as_inputs(self, optimize: Callable[[], object]) -> None:
        """An optimiser knows no value of an input, so it folds none, merges none and drops none."""
        onnx_graph = self._onnx_graph
        values = {value: value.const_value for value in self._path_of}
        number_of_inputs = len(onnx_graph.inputs)
        for value in values:
            onnx_graph.initializers.pop(value.name)
            value.const_value = None
            onnx_graph.inputs.append(value)
        optimize()
        del onnx_graph.inputs[number_of_inputs:]
        for value, tensor in values.items():
            value.const_value = tensor
            onnx_graph.register_initializer(value)

    def program(self) -> WeightProgram:
        """The program, under the names that the ONNX graph's weights have now."""
        weights: dict[str, str] = {}
        fixed: list[str] = []
        for initializer in self._onnx_graph.initializers.values():
            value = self._program_value_of.get(initializer, initializer)
            if value is not initializer or value in self._path_of:
                weights[initializer.name] = self._recorder.name_of(value)
            else:
                fixed.append(initializer.name)
        steps, needed = self._recorder.steps_for(weights.values())
        source_paths = [path for path in self._path_of.values() if path in needed]
        sources = {path: (tuple(self._live[path].shape), self._live[path].dtype) for path in source_paths}
        return WeightProgram(
            sources=sources,
            shared=self._shared_groups(sources),
            constants={name: tensor for name, tensor in self._recorder.constants.items() if name in needed},
            steps=steps,
            weights=weights,
            fixed=tuple(fixed),
            fingerprint=fingerprints({path: self._live[path] for path in sources}),
            parameters=self._parameter_paths,
        )

    def _shared_groups(self, sources: Mapping[str, object]) -> tuple[tuple[str, ...], ...]:
        """The groups of paths that are one tensor, if one of them is a source."""
        paths_of_tensor: dict[int, list[str]] = {}
        for path, tensor in self._live.items():
            paths_of_tensor.setdefault(id(tensor), []).append(path)
        groups = paths_of_tensor.values()
        return tuple(tuple(group) for group in groups if len(group) > 1 and set(group) & sources.keys())

    # BatchNorm

    def _move_batch_norm(self, norm: _BatchNorm) -> None:
        """Make a BatchNorm part of the product before it; else split it, so that its weights are the graph's."""
        product = norm.x.producer()
        if product is not None and self._can_fold(product, norm):
            self._fold_batch_norm(product, norm)
        else:
            self._split_batch_norm(norm)

    def _can_fold(self, product: Any, norm: _BatchNorm) -> bool:
        """Whether product and BatchNorm together are a product with another weight and bias."""
        if product.op_type not in _OUTPUT_AXIS:
            return False
        if len(list(norm.x.uses())) != 1 or norm.x in self._onnx_graph.outputs:
            return False
        values = [value for value in (*product.inputs[1:], *norm.weights) if value is not None]
        tensors = [self._recorder.tensor_of(value) for value in values]
        dtypes = {None if tensor is None else tensor.dtype for tensor in tensors}
        if len(dtypes) != 1 or None in dtypes:
            return False  # inputs decide some, or it would be rounded where the model does not
        if product.op_type == "Gemm":
            scales = (_number(product, "alpha", 1.0), _number(product, "beta", 1.0))
            return _number(product, "transB", 0) == 1 and scales == (1.0, 1.0)
        return product.op_type == "Conv" or _number(product, "group", 1) == 1

    def _fold_batch_norm(self, product: Any, norm: _BatchNorm) -> None:
        """Replace a product and its BatchNorm by one product, with weight and bias from the program."""
        recorder = self._recorder
        bias_before = product.inputs[2] if len(product.inputs) > 2 else None
        number = len(recorder.steps)
        weight = ir.Value(name=f"{norm.name}/weight{number}")
        bias = ir.Value(name=f"{norm.name}/bias{number}")
        weight_attributes = {"epsilon": norm.epsilon, "axis": _OUTPUT_AXIS[product.op_type]}
        weight_inputs = [product.inputs[1], norm.gamma, norm.variance]
        if not recorder.record_step("FoldedWeight", weight_inputs, weight, weight_attributes):
            return
        bias_inputs = [bias_before, norm.gamma, norm.beta, norm.mean, norm.variance]
        if not recorder.record_step("FoldedBias", bias_inputs, bias, {"epsilon": norm.epsilon}):
            return
        self._results += [weight, bias]
        folded = ir.Node(
            "",
            product.op_type,
            [product.inputs[0], weight, bias],
            attributes=list(product.attributes.values()),
            name=product.name,
            metadata_props=dict(product.metadata_props),
        )
        output = folded.outputs[0]
        output.shape = norm.output.shape
        output.type = norm.output.type
        self._onnx_graph.insert_before(product, folded)
        ir.convenience.replace_all_uses_with(norm.output, output, replace_graph_outputs=True)
        self._onnx_graph.remove([norm.node, product], safe=True)
        output.name = norm.output.name

    def _split_batch_norm(self, norm: _BatchNorm) -> None:
        """Replace a BatchNorm by (x - mean) · scale + beta, in this order, which loses no digits.

        TensorRT's parser makes two tensors from the four of a BatchNorm, and no refit could replace these two.
        """
        if not self._can_split(norm):
            return
        recorder = self._recorder
        scale = ir.Value(name=f"{norm.name}/flat")
        if not recorder.record_step("NormScale", [norm.gamma, norm.variance], scale, {"epsilon": norm.epsilon}):
            return
        channels_first = _program_constant(torch.tensor([-1] + [1] * (len(norm.x.shape) - 2)), norm, recorder)
        operands: dict[str, Any] = {}
        for op_type, source in (("Sub", norm.mean), ("Mul", scale), ("Add", norm.beta)):
            operand = ir.Value(name=f"{norm.name}/{op_type.lower()}")
            if not recorder.record_step("Reshape", [source, channels_first], operand, {}):
                return
            operands[op_type] = operand
        self._results += operands.values()
        value = norm.x
        for op_type, operand in operands.items():
            properties = dict(norm.node.metadata_props)
            node = ir.Node("", op_type, [value, operand], name=f"{norm.name}/{op_type}", metadata_props=properties)
            value = node.outputs[0]
            value.name = f"{norm.name}/{op_type.lower()}ed"
            value.shape = norm.output.shape
            value.type = norm.output.type
            self._onnx_graph.insert_before(norm.node, node)
        ir.convenience.replace_all_uses_with(norm.output, value, replace_graph_outputs=True)
        self._onnx_graph.remove(norm.node, safe=True)
        value.name = norm.output.name

    def _can_split(self, norm: _BatchNorm) -> bool:
        """Whether weights alone decide the BatchNorm's tensors, parameters are among them, and all have x's dtype."""
        if norm.x.shape is None or norm.x.dtype is None:
            return False
        tensors = [self._recorder.tensor_of(value) for value in norm.weights]
        dtypes = {None if tensor is None else tensor.dtype for tensor in tensors}
        follows_parameters = any(value in self._recorder.derived for value in norm.weights)
        return dtypes == {tensor_adapters.to_torch_dtype(norm.x.dtype)} and follows_parameters

    # The ONNX graph

    def _replace_moved_nodes(self, moved: Sequence[Any]) -> None:
        """Remove the nodes that became steps, and replace their values by initializers."""
        onnx_graph = self._onnx_graph
        moved_nodes = set(moved)
        for node in moved:
            (value,) = node.outputs
            if value in onnx_graph.outputs or any(use.node not in moved_nodes for use in value.uses()):
                self._results.append(value)
        for value in self._results:
            tensor = self._recorder.derived[value].contiguous().clone()
            value_type = ir.TensorType(tensor_adapters.from_torch_dtype(tensor.dtype))
            initializer = ir.Value(name=value.name, shape=ir.Shape(tensor.shape), type=value_type)
            initializer.const_value = tensor_adapters.TorchTensor(tensor, name=value.name)
            ir.convenience.replace_all_uses_with(value, initializer, replace_graph_outputs=True)
            self._program_value_of[initializer] = value
        onnx_graph.remove(moved, safe=True)
        for initializer in self._program_value_of:
            onnx_graph.register_initializer(initializer)
        for value in list(onnx_graph.initializers.values()):
            if not value.uses() and value not in onnx_graph.outputs:
                onnx_graph.initializers.pop(value.name)


class _StepRecorder:
    """The steps of a program, recorded while they are computed once on the CPU.

    Args:
        path_of: the graph's values that are parameters or buffers -> their paths.

    Attributes:
        derived: values that follow from parameters, as they are now.
        constants: tensors that no parameter decides, by name in the program.
        steps: in the order in which they are computed.
    """

    def __init__(self, path_of: Mapping[Any, str]) -> None:
        self._path_of = path_of
        self._names: dict[Any, str] = {}
        self.derived: dict[Any, torch.Tensor] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.steps: list[WeightStep] = []

    def name_of(self, value: Any) -> str:
        """A value's name in the program, which later names in the ONNX graph don't change."""
        if value in self._path_of:
            return self._path_of[value]
        return self._names.setdefault(value, f"%{len(self._names)}")

    def tensor_of(self, value: Any) -> torch.Tensor | None:
        """A value that parameters or nothing at all decide, as it is now; None for one that inputs decide.

        None also for a type that PyTorch lacks.
        """
        if value is None or value in self.derived:
            return self.derived.get(value)
        constant = value.const_value
        producer = value.producer()
        if constant is None and producer is not None and producer.op_type == "Constant":
            constant = ir.convenience.get_const_tensor(value)
        if constant is None or constant.nbytes > _LARGEST_CONSTANT:
            return None
        return readable_tensor(constant)

    def record_node(self, node: Any) -> bool:
        """Record a node of the ONNX graph as a step.

        Returns:
            False, with nothing recorded, if the program can't compute it.
        """
        inputs = [value for value in node.inputs if value is not None]
        derived = [value for value in inputs if value in self.derived]
        if not derived or node.op_type not in WEIGHT_OPERATORS or node.domain or len(node.outputs) != 1:
            return False
        # Integer arithmetic differs between ONNX and PyTorch, and no weight is an integer.
        if not all(self.derived[value].is_floating_point() for value in derived):
            return False
        if any(self.tensor_of(value) is None for value in inputs):
            return False
        attributes = {name: attribute_value(name, attribute) for name, attribute in node.attributes.items()}
        return self.record_step(node.op_type, list(node.inputs), node.outputs[0], attributes)

    def record_step(self, op: str, inputs: Sequence[Any], output: Any, attributes: dict[str, Any]) -> bool:
        """Compute a step and record it.

        Args:
            op: one of `WEIGHT_OPERATORS`.
            inputs: values of the ONNX graph, or new ones; None for one that is left out.
            output: the value that the step computes.
            attributes: ONNX's.

        Returns:
            False, with nothing recorded, if the operator fails on these inputs or expands them.
        """
        tensors = [self.tensor_of(value) for value in inputs]
        try:
            result = WEIGHT_OPERATORS[op](tensors, attributes)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return False
        derived_size = sum(self.derived[value].numel() for value in inputs if value in self.derived)
        if result.numel() > max(_LARGEST_GROWTH * derived_size, _SMALL_SIZE):
            return False
        names = tuple("" if value is None else self.name_of(value) for value in inputs)
        for value, name, tensor in zip(inputs, names, tensors, strict=True):
            if tensor is not None and value not in self.derived:
                self.constants[name] = tensor
        self.derived[output] = result
        self.steps.append(WeightStep(op, names, self.name_of(output), attributes))
        return True

    def steps_for(self, values: Iterable[str]) -> tuple[tuple[WeightStep, ...], set[str]]:
        """The steps that lead to some values, and the names of all values in them."""
        needed = set(values)
        steps: list[WeightStep] = []
        for step in reversed(self.steps):
            if step.output in needed:
                needed.update(step.inputs)
                steps.append(step)
        return tuple(reversed(steps)), needed


@dataclass(frozen=True)
class _BatchNorm:
    """A BatchNormalization node, with ONNX's names for its inputs."""

    node: Any
    x: Any
    gamma: Any
    beta: Any
    mean: Any
    variance: Any

    @classmethod
    def of(cls, node: Any) -> _BatchNorm:
        return cls(node, *node.inputs)

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def output(self) -> Any:
        return self.node.outputs[0]

    @property
    def weights(self) -> tuple[Any, ...]:
        return (self.gamma, self.beta, self.mean, self.variance)

    @property
    def epsilon(self) -> float:
        attributes = self.node.attributes
        return float(attributes["epsilon"].as_float()) if "epsilon" in attributes else 1e-5


def _program_constant(tensor: torch.Tensor, norm: _BatchNorm, recorder: _StepRecorder) -> Any:
    """A new value of the program that nothing decides."""
    value = ir.Value(name=f"{norm.name}/constant{len(recorder.constants)}")
    value.const_value = tensor_adapters.TorchTensor(tensor)
    return value


def _number(node: Any, name: str, default: float) -> float:
    return node.attributes[name].value if name in node.attributes else default
