"""The table of decompositions: it is installed for one export, and works without torch.onnx's private table.

Enters: a program with one of the operators. Leaves: proof that it is decomposed, and that nothing stays behind.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from tests.support.models import Function
from torch2engine.exporter.decompositions.table import (
    NAMED,
    PYTORCHS,
    decompositions,
    exact_decompositions,
    find_operator,
)

EXPORTER: Any = importlib.import_module("torch.onnx._internal.exporter._decomp")
ATEN = torch.ops.aten


def program() -> torch.export.ExportedProgram:
    """A program with one logaddexp."""
    return torch.export.export(Function(torch.logaddexp), (torch.randn(3),), strict=False)


def test_table_is_removed_after_an_export() -> None:
    """torch.onnx's own table is back, also after an error."""
    before = EXPORTER.create_onnx_friendly_decomposition_table
    table: dict[Any, Any] = {}

    def fail_inside() -> None:
        with exact_decompositions(program()):
            table.update(EXPORTER.create_onnx_friendly_decomposition_table({ATEN.logaddexp.default}))
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert table[ATEN.logaddexp.default] is decompositions()[ATEN.logaddexp.default]
    assert EXPORTER.create_onnx_friendly_decomposition_table is before


def test_program_is_decomposed_without_the_private_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch whose exporter has no such function gets a program that is decomposed already."""
    monkeypatch.delattr(EXPORTER, "create_onnx_friendly_decomposition_table")
    with exact_decompositions(program()) as decomposed:
        targets = {node.target for node in decomposed.graph.nodes}
    assert ATEN.logaddexp.default not in targets
    a, w = torch.randn(3), Function(torch.logaddexp).w
    torch.testing.assert_close(decomposed.module()(a), torch.logaddexp(a, w))


def test_torchs_own_decomposition_is_the_second_choice() -> None:
    """An operator whose form this table leaves alone is decomposed as torch.onnx does it."""
    ones = torch.ones(5000, dtype=torch.int64)
    model = Function(lambda x, w: x.index_add(0, ones, torch.ones(5000)))  # too many comparisons
    exported = torch.export.export(model, (torch.randn(5000),), strict=False)
    with exact_decompositions(exported):
        table = EXPORTER.create_onnx_friendly_decomposition_table({ATEN.index_put.default})
    decomposed = exported.run_decompositions(table)
    assert ATEN.index_add.default not in {node.target for node in decomposed.graph.nodes}


def test_each_decomposition_has_an_operator() -> None:
    """No name of the table is misspelt: this torch has each of them."""
    assert [name for name in (*NAMED, *PYTORCHS) if find_operator(name) is None] == []
