"""Operators that have another form on a GPU: every form gives PyTorch's result, and one ONNX graph.

Enters: tensors on the CPU. Leaves: proof for the decompositions, which know no device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.models import error_of, exported, graph_of
from torch2engine.exporter.decompositions.device_forms import DEVICE_FORMS
from torch2engine.exporter.traceable_functions import TraceableFunctions

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


CELLS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: nn.GRUCell(8, 5),
    "gru without bias": lambda: nn.GRUCell(8, 5, bias=False),
    "lstm": lambda: nn.LSTMCell(8, 5),
    "lstm without bias": lambda: nn.LSTMCell(8, 5, bias=False),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cell_computes_what_pytorchs_does(cell: str, dtype: torch.dtype) -> None:
    """A batch, a single row, and states that are given."""
    torch.manual_seed(0)
    module = CELLS[cell]().to(dtype)
    state = torch.randn(3, 5, dtype=dtype)
    states = (state, -state) if isinstance(module, nn.LSTMCell) else state
    x = X[0].to(dtype)
    with torch.no_grad():
        for args in ((x, states), (x,), (x[0],)):
            with TraceableFunctions():
                found = module(*args)
            torch.testing.assert_close(found, module(*args))


class _Operators(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an operator, and run it."""
        if func.namespace == "aten":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("cell", "gates"), [("gru", 3), ("lstm", 4)])
def test_cell_on_a_gpu_has_the_operators_of_the_cpu(cell: str, gates: int) -> None:
    """torch chooses them by the device of tensors without contents, also where no GPU is."""
    operators: list[list[str]] = []
    for device in ("cpu", "cuda"):
        with FakeTensorMode(), torch.device(device), torch.no_grad():
            state = torch.empty(3, 5)
            weights = (torch.empty(gates * 5, 8), torch.empty(gates * 5, 5))
            with TraceableFunctions(), _Operators() as noted:
                getattr(torch, f"{cell}_cell")(torch.empty(3, 8), [state] * 2 if cell == "lstm" else state, *weights)
        operators.append(noted.names)
    assert operators[0] == operators[1]
    assert len(operators[0]) > 10
