"""torch.export registers kernels that are there already, the right ones, and nothing stays behind.

Enters: decompositions and exports. Leaves: proof that a later one makes no kernels, and sees what has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import _ops
from torch._subclasses import fake_impls
from torch.export import exported_program

from tests.support.models import BATCH, Function, exported
from torch2engine.exporter.composite_kernels import composite_kernels_made_once

OPERATORS: Any = _ops
PROGRAM: Any = exported_program
OVERRIDE = "_override_composite_implicit_decomp"
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
SAMPLE = torch.randn(4, 3)


def state(operator: Any) -> tuple[dict[Any, Any], Any]:
    """What is registered at an operator: its kernels, and its rule for fake tensors."""
    return dict(operator.py_kernels), fake_impls.op_implementations_dict.get(operator)


def keep(*args: Any, **options: Any) -> Any:
    """Leaves an operator as it is."""
    return NotImplemented


def test_later_export_registers_no_kernel_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare torch registers thousands for a decomposition."""
    register, registered = OPERATORS.OperatorBase.py_impl, []
    exported(Function(lambda x, w: x * w), SAMPLE, {"x": BATCH})
    monkeypatch.setattr(
        OPERATORS.OperatorBase, "py_impl", lambda self, key: (registered.append(key), register(self, key))[1]
    )
    exported(Function(lambda x, w: x + w), SAMPLE, {"x": BATCH})
    assert len(registered) < 100
    torch.export.export(torch.nn.Linear(3, 3), (SAMPLE,)).run_decompositions()
    assert len(registered) > 1000


def test_operators_have_the_kernels_that_torch_gives_them() -> None:
    """The same keys and rules inside, with the decomposition of this call; afterwards all is as before."""
    operators = [torch.ops.aten.linear.default, torch.ops.aten.silu.default, torch.ops.aten.matmul.default]
    before = [state(operator) for operator in operators]
    bare, ours = [], []
    for _ in range(2):
        with getattr(PROGRAM, OVERRIDE)(dict.fromkeys(operators, keep)):
            bare = [state(operator) for operator in operators]
        for decomposition in (keep, lambda *args: args[0]):
            with composite_kernels_made_once(), getattr(PROGRAM, OVERRIDE)(dict.fromkeys(operators, decomposition)):
                ours = [state(operator) for operator in operators]
            assert [kernels.keys() for kernels, _ in ours] == [kernels.keys() for kernels, _ in bare]
            assert [rule is None for _, rule in ours] == [rule is None for _, rule in bare]
            assert all(kernels[COMPOSITE] is decomposition for kernels, _ in ours)
        assert [state(operator) for operator in operators] == before


def test_kernel_that_came_later_stays() -> None:
    """An operator that got a kernel of its own since keeps it in the next decomposition."""
    key = torch._C.DispatchKey.AutogradCPU
    operator = torch.ops.aten.linear.default

    def own(*args: Any) -> Any:
        return args[0]

    with composite_kernels_made_once():
        with getattr(PROGRAM, OVERRIDE)({operator: keep}):
            assert operator.py_kernels[key] is not own
        operator.py_impl(key)(own)
        try:
            with getattr(PROGRAM, OVERRIDE)({operator: keep}):
                assert operator.py_kernels[key] is own
            assert operator.py_kernels[key] is own
        finally:
            del operator.py_kernels[key]
            operator._dispatch_cache.clear()


def test_decomposed_programs_are_torchs_own() -> None:
    """Each operator of the graph is the one that bare torch finds, with and without a decomposition of its own."""

    def halves(x: torch.Tensor) -> torch.Tensor:
        return x * 0.5

    program = torch.export.export(
        Function(lambda x, w: torch.nn.functional.linear(torch.nn.functional.silu(x), w)), (SAMPLE,)
    )
    tables: list[dict[Any, Callable[..., Any]] | None] = [None, {}, {torch.ops.aten.silu.default: halves}]

    def graphs() -> list[str]:
        return [str(program.run_decompositions(table and dict(table)).graph) for table in tables]

    bare = graphs()
    with composite_kernels_made_once():
        assert (graphs(), graphs()) == (bare, bare)
    assert len(set(bare)) > 1


def test_torchs_own_function_is_back_after_an_error() -> None:
    """Operators too; exports that are not ours make their kernels, and one inside another makes none."""
    before = getattr(PROGRAM, OVERRIDE)
    operator = torch.ops.aten.linear.default
    kernels = dict(operator.py_kernels)

    def fail_inside() -> None:
        with composite_kernels_made_once(), composite_kernels_made_once():
            assert getattr(PROGRAM, OVERRIDE) is not before
            with getattr(PROGRAM, OVERRIDE)({operator: keep}):
                assert operator.py_kernels != kernels
                raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert getattr(PROGRAM, OVERRIDE) is before
    assert operator.py_kernels == kernels


@pytest.mark.parametrize(
    ("module", "name"),
    [(PROGRAM, OVERRIDE), (fake_impls, "op_implementations_dict"), (fake_impls, "_deregister_op_impl")],
)
def test_torch_without_what_is_used_is_left_alone(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that registers its kernels otherwise does so as it always does."""
    monkeypatch.delattr(module, name)
    before = dict(vars(PROGRAM))
    with composite_kernels_made_once():
        assert vars(PROGRAM) == before
