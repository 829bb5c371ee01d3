"""PyTorch's dtypes and layouts ↔ the names in signatures and messages, and the tensors that no engine takes.

Enters: a torch.dtype, a torch.layout, or a name such as "float16". Leaves: the other one; for an input of a call, an
error that says what to pass instead. Separate because every layer that knows PyTorch needs these names, and this layer
is the lowest.
"""

from __future__ import annotations

from functools import cache

import torch

from torch2engine.core.errors import DtypeError, InputError
from torch2engine.core.precisions import CAST_PRECISIONS, PRECISION_TYPES

__all__ = ["CAST_DTYPES", "COMPUTED_DTYPES", "check_tensor", "dtype_name", "layout_name", "real_form", "torch_dtype"]

COMPUTED_DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""The dtypes that PyTorch itself computes in; it only stores and casts float8 and the wide unsigned integers."""
CAST_DTYPES = frozenset(getattr(torch, PRECISION_TYPES[name].dtype) for name in CAST_PRECISIONS)
"""The dtypes that whole graphs are cast to: float16 and bfloat16."""


@cache
def torch_dtype(name: str) -> torch.dtype:
    """Return the torch.dtype of a signature's dtype name.

    Raises:
        AttributeError, ValueError: PyTorch has no dtype of this name.

    >>> torch_dtype("bfloat16")
    torch.bfloat16
    """
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Return a signature's name of a torch.dtype.

    >>> dtype_name(torch.float16)
    'float16'
    """
    return _without_prefix(dtype)


def layout_name(layout: torch.layout) -> str:
    """Return the name of a layout as messages spell it.

    >>> layout_name(torch.sparse_coo)
    'sparse_coo'
    """
    return _without_prefix(layout)


def _without_prefix(value: object) -> str:
    return str(value).removeprefix("torch.")


def real_form(tensor: torch.Tensor) -> torch.Tensor:
    """Give the form of a tensor that an ONNX graph holds: of a complex one, its real and imaginary parts at the end.

    It shares the tensor's memory, unless this is a conjugated view.
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that no engine takes.

    Raises:
        InputError: it is no dense tensor of real numbers, or on another kind of device.
        DtypeError: PyTorch has almost no operator for its dtype.
    """
    if tensor.is_nested:
        raise _not_dense(name, "a nested tensor", "pass its to_padded_tensor(0) and a mask")
    if tensor.layout is not torch.strided:
        raise _not_dense(name, f"layout {layout_name(tensor.layout)}", "pass its to_dense()")
    if tensor.is_quantized:
        raise _not_dense(name, "a quantized tensor", "pass its dequantize()")
    if tensor.is_complex():
        raise _not_dense(name, f"dtype {dtype_name(tensor.dtype)}", "pass torch.view_as_real(...) of it")
    if tensor.dtype not in COMPUTED_DTYPES:
        raise DtypeError(
            f"input '{name}'",
            name=name,
            got=f"dtype {dtype_name(tensor.dtype)}",
            allowed="one of " + ", ".join(map(dtype_name, COMPUTED_DTYPES)),
            fix=f"pass it in {'float32' if tensor.is_floating_point() else 'int64'}",
        )
    if tensor.device.type not in ("cpu", "cuda"):
        raise _not_dense(name, f"device {tensor.device}", "move model and sample there")


def _not_dense(name: str, got: str, fix: str) -> InputError:
    allowed = "a dense tensor of real numbers on the CPU or a CUDA device"
    return InputError(f"input '{name}'", name=name, got=got, allowed=allowed, fix=fix)
