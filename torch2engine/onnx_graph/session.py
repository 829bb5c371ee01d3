"""`OnnxArtifact` + inputs → outputs, by ONNX Runtime on the CPU.

Enters: numpy arrays by input name. Leaves: numpy arrays by output name. A room of its own because it is both the first
judge of an export and the engine of machines without a GPU.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from torch2engine.core.errors import ArtifactError, InputError, UnsupportedNode, UnsupportedOperatorError

__all__ = ["Session"]

_NODE = re.compile(r"implementation for (?P<op>[\w.]+)\(\d+\) node with name '(?P<name>[^']*)'")
_ERRORS_ONLY = 3


class Session:
    """An ONNX model on the CPU; threads may share it.

    Args:
        path: the model file; external data is found beside it. A bfloat16 graph is answered in float32, inputs and
            outputs included, because the CPU provider has no bfloat16 Conv, Gemm or Add (seen with 1.32).
        as_it_is: leave a bfloat16 graph alone; one that only casts to bfloat16 and back can be run.

    Raises:
        UnsupportedOperatorError: ONNX Runtime's CPU provider lacks an operator for these dtypes.
        ArtifactError: the file is no model that ONNX Runtime can read.
    """

    def __init__(self, path: Path, as_it_is: bool = False) -> None:
        import onnxruntime

        ort: Any = onnxruntime
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        # An open session needs none of its files any more (Linux: what it has mapped stays).
        with tempfile.TemporaryDirectory(prefix="torch2engine-") as scratch:
            readable, dtypes = _readable(path, Path(scratch), as_it_is)
            if any(dtype.startswith(("FLOAT8", "INT4", "UINT4")) for dtype in dtypes):
                # The optimiser breaks such graphs (1.32): it drops a Relu before an E4M3 QuantizeLinear, and in float16
                # a ResNet in fp8 is wrong by .84 where it is by .04 as it stands, an MLP with int4 weights by 1.
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            elif "FLOAT16" in dtypes:
                # Above this level the process crashes on half attention (MatmulTransposeFusion, 1.30 and 1.32).
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            try:
                self._session: Any = ort.InferenceSession(
                    str(readable), sess_options=options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise _refused(error, path) from error
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer.

        Args:
            inputs: contiguous arrays by name, in the graph's dtypes; inputs that the graph never reads are left out.

        Returns:
            fresh arrays by output name.

        Raises:
            InputError: ONNX Runtime refuses the inputs or fails on them.
        """
        feeds = {name: np.asarray(array, order="C") for name, array in inputs.items() if name in self._inputs}
        try:
            outputs = cast("list[NDArray[Any]]", self._session.run(self._outputs, feeds))
        except Exception as error:
            raise InputError("ONNX Runtime", got=_first_line(error)) from error
        return dict(zip(self._outputs, outputs, strict=True))


def _refused(error: Exception, path: Path) -> Exception:
    text = str(error)
    if match := _NODE.search(text):
        node = UnsupportedNode(match["op"], match["name"], "", "", "no CPU implementation for these dtypes")
        return UnsupportedOperatorError(
            "ONNX Runtime",
            nodes=[node],
            got=f"no CPU implementation for {match['op']}",
            fix="cast the model to float32, or use runtime='tensorrt'",
        )
    return ArtifactError(f"'{path.name}'", got=f"ONNX Runtime: {_first_line(error)}", path=str(path))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _readable(path: Path, scratch: Path, as_it_is: bool) -> tuple[Path, set[str]]:
    """The model file to open and the dtypes in it; where bfloat16 is among them a copy with float32 in its place.

    Raises:
        ArtifactError: not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    def load(with_weights: bool) -> Any:
        try:
            return onnx.load(str(path), load_external_data=with_weights)
        except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ArtifactError(f"'{path.name}'", got=f"not an ONNX model ({error})", path=str(path)) from error

    model = load(with_weights=False)
    dtypes = {onnx.TensorProto.DataType.Name(number) for number in _types(model.graph)}
    if as_it_is or "BFLOAT16" not in dtypes:
        return path, dtypes
    model = load(with_weights=True)
    _widen(model.graph)
    twin = scratch / "model.onnx"
    # Beside the graph, because twice the weights may not fit into protobuf's 2 GiB.
    onnx.save_model(model, str(twin), save_as_external_data=True, location="model.onnx.data")
    return twin, dtypes


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes."""
    yield graph
    for attribute in _attributes(graph):
        if attribute.HasField("g"):
            yield from _graphs(attribute.g)


def _attributes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield from node.attribute


def _values(graph: Any) -> Iterator[Any]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.type.tensor_type


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    yield from (attribute.t for attribute in _attributes(graph) if attribute.HasField("t"))


def _casts(graph: Any) -> Iterator[Any]:
    """The attributes that name a dtype."""
    yield from (attribute for attribute in _attributes(graph) if attribute.name in ("to", "dtype", "output_dtype"))


def _types(graph: Any) -> set[int]:
    """Every dtype that is named anywhere; not every file has its values' dtypes."""
    types: set[int] = set()
    for part in _graphs(graph):
        types.update(value.elem_type for value in _values(part))
        types.update(tensor.data_type for tensor in _tensors(part))
        types.update(attribute.i for attribute in _casts(part))
    return types


def _widen(graph: Any) -> None:
    """Put float32 in bfloat16's place."""
    import onnx

    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    for part in _graphs(graph):
        for tensor in _tensors(part):
            if tensor.data_type == narrow:
                values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        for value in _values(part):
            if value.elem_type == narrow:
                value.elem_type = wide
        for attribute in _casts(part):
            if attribute.i == narrow:
                attribute.i = wide
