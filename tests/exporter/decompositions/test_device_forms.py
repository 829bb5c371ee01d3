"""Operators that have another form on a GPU: every form gives PyTorch's result, and one ONNX graph.

Enters: tensors on the CPU. Leaves: proof for the decompositions, which know no device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.models import error_of, exported, graph_of
from torch2engine.exporter.decompositions.device_forms import DEVICE_FORMS

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 8, generator=GENERATOR)
WEIGHT = torch.rand(8, generator=GENERATOR)
IMAGE = torch.randn(2, 3, 5, 6, generator=GENERATOR)
GRID = torch.rand(2, 4, 4, 2, generator=GENERATOR) * 2.4 - 1.2
ATEN: Any = torch.ops.aten


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["usual", "near eps"])
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_rms_norm_is_pytorchs(dtype: torch.dtype, size: float, eps: float | None) -> None:
    """Default eps, weights and several normalised dimensions; the half types are computed in float32."""
    x = (X * size).to(dtype)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}.get(dtype, 2 * torch.finfo(dtype).eps)
    for shape, weight in (((8,), None), ((8,), WEIGHT.to(dtype)), ((3, 8), None)):
        right = functional.rms_norm(x, shape, weight, eps)
        found = DEVICE_FORMS["rms_norm"](x, shape, weight, eps)
        assert found.dtype == right.dtype
        torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance)


def test_fused_rms_norm_gives_both_results() -> None:
    """The form of the GPU has a second result, which is PyTorch's too."""
    for found, right in zip(
        DEVICE_FORMS["_fused_rms_norm"](X, [8], WEIGHT, 1e-6), ATEN._fused_rms_norm(X, [8], WEIGHT, 1e-6), strict=True
    ):
        torch.testing.assert_close(found, right)


def test_cudnn_grid_sampler_is_the_aligned_bilinear_one() -> None:
    """cuDNN has one form: bilinear, zeros outside, corners aligned."""
    right = functional.grid_sample(IMAGE, GRID, align_corners=True)
    torch.testing.assert_close(DEVICE_FORMS["cudnn_grid_sampler"](IMAGE, GRID), right)


def test_grid_sampler_is_that_of_images_or_of_volumes() -> None:
    """Volumes have a kernel of their own. What is neither is left to PyTorch, which refuses it."""
    volume = torch.randn(1, 2, 3, 4, 5, generator=GENERATOR)
    grid = torch.rand(1, 2, 3, 4, 3, generator=GENERATOR) * 2.4 - 1.2
    for x, places in ((IMAGE, GRID), (volume, grid)):
        right = functional.grid_sample(x, places, align_corners=False)
        torch.testing.assert_close(DEVICE_FORMS["grid_sampler"](x, places, 0, 0, False), right)
    assert DEVICE_FORMS["grid_sampler"](X, GRID, 0, 0, False) is NotImplemented


class _Norm(nn.Module):
    """RMSNorm by either operator."""

    def __init__(self, is_fused: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())
        self.is_fused = is_fused

    def forward(self, x: Tensor) -> Tensor:
        if self.is_fused:
            return ATEN._fused_rms_norm(x, [8], self.weight, 1e-6)[0]
        return functional.rms_norm(x, (8,), self.weight, 1e-6)


def test_both_forms_of_rms_norm_give_one_onnx_graph() -> None:
    """A model that is traced on a GPU has the operators that it has on the CPU."""
    operators: list[list[str]] = []
    for is_fused in (False, True):
        artifact, cases = exported(_Norm(is_fused), X)
        assert error_of(artifact, cases) <= 1e-6
        operators.append([node.op_type for node in graph_of(artifact).node])
    assert operators[0] == operators[1]


class _Sampler(nn.Module):
    """Every mode of grid_sample."""

    def forward(self, x: Tensor, grid: Tensor) -> dict[str, Tensor]:
        return {
            f"{mode} {padding} {aligned}": functional.grid_sample(x, grid, mode, padding, aligned)
            for mode in ("bilinear", "nearest", "bicubic")
            for padding in ("zeros", "border", "reflection")
            for aligned in (False, True)
        }


def test_grid_sample_of_every_mode() -> None:
    """The ONNX graph answers as PyTorch does."""
    artifact, cases = exported(_Sampler(), (IMAGE, GRID))
    assert error_of(artifact, cases) <= 1e-5
