"""Strides follow from sizes, and views by strides from a tensor's own elements."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch

from tests.support.models import Function, error_of, exported
from torch2engine.core.errors import ExportError
from torch2engine.core.spec import Axis
from torch2engine.exporter.decompositions.memory_layout import order_in_memory

X = torch.randn(3, 5, 4)
AXES = {"x": {0: Axis("batch", 2, 3, 4), 1: Axis("n", 4, 5, 9)}}


@pytest.mark.parametrize(
    ("tensor", "order"),
    [
        (X, [0, 1, 2]),
        (X.permute(2, 0, 1), [1, 2, 0]),
        (X[1:], [0, 1, 2]),
        (X[:, :3], None),
        (X[:, ::2], None),
        (X[:1].expand(2, 5, 4), None),
        (X[:, :, :1].contiguous(), [0, 1, 2]),
    ],
)
def test_order_in_memory_is_that_of_the_strides(tensor: torch.Tensor, order: list[int] | None) -> None:
    """A tensor that leaves out memory, or repeats it, has none."""
    assert order_in_memory(tensor) == order


def test_strides_and_views_follow_dynamic_sizes() -> None:
    """Numbers from strides, overlapping windows by them, and views of a part with and without an offset."""
    model = Function(
        lambda x, w: (
            x * x.stride(0) + x.stride()[1] * x.transpose(0, 1).stride(1) - x[:, ::2].stride(0),
            x.as_strided((x.shape[0], x.shape[1] - 1, 2, 4), (x.stride(0), x.stride(1), x.stride(1), 1)) * 1.0,
            x[1:].as_strided((2, 3), (4, 1)) * 1.0,
            x[1:].as_strided((2, 3), (4, 1), x.stride(0) + 1) * 1.0,
        )
    )
    artifact, cases = exported(model, X, AXES)
    assert error_of(artifact, cases) == 0.0


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "between": lambda x: x.transpose(1, 2)[:, :, :3].as_strided((2, 3), (4, 1), 1),
    "repeated": lambda x: x[:1].expand(2, -1, -1).as_strided((2, 3), (4, 1)),
    "before": lambda x: x[1:].as_strided((2, 3), (4, 1), 0),
    "behind": lambda x: torch.as_strided(x[:1, 0], (2, 4), (4, 1)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_view_of_other_memory_is_refused_at_its_line(name: str) -> None:
    """ONNX has the tensor's own elements alone: such a view exported as a wrong graph before."""
    view = VIEWS[name]
    with pytest.raises(ExportError) as error:
        exported(Function(lambda x, w: view(x) * 1.0), X, AXES)
    line = inspect.getsourcelines(view)[1]
    assert str(error.value) == (
        "torch.as_strided: got a view that may reach memory between, before or behind the elements of its tensor; "
        "expected a tensor without gaps in memory, and a view of its own elements; call .contiguous() before and use "
        f"the strides of its result, or index the whole tensor (at {__file__}:{line})"
    )


def test_cure_of_a_refused_view_helps() -> None:
    """A contiguous copy has no gaps."""
    model = Function(lambda x, w: x.transpose(1, 2)[:, :, :3].contiguous().as_strided((2, 3), (4, 1), 1) * 1.0)
    artifact, cases = exported(model, X, AXES)
    assert error_of(artifact, cases) == 0.0
