"""`torch2engine.exporter.size_arithmetic`: torch's calculations of sizes have the same results, and are made once."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from torch2engine.exporter.size_arithmetic import size_arithmetic_remembered

SYM_NODE: Any = importlib.import_module("torch.fx.experimental.sym_node").SymNode
SHAPES: Any = importlib.import_module("torch.fx.experimental.symbolic_shapes")
FAKES: Any = importlib.import_module("torch._subclasses.fake_tensor")


class Layers(nn.Module):
    """Layers of equal sizes, views of several axes, and sizes that forward computes with and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = x.shape[0], x.shape[1]
        for layer in self.layers:
            x = layer(x).reshape(rows * columns, 2, 4).transpose(1, 2).reshape(rows, columns, 8)
        if rows * 3 > rows + 1 and columns >= 2:
            x = x + (rows - 1) * columns
        return torch.cat([x, x[:, : columns // 2]], dim=1)


def sizes(count: int = 2) -> list[Any]:
    """Symbolic sizes of one shape environment, all different symbols with the example 5."""
    mode = FAKES.FakeTensorMode(shape_env=SHAPES.ShapeEnv(duck_shape=False))
    return list(mode.from_tensor(torch.empty((5,) * count)).shape)


def written_nowhere(*call: Any) -> tuple[None, bool]:
    """In place of the record that torch's validation makes of a calculation, with a solver that is not installed."""
    del call
    return None, True


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """A list that grows with each calculation that torch makes by a method of its SymNode."""
    made: list[str] = []
    compute: Callable[[Any, Any], Any] = inspect.getattr_static(SYM_NODE, name)

    def count(self: Any, other: Any) -> Any:
        made.append(name)
        return compute(self, other)

    monkeypatch.setattr(SYM_NODE, name, count)
    return made


def program(is_remembered: bool) -> torch.export.ExportedProgram:
    """Layers with two dynamic axes, decomposed."""
    dims = {0: torch.export.Dim.AUTO(min=2, max=9), 1: torch.export.Dim.AUTO(min=2, max=9)}
    with size_arithmetic_remembered() if is_remembered else nullcontext():
        return torch.export.export(Layers(), (torch.randn(3, 4, 8),), dynamic_shapes=(dims,)).run_decompositions()


def test_program_is_the_same() -> None:
    """Nodes, sizes and ranges do not depend on where a result comes from."""
    own, ours = program(False), program(True)
    assert str(ours.graph) == str(own.graph)
    assert [str(node.meta.get("val")) for node in ours.graph.nodes] == [
        str(node.meta.get("val")) for node in own.graph.nodes
    ]
    ranges: list[Any] = [own.range_constraints, ours.range_constraints]
    assert str(ranges[0]) == str(ranges[1])


def test_equal_calculation_is_made_once_and_gives_a_node_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracers tell nodes apart by identity."""
    made = counted(monkeypatch, "_mul")
    with size_arithmetic_remembered():
        rows, columns = sizes()
        made.clear()
        first, second = rows * columns, rows * columns
    assert made == ["_mul"]
    assert first.node is not second.node
    assert (str(first), first.node.hint) == (str(second), second.node.hint) == (str(rows * columns), 25)


def test_other_operands_and_another_environment_are_calculated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result belongs to both operands, and symbols of one name may be different sizes elsewhere."""
    made = counted(monkeypatch, "_add")
    with size_arithmetic_remembered():
        rows, columns = sizes()
        (others,) = sizes(1)
        made.clear()
        results = [rows + 1, rows + 2, columns + 1, others + 1]
    assert len(made) == 4
    assert [result.node.shape_env for result in results[2:]] == [columns.node.shape_env, others.node.shape_env]


def test_sizes_that_turn_out_equal_are_calculated_anew() -> None:
    """A guard replaces one symbol by another; results from before it must not come back."""
    with size_arithmetic_remembered():
        rows, columns = sizes()
        assert str(rows * 2) != str(columns * 2)
        assert bool(rows == columns)
        assert str(rows * 2) == str(columns * 2)


def test_size_without_an_example_is_never_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known about a size that depends on values may grow between two calculations."""
    made = counted(monkeypatch, "_add")
    with size_arithmetic_remembered():
        unbacked = SHAPES.ShapeEnv().create_unbacked_symint()
        made.clear()
        assert str(unbacked + 1) == str(unbacked + 1)
    assert len(made) == 2


def test_environment_that_records_its_calculations_makes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's validation of translations follows every calculation."""
    made = counted(monkeypatch, "_add")
    with size_arithmetic_remembered():
        rows, _ = sizes()
        environment = rows.node.shape_env
        monkeypatch.setattr(environment, "_translation_validation_enabled", True)
        monkeypatch.setattr(environment, "_create_fx_call_function", written_nowhere)
        made.clear()
        assert (rows + 1).node.hint == (rows + 1).node.hint == 6
    assert len(made) == 2


def test_torchs_own_methods_are_back_after_an_error() -> None:
    """Exports that are not ours calculate as torch does."""
    before = inspect.getattr_static(SYM_NODE, "_mul")

    def fail_inside() -> None:
        with size_arithmetic_remembered():
            assert inspect.getattr_static(SYM_NODE, "_mul") is not before
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert inspect.getattr_static(SYM_NODE, "_mul") is before


def test_torch_with_other_methods_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that calculates otherwise calculates as it always does."""
    monkeypatch.delattr(SYM_NODE, "_le")
    before = inspect.getattr_static(SYM_NODE, "_mul")
    with size_arithmetic_remembered():
        assert inspect.getattr_static(SYM_NODE, "_mul") is before
