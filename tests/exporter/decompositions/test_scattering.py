"""Values scattered with a reduction: PyTorch's, for every reduction, dtype and form of index."""

from __future__ import annotations

import pytest
import torch

from tests.support.models import Function, exported, graph_of
from torch2engine.exporter.decompositions.scattering import MOST_COMPARISONS, SCATTERING

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 5, generator=GENERATOR) * 5
SOURCE = torch.randn(7, 5, generator=GENERATOR) * 5
INDEX = torch.randint(0, 3, (6, 5), generator=GENERATOR)  # no index is 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "prod", "mean", "amax", "amin"])
@pytest.mark.parametrize("include_self", [False, True])
def test_reductions_are_pytorchs(dtype: torch.dtype, reduction: str, include_self: bool) -> None:
    """A place without an index keeps its value; a source may be larger than its index."""
    x, source = X.to(dtype), SOURCE.to(dtype)
    scatter = SCATTERING["scatter_reduce.two"]
    expected = x.scatter_reduce(0, INDEX, source, reduction, include_self=include_self)
    torch.testing.assert_close(scatter(x, 0, INDEX, source, reduction, include_self=include_self), expected)
    expected = x.scatter_reduce(-1, INDEX[:4], source[:4], reduction, include_self=include_self)
    found = scatter(x, -1, INDEX[:4], source[:4], reduction, include_self=include_self)
    torch.testing.assert_close(found, expected)


def test_sums_are_pytorchs() -> None:
    """scatter_add, index_add with alpha, and index_put that accumulates, with negative indices."""
    torch.testing.assert_close(SCATTERING["scatter_add"](X, 0, INDEX, SOURCE), X.scatter_add(0, INDEX, SOURCE))
    columns = torch.tensor([4, 4, 0])
    part = SOURCE[:4, :3]
    found = SCATTERING["index_add"](X, 1, columns, part, alpha=2)
    torch.testing.assert_close(found, X.index_add(1, columns, part, alpha=2))
    rows = torch.tensor([1, 1, -1])
    values = torch.tensor([1.0, 2.0, 3.0])
    for indices in ([rows], [rows, torch.tensor([2, 2, 0])], [rows[:2], torch.tensor([[0], [1]])]):
        expected = X.index_put(indices, values[0], accumulate=True)
        torch.testing.assert_close(SCATTERING["index_put"](X, indices, values[0], True), expected)
    expected = X.index_put([rows, rows], values, accumulate=True)
    torch.testing.assert_close(SCATTERING["index_put"](X, [rows, rows], values, True), expected)


@pytest.mark.parametrize("rows", [2, 6])
@pytest.mark.parametrize("columns", [1, 3])
def test_smaller_index_leaves_the_rest_alone(rows: int, columns: int) -> None:
    """It reaches the leading part of the other dimensions; gather and scatter too."""
    index = INDEX[:rows, :columns]
    expected = X.scatter_add(0, index, SOURCE)
    torch.testing.assert_close(SCATTERING["scatter_add"](X, 0, index, SOURCE), expected)
    expected = X.scatter_reduce(0, index, SOURCE, "mean", include_self=False)
    found = SCATTERING["scatter_reduce.two"](X, 0, index, SOURCE, "mean", include_self=False)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(SCATTERING["gather"](X, 0, index), X.gather(0, index))
    rows_once = torch.stack([torch.randperm(3, generator=GENERATOR)[:2] for _ in range(columns)], 1)
    for form, value in (("scatter.src", SOURCE), ("scatter.value", 2.5)):
        torch.testing.assert_close(SCATTERING[form](X, 0, rows_once, value), X.scatter(0, rows_once, value))
    assert SCATTERING["gather"](X, 0, INDEX) is NotImplemented


@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta:UserWarning")
@pytest.mark.parametrize("reduction", ["prod", "mean", "amax", "amin"])
def test_whole_slices_are_reduced(reduction: str) -> None:
    """index_reduce, of a number too."""
    rows = torch.tensor([3, 0, 3])
    reduce = SCATTERING["index_reduce"]
    expected = X.index_reduce(0, rows, SOURCE[:3], reduction, include_self=False)
    torch.testing.assert_close(reduce(X, 0, rows, SOURCE[:3], reduction, include_self=False), expected)
    number, index = torch.tensor(2.0), torch.tensor([0])
    values = torch.tensor(3.0)
    torch.testing.assert_close(
        reduce(number, 0, index, values, reduction), number.index_reduce(0, index, values, reduction)
    )


def test_places_follow_strides() -> None:
    """as_strided_scatter with an offset."""
    arguments = (X, SOURCE[:2, :2], (2, 2), (5, 2), 3)
    torch.testing.assert_close(SCATTERING["as_strided_scatter"](*arguments), torch.as_strided_scatter(*arguments))


def test_infinity_stays_in_its_place() -> None:
    """It is not multiplied by zero anywhere else."""
    source = SOURCE.clone()
    source[0, 0] = torch.inf
    torch.testing.assert_close(SCATTERING["scatter_add"](X, 0, INDEX, source), X.scatter_add(0, INDEX, source))


@pytest.mark.parametrize("accumulate", [False, True])
def test_flattened_places_are_read_and_written(accumulate: bool) -> None:
    """take and put, from the end too."""
    index = torch.tensor([0, -1, 5])
    values = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(SCATTERING["put"](X, index, values, accumulate), X.put(index, values, accumulate))
    torch.testing.assert_close(SCATTERING["take"](X, index), X.take(index))
    torch.testing.assert_close(SCATTERING["take"](X, torch.tensor(3)), X.take(torch.tensor(3)))


def test_masked_places_take_the_next_element() -> None:
    """A mask of fewer dimensions counts for every row."""
    for mask in (X > 0, X[0] > 0):
        torch.testing.assert_close(SCATTERING["masked_scatter"](X, mask, SOURCE), X.masked_scatter(mask, SOURCE))


def test_large_scatter_is_left_to_onnx() -> None:
    """Comparing all places with all indices would take too much memory."""
    rows = 1 + int(MOST_COMPARISONS**0.5)
    index = torch.zeros(rows, dtype=torch.int64)
    model = Function(lambda x, w: torch.zeros(rows).scatter_add(0, index, x))
    artifact, _ = exported(model, torch.ones(rows))
    assert "ScatterElements" in {node.op_type for node in graph_of(artifact).node}
