"""A float32 ONNX model and calibration data → how large each of its tensors becomes.

Enters: batches, one at a time. Leaves: the largest absolute value of each tensor. Separate because only real data show
which tensors overflow. Rules on operators and random inputs do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import InputError
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.onnx_graph.tensor_types import float32_tensors

__all__ = ["OBSERVED_PREFIX", "absolute_maxima", "answers_in_turn", "observe_tensors"]

OBSERVED_PREFIX = "torch2engine.absmax/"


def absolute_maxima(source: Path, batches: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    """Measure the largest absolute value of every float32 tensor of the graph over all batches.

    Memory holds one batch at a time, and what the graph itself works in.

    Args:
        source: the model.
        batches: arrays by input name.

    Returns:
        tensor name -> value; inf where an element is not finite.

    Raises:
        InputError: no batch, or ONNX Runtime fails on one.
    """
    with scratch_folder() as folder:
        observed_path = folder / "model.onnx"
        model = load_model(source)
        float32_names = float32_tensors(model)
        all_names = [value.name for value in model.graph.input]
        all_names += [name for node in model.graph.node for name in node.output]
        names = [name for name in all_names if name in float32_names]
        if not names:
            return {}
        observe_tensors(model, names, reduced=True)
        save_model(model, observed_path)
        del model
        session = OrtSession(observed_path, as_it_is=True)
        maxima = dict.fromkeys(names, 0.0)
        is_empty = True
        for answers in answers_in_turn(session, batches):
            is_empty = False
            for name in names:
                value = float(answers[OBSERVED_PREFIX + name])  # -inf for an empty batch
                maxima[name] = max(maxima[name], float("inf") if np.isnan(value) else value)
    if is_empty:
        raise InputError(
            "calibration",
            got="no batch",
            allowed="an iterable of inputs in the form of sample_input",
            fix="pass e.g. calibration=[batch, ...]",
        )
    return maxima


def answers_in_turn(
    session: OrtSession, batches: Iterable[Mapping[str, NDArray[Any]]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Run the session on one batch after another, with one batch alive at a time; yield its answers by output name."""
    for batch in batches:
        answers = session(batch)
        del batch  # otherwise two batches are alive while the next one is made
        yield answers


def observe_tensors(model: Any, names: Sequence[str], reduced: bool) -> None:
    """Have the model output these tensors alone, whole or as one number each.

    Args:
        model: ModelProto, changed in place; its outputs become `OBSERVED_PREFIX` + name.
        names: of float32 tensors.
        reduced: output the largest absolute value of each, which is not finite where an element is not.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    del graph.output[:]
    for index, name in enumerate(names):
        output = OBSERVED_PREFIX + name
        if reduced:
            _append_absolute_maximum(graph, name, output, index)
        else:
            graph.node.append(helper.make_node("Identity", [name], [output]))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [] if reduced else None))


def _append_absolute_maximum(graph: Any, name: str, output: str, index: int) -> None:
    """Append nodes for max + 0·sum: a maximum may ignore NaN, a sum does not."""
    from onnx import TensorProto, helper

    def inner_name(part: str) -> str:
        return f"{OBSERVED_PREFIX}{part}{index}"

    def append(op: str, inputs: Sequence[str], result: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(op, inputs, [result], **attributes))
        return result

    absolute = append("Abs", [name], inner_name("abs"))
    # Over a matrix, since a scalar has no axis to reduce over in some versions.
    flat = append("Flatten", [absolute], inner_name("flat"), axis=0)
    maximum = append("ReduceMax", [flat], inner_name("max"), keepdims=0)
    zero = inner_name("zero")
    graph.initializer.append(helper.make_tensor(zero, TensorProto.FLOAT, [], [0.0]))
    zeros = append("Mul", [flat, zero], inner_name("zeros"))
    total = append("ReduceSum", [zeros], inner_name("sum"), keepdims=0)
    append("Add", [maximum, total], output)
