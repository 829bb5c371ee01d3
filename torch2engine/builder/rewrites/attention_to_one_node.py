"""An ONNX model whose attention is one node each, for a builder that has one kernel for it.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because the file stays in an opset that
every reader has; ONNX's Attention came with opset 23. On an H200, TensorRT-RTX 1.6.1 runs the node as one kernel, in
float16 and bfloat16 alone.

Attention with a constant bias for each head, as in windows, stays as it is: RTX makes the same kernel of the products
and the softmax. For the mask of shifted windows it also takes the scores in five dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torch2engine.builder.rewrites.node_reading import is_operator, only_user
from torch2engine.onnx_graph.tensor_types import cast_element_types, mentions_type, without_weight_values
from torch2engine.onnx_graph.walk import operators_of

__all__ = ["Attention", "attention_obstacles", "fuse_attention", "read_attention"]

_OPERATORS = ("MatMul", "Softmax")
_FIRST_OPSET = 21  # from here to the opset of Attention, no operator changed its meaning
_ATTENTION_OPSET = 23
_ATTENTION_IR_VERSION = 11
_HEAD_SIZES = range(16, 257, 8)
_UNKNOWN_SIZE = "unk__"  # how ONNX's shape inference begins the name of a size that it does not know
_AS_IT_IS = [0, 1, 2, 3]
_WIDE = "it is not in float16 or bfloat16, for which alone there are fused kernels"


@dataclass(frozen=True)
class Key:
    """A tensor that is the key, [batch, heads, length, size], once its axes stand in this order."""

    source: Any
    order: list[int]


@dataclass(frozen=True)
class Attention:
    """The attention that a softmax between two matrix products computes.

    Args:
        query, value: [batch, heads, length, size], as values of the graph.
        key: a value of the graph, with its axes in some order.
        product: the node that multiplies queries and keys.
        scores: the value that holds its result, once it is scaled.
        mask: what is added to the scores; None if nothing is.
        scale: the factor of the scores.
        result: the value that holds the answer.
        has_windows: whether a second constant, the mask of windows, is added to the scores in five dimensions.
    """

    query: Any
    key: Key
    value: Any
    product: Any
    scores: Any
    mask: Any | None
    scale: float
    result: Any
    has_windows: bool

    @property
    def is_fused_as_it_is(self) -> bool:
        """Whether the builder makes one kernel of it without the node."""
        return self.has_windows or _is_bias_of_heads(self.mask)


def fuse_attention(model: Any, folder: Path) -> Any | None:
    """Write scaled products with a softmax between them as Attention nodes.

    Args:
        model: a ModelProto; it loses the shapes that name unknown sizes.
        folder: where its external data lie.

    Returns:
        another ModelProto; None where no attention can be fused.
    """
    if not _may_hold_attention(model):
        return None
    import onnx_ir  # only here: it takes long to load

    ir: Any = onnx_ir
    fused = _read_graph(model, folder)
    if not _has_usable_opset(fused):
        return None
    read = [read_attention(node) for node in fused.graph if is_operator(node, "Softmax")]
    found = [attention for attention in read if isinstance(attention, Attention) and not attention.is_fused_as_it_is]
    for attention in found:
        _write(attention)
    if not found:
        return None
    fused.opset_imports[""] = _ATTENTION_OPSET
    fused.ir_version = max(fused.ir_version, _ATTENTION_IR_VERSION)
    return ir.to_proto(fused)


def attention_obstacles(model: Any, folder: Path) -> dict[str, str]:
    """Tell which softmaxes stand in no attention that can be fused, and why.

    Args:
        model: a ModelProto; it loses the shapes that name unknown sizes.
        folder: where its external data lie.

    Returns:
        the name of the softmax -> what is in the way.
    """
    names = [node.name for node in model.graph.node if node.op_type == "Softmax"]
    if not _may_hold_attention(model):
        return dict.fromkeys(names, _WIDE)
    graph = _read_graph(model, folder)
    if not _has_usable_opset(graph):
        return dict.fromkeys(names, f"the graph is not in one of the opsets {_FIRST_OPSET} to {_ATTENTION_OPSET}")
    read = {node.name: read_attention(node) for node in graph.graph if is_operator(node, "Softmax")}
    return {name: obstacle for name, obstacle in read.items() if isinstance(obstacle, str)}


def _may_hold_attention(model: Any) -> bool:
    """Whether a model has the operators of attention, and a type that the fused kernel takes."""
    return operators_of(model).issuperset(_OPERATORS) and mentions_type(model, cast_element_types())


def _read_graph(model: Any, folder: Path) -> Any:
    """Read a model for changes, with all shapes that ONNX can infer.

    The inference takes a copy without the weights' values: it would write and read these twice, which took a second for
    a model of 200 MB.
    """
    import onnx  # only here: onnx and onnx_ir take long to load
    import onnx_ir

    ir: Any = onnx_ir
    shape_inference: Any = onnx.shape_inference
    _forget_inferred_sizes(model)
    inferred = shape_inference.infer_shapes(without_weight_values(model), data_prop=True).graph
    own = onnx.GraphProto(value_info=model.graph.value_info, output=model.graph.output)
    _replace_values(model.graph, inferred)
    graph = ir.from_proto(model)
    _replace_values(model.graph, own)
    ir.external_data.set_base_dir(graph.graph, folder)
    return graph


def _replace_values(graph: Any, source: Any) -> None:
    """Give a graph the value_info and outputs of another one."""
    for part in ("value_info", "output"):
        graph.ClearField(part)
        getattr(graph, part).extend(getattr(source, part))


def _has_usable_opset(model: Any) -> bool:
    return _FIRST_OPSET <= model.opset_imports.get("", 0) <= _ATTENTION_OPSET


def _forget_inferred_sizes(proto: Any) -> None:
    """Remove the shapes that name unknown sizes: after a second inference, one name may stand for two sizes."""
    kept = [
        value
        for value in proto.graph.value_info
        if not any(dimension.dim_param.startswith(_UNKNOWN_SIZE) for dimension in value.type.tensor_type.shape.dim)
    ]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)


def read_attention(softmax: Any) -> Attention | str:
    """Read the attention around a softmax; for one that has no fused kernel, what is in the way.

    Args:
        softmax: an ir.Node of a graph that knows its shapes.
    """
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return "its softmax runs along another axis than the last of four"
    weights = softmax.outputs[0]
    answer = only_user(weights)
    if not is_operator(answer, "MatMul") or answer.inputs[0] is not weights:
        return "something else than the product with the values reads its weights"
    scores = _take_window_mask(softmax.inputs[0])
    has_windows = scores is not softmax.inputs[0]
    scores, mask = _take_mask(scores)
    product, factor = _take_scale(scores)
    first = _producer(product, "MatMul")
    if first is None:
        return "something else than a scale and a mask stands before its softmax"
    query, query_factor = _take_scale(first.inputs[0])
    key, key_factor = _take_key(first.inputs[1])
    if key is None:
        return "its key comes from no transpose of the last two axes that its product alone reads"
    value = answer.inputs[1]
    scale = factor * query_factor * key_factor
    attention = Attention(query, key, value, first, scores, mask, scale, answer.outputs[0], has_windows)
    return _obstacle_in_shapes(attention) or attention


def _obstacle_in_shapes(attention: Attention) -> str:
    """What in its types and sizes the fused kernel does not take; "" where it takes all."""
    operands = (attention.query, attention.key.source, attention.value)
    if any(one.dtype not in cast_element_types() for one in operands):
        return _WIDE
    if any(one.shape is None or len(one.shape) != 4 for one in operands):
        return "its query, key or value has no four dimensions: batch, heads, length and size"
    query = attention.query.shape
    value = attention.value.shape
    key = [attention.key.source.shape[axis] for axis in attention.key.order]
    if not (query[0] == key[0] == value[0] and query[1] == key[1] == value[1] and isinstance(query[1], int)):
        return "its query, key and value differ in batch or heads, or the number of heads is not fixed"
    sizes = {query[3], key[3], value[3]}
    if len(sizes) != 1 or not all(isinstance(size, int) and size in _HEAD_SIZES for size in sizes):
        listed = ", ".join(sorted(map(str, sizes)))
        return f"its heads have {listed} entries; fused kernels take 16 to 256, in multiples of 8"
    if not attention.scale > 0:
        return "its scale is not a positive number"
    scores = [query[0], query[1], query[2], key[2]]
    if attention.mask is not None and not _stretches(attention.mask.shape, scores):
        return "its mask has a shape that may not stretch to that of the scores"
    return ""


def _stretches(shape: Sequence[Any] | None, target: Sequence[Any]) -> bool:
    """Tell whether a shape surely broadcasts to another one, and the other one not to it."""
    if shape is None or len(shape) > len(target):
        return False
    ends = list(target)[len(target) - len(shape) :]
    return all(size in (1, end) for size, end in zip(shape, ends, strict=True))


def _take_window_mask(scores: Any) -> Any:
    """The scores before a constant is added to them in five dimensions, [images, windows, heads, length, length].

    Args:
        scores: of four dimensions, in which images and windows are one.
    """
    joined = _producer(scores, "Reshape")
    added = None if joined is None else _producer(joined.inputs[0], "Add")
    if added is None:
        return scores
    for parted, mask in (added.inputs, reversed(added.inputs)):
        split = _producer(parted, "Reshape")
        before = None if split is None else split.inputs[0]
        if before is not None and _is_constant(mask) and _joins_windows(before, parted, mask, scores):
            return before
    return scores


def _joins_windows(before: Any, parted: Any, mask: Any, scores: Any) -> bool:
    """Whether a Reshape parts the first axis alone, a mask stretches to its result, and another one joins it again."""
    shapes: list[Any] = [value.shape for value in (before, parted, scores)]
    if any(shape is None for shape in shapes) or [len(shape) for shape in shapes] != [4, 5, 4]:
        return False
    ends = [list(shapes[0])[1:], list(shapes[1])[2:], list(shapes[2])[1:]]
    is_fixed = all(isinstance(size, int) for size in ends[0])
    return is_fixed and ends[0] == ends[1] == ends[2] and _stretches(mask.shape, shapes[1])


def _is_bias_of_heads(mask: Any | None) -> bool:
    """Whether a mask is a constant with numbers of its own for each head."""
    if mask is None or not _is_constant(mask) or mask.shape is None or len(mask.shape) != 4:
        return False
    return bool(mask.shape[1] != 1)


def _take_mask(scores: Any) -> tuple[Any, Any | None]:
    """Find the tensor that an Add adds to a matrix product, scaled or not; None if there is no such Add.

    Returns:
        the tensor before the Add, and the added one.
    """
    node = _producer(scores, "Add")
    if node is None:
        return scores, None
    for product, mask in (node.inputs, reversed(node.inputs)):
        if _producer(_take_scale(product)[0], "MatMul") is not None and mask.dtype == product.dtype:
            return product, mask
    return scores, None


def _take_scale(value: Any) -> tuple[Any, float]:
    """The tensor that a Mul or Div scales by one positive number, and that number; else the tensor itself and 1."""
    for kind in ("Mul", "Div"):
        node = _producer(value, kind)
        if node is None:
            continue
        number = _number(node.inputs[1])
        if number:
            return node.inputs[0], number if kind == "Mul" else 1 / number
        number = _number(node.inputs[0]) if kind == "Mul" else None
        if number:
            return node.inputs[1], number
    return value, 1.0


def _take_key(value: Any) -> tuple[Key | None, float]:
    """The key whose last two axes are swapped, and the factor before or after that; None if they are not swapped."""
    value, outer = _take_scale(value)
    key = _transposed(value) or _reshaped(value)
    if key is None or key.order != _AS_IT_IS:
        return key, outer
    source, inner = _take_scale(key.source)
    return Key(source, _AS_IT_IS), outer * inner


def _transposed(value: Any) -> Key | None:
    """Read one Transpose, which may do more than to swap the last two axes."""
    node = _producer(value, "Transpose")
    order = [] if node is None else list(node.attributes.get_ints("perm", []))
    return None if node is None or len(order) != 4 else Key(node.inputs[0], [order[0], order[1], order[3], order[2]])


def _reshaped(value: Any) -> Key | None:
    """Read torch.onnx's form: to three dimensions, a Transpose, back to four. The sizes come from the key's shape."""
    unfold = _producer(value, "Reshape")
    swap = None if unfold is None else _producer(unfold.inputs[0], "Transpose")
    fold = None if swap is None else _producer(swap.inputs[0], "Reshape")
    if fold is None or swap is None or unfold is None or list(swap.attributes.get_ints("perm", [])) != [0, 2, 1]:
        return None
    key = fold.inputs[0]
    if _is_static_swap(key, _numbers(fold.inputs[1]), _numbers(unfold.inputs[1])):
        return Key(key, _AS_IT_IS)
    length = (2,)
    size = (3,)
    if _sizes(fold.inputs[1], key) == [(-1,), length, size] and _sizes(unfold.inputs[1], key) == [(0, 1), size, length]:
        return Key(key, _AS_IT_IS)
    return None


def _is_static_swap(key: Any, folded: Sequence[int], unfolded: Sequence[int]) -> bool:
    """Whether constant shapes fold [batch, heads] of a key into one axis, and unfold them behind the Transpose."""
    if key.shape is None or len(key.shape) != 4 or not all(isinstance(size, int) for size in key.shape):
        return False
    batch, heads, length, size = key.shape
    return list(folded)[1:] == [length, size] and list(unfolded) == [batch, heads, size, length]


def _sizes(shape: Any, tensor: Any) -> list[tuple[int, ...]]:
    """Read a Concat of slices of a tensor's shape: for each part its axes, and (-1,) for the number -1."""
    node = shape.producer()
    parts = node.inputs if is_operator(node, "Concat") else ()
    return [_axes(part, tensor) for part in parts]


