"""An ONNX file + input arrays → output arrays, by ONNX Runtime on the CPU.

Enters: numpy arrays by input name. Leaves: numpy arrays by output name. Separate because ONNX Runtime both checks every
export, and runs models on machines without a GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import ArtifactError, InputError, UnsupportedNode, UnsupportedOperatorError
from torch2engine.core.wording import quote
from torch2engine.onnx_graph.model_file import save_model
from torch2engine.onnx_graph.strict_rounding import round_strictly
from torch2engine.onnx_graph.tensor_types import DTYPE_ATTRIBUTES, cast_element_types
from torch2engine.onnx_graph.walk import walk_graphs, walk_tensors

__all__ = ["OrtSession", "element_dtypes", "import_onnxruntime", "optimizer_level"]

_NODE = re.compile(r"implementation for (?P<op>[\w.]+)\(\d+\) node with name '(?P<name>[^']*)'")
_UNKNOWN = re.compile(r"No Op registered for (?P<op>[\w.]+)|error: (?P<function>[\w.:]+)\(-?\d+\) is not a registered")
_ERRORS_ONLY = 3
# Threads that wait for work in a loop take a core each, for milliseconds after a session opens and after each call.
_SPINNING = "session.intra_op.allow_spinning"
# Prefix of an element type -> the highest level of the optimiser that leaves graphs with it right; the lowest first.
# It breaks graphs of few bits (1.32): it drops a Relu before an E4M3 QuantizeLinear. In float16 it makes a ResNet in
# fp8 wrong by .84 instead of .04, and an MLP with int4 weights by 1. Above ENABLE_EXTENDED the process crashes on half
# attention (MatmulTransposeFusion, 1.30 and 1.32).
_BROKEN_BY_OPTIMIZER = {
    "FLOAT8": "DISABLE_ALL",
    "INT4": "DISABLE_ALL",
    "UINT4": "DISABLE_ALL",
    "FLOAT16": "ENABLE_EXTENDED",
}
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


class OrtSession:
    """An ONNX model that ONNX Runtime has opened on the CPU; threads may share it.

    Args:
        path: the model file; external data is found beside it. Tensors of float16 and bfloat16 are rounded to their
            type after every operator, as on a GPU: ONNX Runtime's own float16 is not, and it has no bfloat16 Conv, Gemm
            or Add (seen with 1.32). Inputs and outputs of bfloat16 are float32, since numpy has none.
        as_it_is: run such a graph without this rounding. It is enough for a graph that only casts to a low type and
            back.

    Raises:
        UnsupportedOperatorError: ONNX Runtime's CPU provider lacks an operator for these dtypes.
        ArtifactError: ONNX Runtime can't read the file.
    """

    def __init__(self, path: Path, as_it_is: bool = False) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry(_SPINNING, "0")
        # An open session needs none of its files any more (Linux: what it has mapped stays).
        with scratch_folder() as scratch:
            readable = _make_readable(path, scratch, as_it_is)
            level = optimizer_level(readable.dtypes)
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
            try:
                self._session: Any = ort.InferenceSession(
                    str(readable.path), sess_options=options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise _refusal(error, path) from error
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._half_inputs = readable.half_inputs
        self._half_outputs = readable.half_outputs
        self._outputs: list[str] = [value.name for value in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model.

        Args:
            inputs: contiguous arrays by name, in the graph's dtypes. Inputs that the graph never reads are left out.

        Returns:
            fresh arrays by output name.

        Raises:
            InputError: ONNX Runtime refuses the inputs or fails on them.
        """
        feeds = {name: np.asarray(array, order="C") for name, array in inputs.items() if name in self._inputs}
        feeds |= {name: _cast(feeds[name], np.float16, np.float32) for name in self._half_inputs & feeds.keys()}
        try:
            outputs: list[NDArray[Any]] = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise InputError(
                "ONNX Runtime",
                got=quote(error),
                allowed="inputs that the graph can take",
                fix="call the PyTorch model with these inputs, and correct what fails there",
            ) from error
        answers = dict(zip(self._outputs, outputs, strict=True))
        return answers | {name: _cast(answers[name], np.float32, np.float16) for name in self._half_outputs}


def optimizer_level(dtypes: Collection[str]) -> str:
    """The highest level of ONNX Runtime's optimiser that leaves a graph with these element types right.

    Args:
        dtypes: as `element_dtypes` gives them.

    Returns:
        a name of ONNX Runtime's levels, without "ORT_".

    >>> optimizer_level({"FLOAT"}), optimizer_level({"FLOAT", "FLOAT16"}), optimizer_level({"FLOAT16", "INT4"})
    ('ENABLE_ALL', 'ENABLE_EXTENDED', 'DISABLE_ALL')
    """
    for prefix, level in _BROKEN_BY_OPTIMIZER.items():
        if any(dtype.startswith(prefix) for dtype in dtypes):
            return level
    return "ENABLE_ALL"


