"""An ONNX file + input arrays → output arrays, by ONNX Runtime on the CPU.

Enters: numpy arrays by input name. Leaves: numpy arrays by output name. Separate because ONNX Runtime is both the first
judge of an export and the engine of machines without a GPU.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch2engine.core.errors import ArtifactError, InputError, UnsupportedNode, UnsupportedOperatorError
from torch2engine.core.wording import quote
from torch2engine.onnx_graph.walk import walk_graphs, walk_nodes, walk_tensors

__all__ = ["DTYPE_ATTRIBUTES", "OrtSession", "import_onnxruntime"]

DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")  # attributes whose value is an element type

_NODE = re.compile(r"implementation for (?P<op>[\w.]+)\(\d+\) node with name '(?P<name>[^']*)'")
_ERRORS_ONLY = 3
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


class OrtSession:
    """An ONNX model that ONNX Runtime has opened on the CPU; threads may share it.

    Args:
        path: the model file; external data is found beside it. A bfloat16 graph answers in float32, inputs and outputs
            included, because the CPU provider has no bfloat16 Conv, Gemm or Add (seen with 1.32). What a Cast makes
            bfloat16 is rounded to it all the same.
        as_it_is: leave a bfloat16 graph alone. A graph that only casts to bfloat16 and back can run so.

    Raises:
        UnsupportedOperatorError: ONNX Runtime's CPU provider lacks an operator for these dtypes.
        ArtifactError: ONNX Runtime can't read the file.
    """

    def __init__(self, path: Path, as_it_is: bool = False) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        # An open session needs none of its files any more (Linux: what it has mapped stays).
        with tempfile.TemporaryDirectory(prefix="torch2engine-") as scratch:
            readable = _make_readable(path, Path(scratch), as_it_is)
            if any(dtype.startswith(("FLOAT8", "INT4", "UINT4")) for dtype in readable.dtypes):
                # The optimiser breaks such graphs (1.32): it drops a Relu before an E4M3 QuantizeLinear, and in float16
                # a ResNet in fp8 is wrong by .84 where it is by .04 as it stands, an MLP with int4 weights by 1.
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            elif "FLOAT16" in readable.dtypes:
                # Above this level the process crashes on half attention (MatmulTransposeFusion, 1.30 and 1.32).
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            try:
                self._session: Any = ort.InferenceSession(
                    str(readable.path), sess_options=options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise _refusal(error, path) from error
        self._inputs = {value.name for value in self._session.get_inputs()}
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
        try:
            outputs: list[NDArray[Any]] = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise InputError(
                "ONNX Runtime",
                got=quote(error),
                allowed="inputs that the graph can take",
                fix="call the PyTorch model with these inputs, and mend what fails there",
            ) from error
        return dict(zip(self._outputs, outputs, strict=True))


@cache
def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off, and keep it off.

    Its packages collect usage, and the import alone writes a device identifier into the home folder (1.32), unless
    this variable is set.
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
    module.disable_telemetry_events()  # it may have been imported before, by others
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
            fix="cast the model to float32, or use runtime='tensorrt'",
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
    """

    path: Path
    dtypes: frozenset[str]


def _make_readable(path: Path, scratch: Path, as_it_is: bool) -> _ReadableModel:
    """Give the model itself, or a copy with float32 in the place of bfloat16.

    Raises:
        ArtifactError: not an ONNX model.
    """
    import onnx

    model = _parse(path, with_weights=False)
    dtypes = frozenset(onnx.TensorProto.DataType.Name(element_type) for element_type in _element_types(model.graph))
    if as_it_is or "BFLOAT16" not in dtypes:
        return _ReadableModel(path, dtypes)
    model = _parse(path, with_weights=True)
    _replace_bfloat16(model.graph)
    float32_path = scratch / "model.onnx"
    # The weights lie beside the graph, because twice their bytes may not fit into protobuf's 2 GiB.
    onnx.save_model(model, str(float32_path), save_as_external_data=True, location="model.onnx.data")
    return _ReadableModel(float32_path, dtypes)


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
    """Collect every element type that is named anywhere; not every file has its values' types."""
    types = {tensor.data_type for tensor in walk_tensors(graph)}
    types.update(value.elem_type for value in _tensor_values(graph))
    types.update(attribute.i for attribute in _dtype_attributes(graph))
    return types


def _replace_bfloat16(graph: Any) -> None:
    """Put float32 in bfloat16's place; what a Cast rounds to bfloat16 stays rounded."""
    import onnx

    bfloat16 = onnx.TensorProto.BFLOAT16
    float32 = onnx.TensorProto.FLOAT
    rounded = {node.output[0] for node in walk_nodes(graph.node) if _cast_type(node) == bfloat16}
    for tensor in walk_tensors(graph):
        if tensor.data_type == bfloat16:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in _tensor_values(graph):
        if value.elem_type == bfloat16:
            value.elem_type = float32
    for attribute in _dtype_attributes(graph):
        if attribute.i == bfloat16:
            attribute.i = float32
    for part in walk_graphs(graph):
        _round_to_bfloat16(part, rounded)


def _cast_type(node: Any) -> int | None:
    """The type that a Cast casts to; None for another node."""
    return next(
        (attribute.i for attribute in node.attribute if attribute.name == "to" and node.op_type == "Cast"), None
    )


def _round_to_bfloat16(graph: Any, names: Set[str]) -> None:
    """Put a Cast to bfloat16 before each Cast that makes one of these tensors.

    Without the rounding, a Cast that the graph should not have would pass every comparison.
    """
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in names:
            narrow = f"{node.output[0]}/bfloat16"
            nodes.append(helper.make_node("Cast", [node.input[0]], [narrow], to=TensorProto.BFLOAT16))
            node.input[0] = narrow
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


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