def _axes(part: Any, tensor: Any) -> tuple[int, ...]:
    """The axes whose sizes a Slice of the tensor's shape takes; (-1,) for the number -1, () for anything else."""
    if _numbers(part) == [-1]:
        return (-1,)
    node = part.producer()
    if not is_operator(node, "Slice") or len(node.inputs) != 3:
        return ()
    shape = node.inputs[0].producer()
    start = _numbers(node.inputs[1])
    end = _numbers(node.inputs[2])
    is_whole = (
        is_operator(shape, "Shape") and not shape.attributes.get_int("start", 0) and "end" not in shape.attributes
    )
    if not is_whole or shape.inputs[0] is not tensor or not start or not end:
        return ()
    return tuple(range(4)[start[0] : end[0]])


def _write(attention: Attention) -> None:
    """Put the node in the place of the last product; what nobody uses any more goes with it."""
    import onnx_ir as ir
    from onnx_ir import tape

    last = attention.result.producer()
    record = tape.Tape()
    key = attention.key.source
    if attention.key.order != _AS_IT_IS:
        swapped = record.op("Transpose", [key], attributes={"perm": attention.key.order})
        swapped.shape = ir.Shape([key.shape[axis] for axis in attention.key.order])
        swapped.type = key.type
        key = swapped
    inputs = [attention.query, key, attention.value]
    if attention.mask is not None:
        inputs.append(attention.mask)
    new = record.op("Attention", inputs, attributes={"scale": attention.scale})
    for node in record.nodes:
        node.name = last.name if node.op_type == "Attention" else f"{last.name}/key"
    new.shape = attention.result.shape
    new.type = attention.result.type
    ir.convenience.replace_nodes_and_values(last.graph, last, [last], record.nodes, [attention.result], [new])


def _producer(value: Any, operator: str) -> Any:
    """The node of this kind that makes a value for one reader alone; None for any other value."""
    node = None if value is None else value.producer()
    return node if is_operator(node, operator) and only_user(value) is not None else None


def _is_constant(value: Any | None) -> bool:
    return value is not None and value.const_value is not None and not value.is_graph_input()


def _number(value: Any) -> float | None:
    """The one positive number that a constant holds; None for anything else."""
    numbers = _numbers(value)
    return numbers[0] if len(numbers) == 1 and numbers[0] > 0 else None


def _numbers(value: Any) -> list[Any]:
    """The few numbers that a constant holds; none for anything else."""
    if value is None or value.is_graph_input():
        return []
    constant = value.const_value
    if constant is None or constant.size > 8:
        return []
    return np.asarray(constant.numpy()).reshape(-1).tolist()