def element_dtypes(path: Path) -> frozenset[str]:
    """The names of the element types in a model file, as onnx.TensorProto.DataType has them.

    Raises:
        ArtifactError: not an ONNX model.
    """
    return _names_of(_element_types(_parse(path, with_weights=False).graph))


def _names_of(element_types: Iterable[int]) -> frozenset[str]:
    import onnx

    return frozenset(onnx.TensorProto.DataType.Name(element_type) for element_type in element_types)


def _cast(array: NDArray[Any], source: type[np.generic], target: type[np.generic]) -> NDArray[Any]:
    """Cast an array that has the source's dtype; ONNX Runtime refuses other dtypes."""
    cast: NDArray[Any] = array.astype(target) if array.dtype == source else array
    return cast


@cache
def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off, and keep it off.

    Its packages collect usage. Without this variable, the import alone writes a device identifier into the home folder
    (1.32).
    """
    before = os.environ.get(_NO_TELEMETRY)
    os.environ[_NO_TELEMETRY] = "1"
    try:
        import onnxruntime
    finally:
        if before is None:
            del os.environ[_NO_TELEMETRY]
        else:
            os.environ[_NO_TELEMETRY] = before
    module: Any = onnxruntime
    module.disable_telemetry_events()  # the user's code may have imported it before
    return module


def _refusal(error: Exception, path: Path) -> Exception:
    """Translate ONNX Runtime's refusal to open a model."""
    text = str(error)
    if match := _NODE.search(text):
        node = UnsupportedNode(match["op"], match["name"], "", "", "no CPU implementation for these dtypes")
        return UnsupportedOperatorError(
            "ONNX Runtime",
            nodes=[node],
            got=f"no CPU implementation for {match['op']}",
            allowed="operators and dtypes that have one",
            fix="compute it in float32: cast the model, or what this operator takes",
        )
    if match := _UNKNOWN.search(text):
        op = match["op"] or match["function"]
        return UnsupportedOperatorError(
            "ONNX Runtime",
            nodes=[UnsupportedNode(op, "", "", "", "not known to ONNX Runtime")],
            got=f"the operator {op}, which it does not know",
            allowed="operators of ONNX and of the model's own functions",
            fix="replace it in the model, or update onnxruntime if the operator is new",
        )
    got = f"ONNX Runtime's {quote(error)}"
    return ArtifactError(
        f"'{path.name}'", got=got, allowed="a model that it can open", fix="export the model again", path=str(path)
    )


@dataclass(frozen=True)
class _ReadableModel:
    """A model file that ONNX Runtime can open.

    Args:
        path: the file.
        dtypes: names of the element types in the model that was given.
        half_inputs, half_outputs: those that are float16 in the model that was given, and float32 in the file.
    """

    path: Path
    dtypes: frozenset[str]
    half_inputs: frozenset[str] = frozenset()
    half_outputs: frozenset[str] = frozenset()


def _make_readable(path: Path, scratch: Path, as_it_is: bool) -> _ReadableModel:
    """Give the model itself, or a float32 copy that rounds as the model does, if it has a low type.

    Raises:
        ArtifactError: not an ONNX model.
    """
    model = _parse(path, with_weights=False)
    element_types = _element_types(model.graph)
    dtypes = _names_of(element_types)
    if as_it_is or element_types.isdisjoint(cast_element_types()):
        return _ReadableModel(path, dtypes)
    half_inputs = _half_values(model.graph.input)
    half_outputs = _half_values(model.graph.output)
    twin = round_strictly(_parse(path, with_weights=True))
    save_model(twin, scratch / "model.onnx")
    return _ReadableModel(scratch / "model.onnx", dtypes, half_inputs, half_outputs)


def _half_values(values: Iterable[Any]) -> frozenset[str]:
    from onnx import TensorProto

    return frozenset(value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _parse(path: Path, with_weights: bool) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=with_weights)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ArtifactError(
            f"'{path.name}'", got=quote(error), allowed="an ONNX model", fix="export the model again", path=str(path)
        ) from error


def _element_types(graph: Any) -> set[int]:
    """Collect every element type that the model names; some files lack the types of inner values."""
    types = {tensor.data_type for tensor in walk_tensors(graph)}
    types.update(value.elem_type for value in _tensor_values(graph))
    types.update(attribute.i for attribute in _dtype_attributes(graph))
    return types


def _tensor_values(graph: Any) -> Iterator[Any]:
    """Give the type entry of every input, output and inner value that has one."""
    for part in walk_graphs(graph):
        for value in (*part.input, *part.output, *part.value_info):
            yield value.type.tensor_type


def _dtype_attributes(graph: Any) -> Iterator[Any]:
    """Give the attributes that name an element type."""
    for part in walk_graphs(graph):
        for node in part.node:
            yield from (attribute for attribute in node.attribute if attribute.name in DTYPE_ATTRIBUTES)
