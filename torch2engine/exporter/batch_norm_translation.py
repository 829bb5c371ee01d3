"""BatchNorm outside of training, with the results that PyTorch gives.

Enters: the arguments of PyTorch's operator as ONNX values. Leaves: its ONNX nodes. Separate because torch.onnx
gives means and scales where PyTorch returns empty tensors: then the graph is no valid ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset22 as _typed_opset

__all__ = ["batch_norm_translations"]

_OPSET: Any = _typed_opset  # its annotations are those of eager values


def _batch_norm_node(x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float) -> Any:
    """`_native_batch_norm_legit_no_training`."""
    weight = _filled(1.0, mean) if weight is None else weight
    bias = _filled(0.0, mean) if bias is None else bias
    result = _OPSET.BatchNormalization(x, weight, bias, mean, var, epsilon=eps, momentum=1.0 - momentum)
    return result, _nothing(mean), _nothing(mean)


def _filled(value: float, like: Any) -> Any:
    """A number for each channel."""
    return _OPSET.Expand(_OPSET.CastLike(_OPSET.Constant(value_floats=[value]), like), _OPSET.Shape(like))


def _nothing(like: Any) -> Any:
    return _OPSET.Slice(like, *(_OPSET.Constant(value_ints=[0]) for _ in range(3)))


def batch_norm_translations() -> Mapping[Any, Callable[..., Any]]:
    """Return {operator: function that makes its ONNX nodes}, as torch.onnx takes it."""
    return {torch.ops.aten._native_batch_norm_legit_no_training.default: _batch_norm_node}
