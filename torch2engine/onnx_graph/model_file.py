"""An ONNX file ↔ a ModelProto, whatever its size.

Enters: a path or a model. Leaves: the other. Separate because protobuf holds 2 GiB at most, and every change of a model
must respect that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from torch2engine.core.constants import EXTERNAL_ABOVE_BYTES

__all__ = ["load_model", "replace_weights", "save_model"]


def load_model(path: Path) -> Any:
    """Read a model with its weights: an onnx.ModelProto."""
    import onnx

    return onnx.load(str(path))


def save_model(model: Any, path: Path, *, keep_shapes: bool = False) -> None:
    """Write a model whole or not at all; weights that protobuf can't hold go into a file beside it.

    Tensors inside keep their types and lose their shapes. ONNX's shape inference names unknown sizes anew each time. If
    it ran twice, one name may stand for two sizes, and ONNX Runtime believes that they are equal.

    Args:
        model: an onnx.ModelProto.
        path: the file to write.
        keep_shapes: for a model whose shapes are not from ONNX's inference.
    """
    import onnx

    if not keep_shapes:
        for value in model.graph.value_info:
            value.type.tensor_type.ClearField("shape")

    weight_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    part = path.with_name(f"{path.name}.part")
    try:
        # The data file has its final name from the start, because the model holds that name.
        onnx.save_model(
            model,
            str(part),
            save_as_external_data=weight_bytes > EXTERNAL_ABOVE_BYTES,
            location=f"{path.name}.data",
        )
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def replace_weights(source: Path, target: Path, weights: Mapping[str, NDArray[Any]]) -> None:
    """Write a model with other values for some of its weights.

    Args:
        source: the ONNX file to read.
        target: the ONNX file to write.
        weights: name -> values in the weight's shape; they are converted to the weight's type.
    """
    from onnx import helper, numpy_helper

    model = load_model(source)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            values = weights[tensor.name].astype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    save_model(model, target)
