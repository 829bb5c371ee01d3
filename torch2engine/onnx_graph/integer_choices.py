"""An ONNX model → what its integer outputs were chosen from: the scores of an ArgMax, the operands of a comparison.

Enters: a model file. Leaves: a choice for each output whose graph shows one, and the floating values that it was made
from. Separate because an integer can't be nearly right, but its choice may have been a near tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.onnx_graph.tensor_types import cast_element_types, tensor_types

__all__ = ["ChoiceReader", "IntegerChoice"]

_PREFIX = "torch2engine.choice/"
_SAME_ORDER = ("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Not")  # element stays beside element
_EXTREMES = ("ArgMax", "ArgMin", "TopK")
# From the places that a long sort gives back to the part that TopK sorted, and from there to the scores: the input that
# each node takes them from. `exporter/decompositions/sorting.py` writes these nodes.
_ORDERED_PLACES = {"Clip": 0, "Slice": 0}
_SCATTERED = 2
_PLACES_OF_PARTS = {"Reshape": 0, "Add": 0}
_SCORES_OF_PARTS = {"Reshape": 0, "Concat": 0, "Where": 2}
_COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
_ROUNDINGS = ("Round", "Floor", "Ceil")


@dataclass(frozen=True)
class IntegerChoice:
    """How an integer output was chosen.

    Args:
        kind: "extreme": the place of the largest or smallest along an axis; "comparison": of two operands; "rounding":
            of one operand.
        operands: names of the floating tensors.
        axis: of an extreme.
    """

    kind: Literal["extreme", "comparison", "rounding"]
    operands: tuple[str, ...]
    axis: int = 0


class ChoiceReader:
    """Finds the choices of a model, and computes their operands by ONNX Runtime.

    Args:
        path: the model file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        model = load_model(path)
        self.choices = _find_choices(model)
        names = sorted({name for choice in self.choices.values() for name in choice.operands})
        self._session = _observing_session(model, names) if names else None

    def operands(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
        """Give the operands of all choices by name, for one call."""
        if self._session is None:
            return {}
        answers = self._session(inputs)
        return {name.removeprefix(_PREFIX): value.astype(np.float64) for name, value in answers.items()}


def _observing_session(model: Any, names: list[str]) -> OrtSession:
    """Open a model that outputs these tensors alone, in float32."""
    from onnx import TensorProto, helper

    del model.graph.output[:]
    for name in names:
        output = _PREFIX + name
        model.graph.node.append(helper.make_node("Cast", [name], [output], to=TensorProto.FLOAT))
        model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        save_model(model, path)
        return OrtSession(path)


def _find_choices(model: Any) -> dict[str, IntegerChoice]:
    producers = {name: node for node in model.graph.node for name in node.output}
    floating = _floating_tensors(model)
    integers = [value.name for value in model.graph.output if value.name not in floating]
    found = {name: _choice(name, producers, floating) for name in integers}
    return {name: choice for name, choice in found.items() if choice is not None}


def _floating_tensors(model: Any) -> set[str]:
    from onnx import TensorProto

    floating = {TensorProto.FLOAT, TensorProto.DOUBLE, *cast_element_types()}
    return {name for name, element_type in tensor_types(model).items() if element_type in floating}


def _choice(name: str, producers: Mapping[str, Any], floating: set[str]) -> IntegerChoice | None:
    """Follow an output to the node that chose it."""
    node = producers.get(name)
    while node is not None:
        if node.op_type in _EXTREMES:
            return IntegerChoice("extreme", (node.input[0],), _axis(node))
        if node.op_type in _COMPARISONS:
            return IntegerChoice("comparison", (node.input[0], node.input[1]))
        if node.op_type in _ROUNDINGS or (node.op_type == "Cast" and node.input[0] in floating):
            return IntegerChoice("rounding", (node.input[0],))
        if node.op_type != "Cast" and node.op_type not in _SAME_ORDER:
            return _choice_of_merged_sort(name, producers)
        name = node.input[0]
        node = producers.get(name)
    return None


def _choice_of_merged_sort(name: str, producers: Mapping[str, Any]) -> IntegerChoice | None:
    """Follow the places of a sort that was merged from sorted parts."""
    places = _followed(name, producers, _ORDERED_PLACES)
    if places not in producers or producers[places].op_type != "ScatterElements":
        return None
    topk = _followed(producers[places].input[_SCATTERED], producers, _PLACES_OF_PARTS)
    if topk not in producers or producers[topk].op_type != "TopK":
        return None
    scores = _followed(producers[topk].input[0], producers, _SCORES_OF_PARTS)
    return IntegerChoice("extreme", (scores,), -1)


def _followed(name: str, producers: Mapping[str, Any], input_of: Mapping[str, int]) -> str:
    """The tensor that a chain of such nodes begins with."""
    while name in producers and producers[name].op_type in input_of:
        node = producers[name]
        name = node.input[input_of[node.op_type]]
    return name


def _axis(node: Any) -> int:
    default = -1 if node.op_type == "TopK" else 0
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), default)
