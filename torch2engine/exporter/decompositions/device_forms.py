"""Operators that PyTorch replaces by another one on a GPU, in the form that is the same on every device.

Enters: the arguments of one operator. Leaves: its result. Separate because a model must give the same ONNX graph
whether it is traced on a GPU or on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from torch2engine.capture.torch_types import CAST_DTYPES

__all__ = ["DEVICE_FORMS", "DEVICE_FUNCTIONS", "rms_norm"]

_BILINEAR = 0
_ZEROS = 0


def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Divide by the root of the mean square over the last dimensions; in float32 for the half types."""
    return _fused_rms_norm(x, normalized_shape, weight, eps)[0]


def _fused_rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    """`_fused_rms_norm`: the result, and one over the root."""
    wide = x.to(torch.float32) if x.dtype in CAST_DTYPES else x
    dims = list(range(-len(normalized_shape), 0))
    smallest = torch.finfo(wide.dtype).eps if eps is None else eps
    scale = torch.rsqrt(wide.pow(2).mean(dims, keepdim=True) + smallest)
    result = wide * scale
    if weight is not None:
        result = result * weight
    return result.to(x.dtype), scale


def _grid_sampler(x: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Tensor:
    """`grid_sampler` of images and volumes: on a GPU it would become `cudnn_grid_sampler`."""
    if x.dim() == 5:
        return torch.ops.aten.grid_sampler_3d(x, grid, interpolation_mode, padding_mode, align_corners)
    if x.dim() != 4:
        return NotImplemented
    return torch.ops.aten.grid_sampler_2d(x, grid, interpolation_mode, padding_mode, align_corners)


def _cudnn_grid_sampler(x: Tensor, grid: Tensor) -> Tensor:
    """`cudnn_grid_sampler`: the one form of `grid_sampler` that cuDNN has."""
    return _grid_sampler(x, grid, _BILINEAR, _ZEROS, True)


def _gru_cell(
    x: Tensor,
    hidden: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """`gru_cell`: on a GPU it would become `_thnn_fused_gru_cell`, which torch.export can't trace."""
    reset_of_x, update_of_x, new_of_x = functional.linear(x, w_ih, b_ih).chunk(3, -1)
    reset_of_hidden, update_of_hidden, new_of_hidden = functional.linear(hidden, w_hh, b_hh).chunk(3, -1)
    reset = torch.sigmoid(reset_of_x + reset_of_hidden)
    update = torch.sigmoid(update_of_x + update_of_hidden)
    new = torch.tanh(new_of_x + reset * new_of_hidden)
    return new + update * (hidden - new)


def _lstm_cell(
    x: Tensor,
    states: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`lstm_cell`: on a GPU it would become `_thnn_fused_lstm_cell`."""
    hidden, cell = states
    gates = functional.linear(x, w_ih, b_ih) + functional.linear(hidden, w_hh, b_hh)
    write, forget, new, read = gates.chunk(4, -1)
    next_cell = torch.sigmoid(forget) * cell + torch.sigmoid(write) * torch.tanh(new)
    return torch.sigmoid(read) * torch.tanh(next_cell), next_cell


# Operators of these may stand in a program.
DEVICE_FORMS: Mapping[str, Callable[..., Any]] = {
    "rms_norm": rms_norm,
    "_fused_rms_norm": _fused_rms_norm,
    "grid_sampler": _grid_sampler,
    "cudnn_grid_sampler": _cudnn_grid_sampler,
}
# Functions of PyTorch that must be replaced while a model is traced: afterwards the operator of the GPU stands there.
DEVICE_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "gru_cell": _gru_cell,
    "lstm_cell": _lstm_cell,
}
