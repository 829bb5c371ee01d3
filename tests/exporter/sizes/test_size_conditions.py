"""torch's decisions about sizes, evaluated over the axes' ranges."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Max, Min, PythonMod  # the classes that torch's guards are made of

from torch2engine.core.spec import Axis
from torch2engine.exporter.sizes.size_conditions import SizeCondition, axis_symbol, holds_at
from torch2engine.exporter.sizes.size_grid import make_size_grid

N = axis_symbol("n")
B = axis_symbol("b")


@pytest.mark.parametrize(
    ("expression", "fails_at"),
    [
        (sympy.Eq(Min(64 * N, 128 * N), 64 * N), []),
        (FloorDiv(N, 2) < N, []),
        (sympy.Eq(FloorDiv(3 * N - 1, N), 2), []),
        (2 * FloorDiv(N - 1, 2) < N, []),
        (sympy.Ne(N, 3), [3]),
        (sympy.Eq(PythonMod(N, 3), 0), [1, 2, 4, 5]),
        (Max(N, sympy.Integer(4)) > 4, [1, 2, 3, 4]),
        (sympy.And(N > 1, sympy.Not(sympy.Eq(N, 4))), [1, 4]),
        (sympy.Or(N < 3, N / 2 >= 3), [3, 4, 5]),
    ],
)
def test_condition_holds_where_its_arithmetic_says(expression: Any, fails_at: list[int]) -> None:
    """Each operation of torch's conditions, over all sizes 1..6."""
    grid = make_size_grid([Axis("n", 1, 4, 6)])
    truth = holds_at(SizeCondition(expression, ""), grid)
    assert grid.sizes["n"][~truth].tolist() == fails_at


def test_condition_on_two_axes_is_judged_jointly() -> None:
    """b * n == 4 at three points."""
    grid = make_size_grid([Axis("n", 1, 4, 4), Axis("b", 1, 4, 4)])
    truth = holds_at(SizeCondition(sympy.Eq(N * B, 4), ""), grid)
    assert sorted(zip(grid.sizes["b"][truth].tolist(), grid.sizes["n"][truth].tolist(), strict=True)) == [
        (1, 4),
        (2, 2),
        (4, 1),
    ]


@pytest.mark.parametrize("expression", [sympy.Function("unheard_of")(N) > 0, sympy.Symbol("u0") > 0])
def test_condition_of_unknown_parts_holds_nowhere(expression: Any) -> None:
    """What can't be evaluated is never taken for true."""
    assert not holds_at(SizeCondition(expression, ""), make_size_grid([Axis("n", 1, 4, 6)])).any()


def test_condition_reads_like_python() -> None:
    """Equations have Python's signs in messages."""
    assert str(SizeCondition(sympy.Ne(N, 2), "")) == "n != 2"
    assert str(SizeCondition(sympy.Eq(2 * N, B), "")) == "2*n == b"
    assert SizeCondition(N * B > 2, "").axes == ("b", "n")
