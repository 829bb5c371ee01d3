"""Sorts of more elements than TensorRT's TopK gives: PyTorch's values, and places that give these."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.models import answer, exported, graph_of
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.spec import Axis
from torch2engine.exporter.decompositions.sorting import MOST_OF_TOPK, SORTING
from torch2engine.onnx_graph.integer_choices import ChoiceReader

GENERATOR = torch.Generator().manual_seed(0)
LONG = 2 * MOST_OF_TOPK + 321
NUMBERS = torch.randint(-500, 500, (2, LONG), generator=GENERATOR)


def special() -> torch.Tensor:
    """Many equal elements, infinities and numbers that are none."""
    x = NUMBERS.float()
    x[:, 5:300] = torch.inf
    x[:, 700:1000] = -torch.inf
    x[:, 4000:4010] = torch.nan
    return x


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("x", [NUMBERS, special()], ids=["integers", "special numbers"])
def test_long_sort_is_pytorchs(x: torch.Tensor, descending: bool) -> None:
    """Each place occurs once, but for fillings among what stands at the end anyway."""
    values, places = SORTING["sort"](x, -1, descending)
    expected = torch.sort(x, -1, descending).values
    finite = expected.isfinite()
    torch.testing.assert_close(values[finite], expected[finite], rtol=0, atol=0)
    torch.testing.assert_close(x.gather(-1, places), values, rtol=0, atol=0, equal_nan=True)
    columns = SORTING["sort"](x.T.contiguous(), 0, descending)
    torch.testing.assert_close(columns[0].T, values, rtol=0, atol=0, equal_nan=True)
    if not x.is_floating_point():
        assert torch.equal(places.sort(-1).values, torch.arange(LONG).expand(2, -1))


def test_many_of_the_largest_are_pytorchs() -> None:
    """Of more than TopK gives; fewer are left to it."""
    count = MOST_OF_TOPK + 1
    values, places = SORTING["topk"](NUMBERS, count, -1, True, True)
    torch.testing.assert_close(values, torch.topk(NUMBERS, count).values)
    torch.testing.assert_close(NUMBERS.gather(-1, places), values)
    torch.testing.assert_close(SORTING["topk"](NUMBERS, count)[0], values)  # the last dimension, the largest
    assert SORTING["topk"](NUMBERS, MOST_OF_TOPK, -1, True, True) is NotImplemented
    assert SORTING["sort"](NUMBERS[:, :MOST_OF_TOPK]) is NotImplemented


class _Sorted(nn.Module):
    """The order of the elements."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argsort()


def test_long_sort_of_a_dynamic_axis_has_small_parts() -> None:
    """Every TopK keeps to TensorRT's limit, and near ties are read from the scores."""
    artifact, _ = exported(_Sorted(), torch.randn(5000), {"x": {0: Axis("n", 2, 5000, 5001)}})
    for size in (2, 3, 5001):
        x = torch.randn(size, generator=GENERATOR)
        found = answer(artifact, ParityCase("", (x,), {}))["output"]
        assert np.array_equal(x.numpy()[found], np.sort(x.numpy()))
    lengths = [node.op_type for node in graph_of(artifact).node]
    assert lengths.count("TopK") == 1
    choice = ChoiceReader(artifact.onnx_path).choices["output"]
    assert (choice.kind, choice.operands) == ("extreme", ("x",))
