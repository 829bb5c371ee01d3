"""torch looks annotations up while it exports, and nothing stays behind.

Enters: exports. Leaves: proof that the export makes none anew.
"""

from __future__ import annotations

import collections.abc
import sys
from typing import Any

import pytest
import torch
from torch import _ops

from tests.support.models import BATCH, Function, exported
from torch2engine.exporter.cached_annotations import cached_annotations

OPERATORS: Any = _ops


def test_export_makes_few_annotations_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare torch makes thousands of `Callable[..., ...]` for an export."""
    alias: Any = type(collections.abc.Callable[[int], int])
    make, made = alias.__new__, 0

    def count(cls: type, origin: Any, arguments: Any) -> Any:
        nonlocal made
        made += sys._getframe(1).f_globals["__name__"] == "torch._ops"
        return make(cls, origin, arguments)

    monkeypatch.setattr(alias, "__new__", count)
    exported(Function(lambda x, w: x * w), torch.randn(4, 3), {"x": BATCH})
    assert made < 100
    torch.export.export(torch.nn.Linear(3, 3), (torch.randn(4, 3),)).run_decompositions()
    assert made > 1000


def test_torchs_own_name_is_back_after_an_error() -> None:
    """Exports that are not ours find the module as it was; one inside another leaves the name to the outer one."""

    def fail_inside() -> None:
        with cached_annotations():
            with cached_annotations():
                assert OPERATORS.Callable is not collections.abc.Callable
            assert OPERATORS.Callable is not collections.abc.Callable
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert OPERATORS.Callable is collections.abc.Callable


def test_torch_without_the_name_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that writes its annotations otherwise does so as it always does."""
    monkeypatch.delattr(OPERATORS, "Callable")
    with cached_annotations():
        assert not hasattr(OPERATORS, "Callable")
