"""A float32 ONNX model and calibration data → how large each of its tensors becomes.

Enters: batches, one at a time. Leaves: the largest absolute value of each tensor. A room of its own because overflow is
a matter of real data: no rule on operators finds it, and random inputs don't either.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.core.errors import InputError
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.session import OrtSession
from torch2engine.onnx_graph.tensor_types import float32_tensors

__all__ = ["PREFIX", "absolute_maxima", "watch"]

PREFIX = "torch2engine.absmax/"


def absolute_maxima(source: Path, batches: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    """The largest absolute value of every float32 tensor of the graph over all batches; inf where one is not finite.

    Only one batch and the graph's own working memory are held at a time.

    Args:
        source: the model.
        batches: arrays by input name.

    Raises:
        InputError: no batch, or ONNX Runtime fails on one.
    """
    with tempfile.TemporaryDirectory(prefix="torch2engine-") as folder:
        watched = Path(folder) / "model.onnx"
        model = load_model(source)
        known = float32_tensors(model)
        made = [value.name for value in model.graph.input]
        made += [name for node in model.graph.node for name in node.output]
        names = [name for name in made if name in known]
        if not names:
            return {}
        watch(model, names, reduced=True)
        save_model(model, watched)
        del model
        session = OrtSession(watched, as_it_is=True)
        maxima = dict.fromkeys(names, 0.0)
        count = 0
        for batch in batches:
            count += 1
            answers = session(batch)
            del batch  # or two are alive while the next one is made
            for name in names:
                value = float(answers[PREFIX + name])
                if value > maxima[name] or np.isnan(value) or value == float("inf"):
                    maxima[name] = value if np.isfinite(value) else float("inf")
    if not count:
        raise InputError(
            "calibration",
            got="no batch",
            allowed="an iterable of inputs in the form of sample_input",
            fix="pass e.g. calibration=[batch, ...]",
        )
    return maxima


def watch(model: Any, names: Sequence[str], reduced: bool) -> None:
    """Have the model give these tensors alone, reduced to their largest absolute values if that will do.

    Args:
        model: ModelProto, changed in place; its outputs become `PREFIX` + name.
        names: of float32 tensors.
        reduced: a scalar for each, NaN or infinite where any element is; else the tensors themselves.
    """
    import onnx
    from onnx import helper

    graph = model.graph
    del graph.output[:]
    for index, name in enumerate(names):
        out = PREFIX + name
        if reduced:
            size, flat, worst = (f"{PREFIX}{part}{index}" for part in ("abs", "flat", "nan"))
            graph.node.append(helper.make_node("Abs", [name], [size]))
            # Over a matrix, since a scalar has no axis to reduce over in some versions.
            graph.node.append(helper.make_node("Flatten", [size], [flat], axis=0))
            graph.node.append(helper.make_node("ReduceMax", [flat], [worst], keepdims=0))
            # A maximum may pass over NaN, a sum does not; and max + 0·sum is the maximum where all is finite.
            total, zero, nothing = (f"{PREFIX}{part}{index}" for part in ("sum", "zero", "nothing"))
            graph.initializer.append(helper.make_tensor(zero, onnx.TensorProto.FLOAT, [], [0.0]))
            graph.node.append(helper.make_node("Mul", [flat, zero], [nothing]))
            graph.node.append(helper.make_node("ReduceSum", [nothing], [total], keepdims=0))
            graph.node.append(helper.make_node("Add", [worst, total], [out]))
        else:
            graph.node.append(helper.make_node("Identity", [name], [out]))
        graph.output.append(helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, [] if reduced else None))
