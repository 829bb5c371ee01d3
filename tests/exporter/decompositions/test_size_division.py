"""Floor division of negative sizes: right at every size of the axis.

Enters: models that round a size up. Leaves: proof by ONNX Runtime and the RTX builder.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.support.build_here import build_here
from tests.support.models import Function, error_of, exported
from torch2engine.core.spec import Axis
from torch2engine.onnx_graph.ort_session import OrtSession


def _padded(x: Tensor, w: Tensor) -> Tensor:
    """Padded to a multiple of four."""
    return functional.pad(x, (0, -(-x.shape[1] // 4) * 4 - x.shape[1]))


def _of_mixed_sign(x: Tensor, w: Tensor) -> Tensor:
    """A dividend that is negative for short inputs only."""
    return functional.pad(x, (0, (x.shape[1] - 7) // 3 + 3))


def _by_another_size(x: Tensor, w: Tensor) -> Tensor:
    """A divisor that is a size too."""
    return functional.pad(x, (0, -(-x.shape[1] // x.shape[0])))


def _places(x: Tensor, w: Tensor) -> dict[str, Tensor]:
    """Integers divided by a size: rows and columns of a flat place."""
    place, width = x.flatten(1).argmax(1), x.shape[-1]
    negative = -place - 1
    return {
        "both": torch.stack((place // width, place % width)),
        "div": torch.div(negative, width, rounding_mode="floor"),
        "cut": torch.div(negative, width, rounding_mode="trunc"),
        "negative": negative % width,
    }


def test_integers_divided_by_a_size_stay_integers() -> None:
    """Their type and every value are PyTorch's at each size."""
    model = Function(_places)
    artifact, cases = exported(model, torch.randn(2, 3, 6), {"x": {2: Axis("n", 4, 6, 12)}})
    assert {spec.dtype for spec in artifact.signature.outputs} == {"int64"}
    assert error_of(artifact, cases) == 0
    build_here(artifact)


@pytest.mark.parametrize("function", [_padded, _of_mixed_sign, _by_another_size])
def test_negative_sizes_are_rounded_down(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Every size gives PyTorch's answer, not only the one that was traced."""
    model = Function(function)
    artifact, cases = exported(model, torch.randn(2, 6), {"x": {0: Axis("b", 2, 2, 4), 1: Axis("n", 4, 6, 12)}})
    assert error_of(artifact, cases) == 0
    session = OrtSession(artifact.onnx_path)
    for length in range(4, 13):
        x = torch.randn(3, length)
        torch.testing.assert_close(torch.from_numpy(next(iter(session({"x": x.numpy()}).values()))), model(x))
    build_here(artifact)
