"""torch.onnx's registry is made once, is every export's own, and knows operators that came later.

Enters: an export after another one. Leaves: proof that it finds every operator, and that nothing stays behind.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.models import BATCH, Function, answer, exported
from torch2engine.core.errors import UnsupportedOperatorError
from torch2engine.exporter import operator_registry
from torch2engine.exporter.operator_registry import reused_operator_registry

VALUES: Any = importlib.import_module("onnxscript.values")
EXPORTER: Any = importlib.import_module("torch.onnx._internal.exporter._registration")
ONNXSCRIPT: Any = importlib.import_module("onnxscript.function_libs.torch_lib.registration")
ADD = "aten::add.Tensor"


@torch.library.custom_op("torch2engine_tests::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    """An operator of the user's own."""
    return x * 3


@thrice.register_fake
def _thrice(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture
def onnxscript_operators() -> Iterator[None]:
    """Operators that a test registers are gone afterwards."""
    before = dict(ONNXSCRIPT.default_registry._registry)
    yield
    ONNXSCRIPT.default_registry._registry.clear()
    ONNXSCRIPT.default_registry._registry.update(before)


def test_second_registry_is_a_copy_of_the_first() -> None:
    """The functions are the same objects; what is added to one registry is not in the next."""
    with reused_operator_registry():
        first = EXPORTER.ONNXRegistry().from_torchlib(opset_version=22)
        function = first.functions[ADD][0]
        first.functions[ADD].clear()
        first.functions["another"] = []
        second = EXPORTER.ONNXRegistry().from_torchlib(opset_version=22)
    assert second.functions[ADD][0] is function
    assert "another" not in second.functions
    assert type(second) is EXPORTER.ONNXRegistry


def test_registry_has_what_torchs_own_has() -> None:
    """It is made without a look at the functions' sources, and onnxscript parses them afterwards as before."""
    parsed = inspect.getattr_static(VALUES.TracedOnnxFunction, "function_ir")
    own = EXPORTER.ONNXRegistry.from_torchlib(opset_version=22)
    operator_registry._made_once.cache_clear()
    with reused_operator_registry():
        ours = EXPORTER.ONNXRegistry.from_torchlib(opset_version=22)
    assert ours.functions == own.functions
    assert inspect.getattr_static(VALUES.TracedOnnxFunction, "function_ir") is parsed


def test_registry_outlives_operators_that_it_cannot_have() -> None:
    """PyTorch and its users register operators at any time; few of them have a function in onnxscript."""
    with reused_operator_registry(), torch.library._scoped_library("torch2engine_tests_later", "DEF") as library:
        first = EXPORTER.ONNXRegistry().from_torchlib(opset_version=22)
        library.define("later(Tensor x) -> Tensor")
        second = EXPORTER.ONNXRegistry().from_torchlib(opset_version=22)
    assert all(second.functions[name][0] is functions[0] for name, functions in first.functions.items())


def test_every_opset_has_its_own_registry() -> None:
    """The opset decides which functions a registry has."""
    with reused_operator_registry():
        opsets = [EXPORTER.ONNXRegistry().from_torchlib(opset_version=n).opset_version for n in (22, 23, 22)]
    assert opsets == [22, 23, 22]


def test_torchs_own_method_is_back_after_an_error() -> None:
    """Exports that are not ours make their own registries."""
    before = EXPORTER.ONNXRegistry.__dict__["from_torchlib"]

    def fail_inside() -> None:
        with reused_operator_registry():
            assert EXPORTER.ONNXRegistry.__dict__["from_torchlib"] is not before
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert EXPORTER.ONNXRegistry.__dict__["from_torchlib"] is before


def test_torch_without_the_private_registry_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch whose registry is made otherwise makes it as it always does."""
    monkeypatch.delattr(EXPORTER.ONNXRegistry, "from_torchlib")
    with reused_operator_registry():
        assert not hasattr(EXPORTER.ONNXRegistry, "from_torchlib")


@pytest.mark.usefixtures("onnxscript_operators")
def test_operator_registered_after_an_export_is_found() -> None:
    """A user who adds an ONNX function for an operator that was refused gets it in the next export."""
    opset18: Any = importlib.import_module("onnxscript").opset18
    model = Function(lambda x, w: thrice(x) + w)
    with pytest.raises(UnsupportedOperatorError):
        exported(model, torch.randn(4, 3), {"x": BATCH})

    def as_onnx(x: Any) -> Any:
        return opset18.Mul(x, opset18.CastLike(3.0, x))

    ONNXSCRIPT.torch_op("torch2engine_tests::thrice", trace_only=True)(as_onnx)
    artifact, cases = exported(model, torch.randn(4, 3), {"x": BATCH})
    np.testing.assert_allclose(answer(artifact, cases[0])["output"], cases[0].outputs["output"].numpy(), rtol=1e-6)
