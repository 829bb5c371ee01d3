"""Small ONNX graphs as text, with a dynamic axis "n".

Enters: the text of a graph. Leaves: what the analysis says of it, and whether ONNX Runtime answers chunks like the
whole. A room of its own because the tests of all rules start from such texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from torch2engine.core.spec import Axis, Signature, TensorSpec
from torch2engine.onnx_graph.axis_flow.analysis import find_influences
from torch2engine.onnx_graph.ort_session import OrtSession

WHOLE, FIRST = 5, 3
EXTREMES = (np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-40, -0.0)


def parse(text: str, opset: int = 22) -> Any:
    """A model of a graph's text, e.g. ``"(float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"``."""
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "my.domain": 1]> g {text}')


def signature_of(model: Any) -> Signature:
    """The inputs, outputs and axes of a model."""
    sides = [
        tuple(
            TensorSpec(value.name, "float32", tuple(dim.dim_param or dim.dim_value for dim in dims_of(value)))
            for value in side
        )
        for side in (model.graph.input, model.graph.output)
    ]
    names = sorted({dim for spec in sides[0] for dim in spec.shape if isinstance(dim, str)})
    return Signature(sides[0], sides[1], tuple(Axis(name, 1, 4, 64) for name in names))


def dims_of(value: Any) -> Any:
    """The dimensions of an input or output."""
    return value.type.tensor_type.shape.dim


def influence(text: str, opset: int = 22, axis: str = "n") -> str | None:
    """What the analysis says of an axis: None or the operator that mixes it."""
    model = parse(text, opset)
    return find_influences(model, signature_of(model))[axis]


def draw(model: Any, size: int, extreme: bool, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs of a model at a size of axis "n"; the others have size 6."""
    generator = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for value in model.graph.input:
        shape = [size if dim.dim_param == "n" else dim.dim_value or 6 for dim in dims_of(value)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind == "f":
            drawn = generator.standard_normal(shape)
            if extreme:
                drawn = np.where(generator.random(shape) < 0.2, generator.choice(EXTREMES, shape), drawn)
        else:
            drawn = generator.integers(0, 2, shape)
        inputs[value.name] = drawn.astype(dtype)
    return inputs


def answers_in_chunks_differ(model: Any, folder: Path) -> bool:
    """Whether ONNX Runtime answers some inputs as a whole otherwise than in two chunks along axis "n"."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    session = OrtSession(path)
    return any(
        _differ(session, model, draw(model, WHOLE, extreme, seed))
        for extreme, seed in ((False, 0), (True, 1), (True, 2))
    )


def _differ(session: OrtSession, model: Any, inputs: dict[str, NDArray[Any]]) -> bool:
    expected = session(inputs)
    parts = [session(dict(_cut(model, inputs, slice(*ends)))) for ends in ((0, FIRST), (FIRST, WHOLE))]
    for value in model.graph.output:
        dim = _place(value)
        found = np.concatenate([part[value.name] for part in parts], axis=dim)
        with np.errstate(all="ignore"):
            if not np.allclose(found, expected[value.name], rtol=1e-4, atol=1e-5, equal_nan=True):
                return True
    return False


def _cut(model: Any, inputs: dict[str, NDArray[Any]], part: slice) -> Iterator[tuple[str, NDArray[Any]]]:
    for value in model.graph.input:
        names: Sequence[str] = [dim.dim_param for dim in dims_of(value)]
        index = [part if name == "n" else slice(None) for name in names]
        yield value.name, np.ascontiguousarray(inputs[value.name][tuple(index)])


def _place(value: Any) -> int:
    return [dim.dim_param for dim in dims_of(value)].index("n")
