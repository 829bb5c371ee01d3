"""Functions that take sizes as numbers are right for sizes that follow a dynamic axis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.support.models import Function, answer, exported
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis


class Applied(nn.Module):
    """x -> what `function` makes of it."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linspace": lambda x: x + torch.linspace(-1, 1, x.shape[-1]),
    "linspace of another type": lambda x: x + torch.linspace(0, 5, steps=x.shape[-1], dtype=torch.float32),
    "one_hot": lambda x: functional.one_hot(x.argmax(-1), x.shape[-1]).float(),
    "avg_pool2d": lambda x: functional.avg_pool2d(x, x.shape[2:]),
    "max_pool2d": lambda x: functional.max_pool2d(x, kernel_size=x.shape[2:]),
    "avg_pool1d": lambda x: functional.avg_pool1d(x[0], x.shape[-1]),
    "affine_grid": lambda x: functional.affine_grid(x[:, :, :3, 0], list(x.shape), align_corners=False),
    "affine_grid of corners": lambda x: functional.affine_grid(x[:, :, :3, 0], x.shape, align_corners=True),
    "affine_grid of a volume": lambda x: functional.affine_grid(
        x.flatten(1)[:, :1] * torch.arange(12.0).view(1, 3, 4), [1, 1, 2, x.shape[3], 3], align_corners=False
    ),
    "take_along_dim": lambda x: torch.take_along_dim(x, torch.tensor([2, 0, 1]).view(1, 1, 3, 1), 2),
    "take_along_dim of one row": lambda x: torch.take_along_dim(x[:, :1], x.argmax(2, keepdim=True), 2),
    "cov": lambda x: torch.cov(x[0, 0]),
    "cov of one row": lambda x: torch.cov(x[0, 0, :, 0], correction=0),
    "corrcoef": lambda x: torch.corrcoef(x[0, :, :, 0]),
    "conv2d": lambda x: functional.conv2d(
        x.permute(0, 3, 1, 2), x[0].permute(2, 0, 1)[:, None, :, :3], None, (1, 2), (1, 2), (2, 1), x.shape[3]
    ),
    "conv1d": lambda x: functional.conv1d(
        x.permute(0, 3, 1, 2).flatten(1, 2), x[0].permute(2, 0, 1).flatten(0, 1)[:, None, :3], groups=x.shape[3] * 2
    ),
    "conv_transpose2d": lambda x: functional.conv_transpose2d(
        x.permute(0, 3, 1, 2), x[0].permute(2, 1, 0)[:, :, None], stride=2, output_padding=(1, 0), groups=x.shape[3]
    ),
    "max_pool1d": lambda x: functional.max_pool1d(x[0], 3, 2, padding=1, ceil_mode=True),
    "max_pool1d of the whole row": lambda x: functional.max_pool1d(x[0], x.shape[-1]),
    "max_pool1d's places": lambda x: functional.max_pool1d(x[0], 1, return_indices=True)[1].float(),
    "kron": lambda x: torch.kron(x[0, 0], x[0, 1, :2]),
}
LEAST = {"cov": 2, "affine_grid of corners": 2}  # PyTorch warns below


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_is_right_at_every_size(function: str) -> None:
    """The smallest sizes, odd and even ones, and the largest."""
    model = Applied(FUNCTIONS[function])
    sample = torch.randn(1, 2, 4, 6)
    least = LEAST.get(function, 1)
    artifact, _ = exported(model, sample, {"x": {3: Axis("n", least, 6, 12)}})
    for size in (least, 2, 3, 7, 12):
        x = torch.randn(1, 2, 4, size)
        case = ParityCase("", (x,), {"output": model(x)})
        found = torch.from_numpy(answer(artifact, case)["output"])
        assert torch.allclose(found, case.outputs["output"], rtol=1e-5, atol=1e-6)


def windows_and_triangles(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors that a size alone decides."""
    n = x.shape[-1]
    lower = torch.tril_indices(n, n, offset=-1)
    upper = torch.triu_indices(n, n, 1)
    return {
        "hann": x * torch.hann_window(n),
        "symmetric hann": x * torch.hann_window(n, periodic=False),
        "hamming": x * torch.hamming_window(n, True, 0.6, 0.4),
        "blackman": x * torch.blackman_window(n, dtype=torch.float32),
        "periodic blackman": x * torch.blackman_window(n),
        "bartlett": x * torch.bartlett_window(n, periodic=False),
        "lower": x[0, lower[0]] - x[0, lower[1]],
        "upper": x[0, upper[0]] * 2 + x[0, upper[1]],
        "whole": torch.stack((*torch.tril_indices(n, n), *torch.triu_indices(n, n))) + x[0, :1].long(),
    }


def test_windows_and_triangles_of_a_size_are_right_at_every_size() -> None:
    """Each window and each pair of places, for sizes from 1 on."""
    model = Function(lambda x, w: windows_and_triangles(x))
    artifact, _ = exported(model, torch.randn(2, 6), {"x": {1: Axis("n", 1, 6, 70)}})
    for size in (1, 2, 3, 7, 12, 70):
        x = torch.randn(2, size)
        expected = model(x)
        found = answer(artifact, ParityCase("", (x,), expected))
        for name, right in expected.items():
            torch.testing.assert_close(
                torch.from_numpy(found[name]), right, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_linspace_of_whole_numbers_is_refused() -> None:
    """PyTorch cuts each number off, which the form for floating numbers would not."""
    model = Applied(lambda x: x + torch.linspace(0, 10, x.shape[-1], dtype=torch.int64))
    with pytest.raises(DynamicAxisError, match="makes a Python number of its size"):
        exported(model, torch.randn(2, 6), {"x": {1: Axis("n", 2, 6, 12)}})


def test_static_sizes_are_left_to_pytorch() -> None:
    """What torch.onnx translates well stays as it is."""
    model = Applied(lambda x: functional.avg_pool2d(x, (2, 2)) + torch.linspace(0, 1, 3))
    artifact, examples = exported(model, torch.randn(1, 2, 4, 6), {"x": {0: Axis("b", 1, 2, 3)}})
    assert (answer(artifact, examples[0])["output"] == examples[0].outputs["output"].numpy()).all()
