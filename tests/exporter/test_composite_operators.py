"""torch.export looks for its composite operators once for an export, and knows those that came later.

Enters: exports. Leaves: proof that the dispatcher is asked once, and that nothing stays behind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._export import utils

from tests.support.models import BATCH, Function, answer, exported
from torch2engine.exporter.composite_operators import composite_operators_found_once

UTILS: Any = utils
SEARCHES = ("_materialize_cpp_cia_ops", "_collect_all_valid_cia_ops_for_namespace", "_check_valid_to_preserve")
DISPATCHER: Any = torch._C


def test_dispatcher_is_asked_once_for_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare torch asks it for every namespace and every decomposition."""
    ask, asked = DISPATCHER._dispatch_get_registrations_for_dispatch_key, []
    monkeypatch.setattr(
        DISPATCHER, "_dispatch_get_registrations_for_dispatch_key", lambda key: (asked.append(key), ask(key))[1]
    )
    exported(Function(lambda x, w: x * w), torch.randn(4, 3), {"x": BATCH})
    assert asked == ["CompositeImplicitAutograd"]


def test_namespace_is_searched_once_for_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare torch searches it for every decomposition, and for every table of decompositions."""
    is_composite, asked = UTILS._is_preservable_cia_op, []
    monkeypatch.setattr(
        UTILS, "_is_preservable_cia_op", lambda operator: (asked.append(operator), is_composite(operator))[1]
    )
    exported(Function(lambda x, w: x * w), torch.randn(4, 3), {"x": BATCH})
    assert len(asked) == len(set(asked)) > 100


@pytest.mark.parametrize("search", SEARCHES)
def test_torchs_own_search_is_back_after_an_error(search: str) -> None:
    """Exports that are not ours look for the operators as they always do."""
    before = getattr(UTILS, search)

    def fail_inside() -> None:
        with composite_operators_found_once():
            assert getattr(UTILS, search) is not before
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert getattr(UTILS, search) is before


@pytest.mark.parametrize("search", SEARCHES)
def test_torch_without_the_private_search_is_left_alone(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that looks for the operators otherwise does so as it always does."""
    monkeypatch.delattr(UTILS, search)
    before = dict(vars(UTILS))
    with composite_operators_found_once():
        assert vars(UTILS) == before


def test_composite_operator_that_is_defined_after_an_export_is_decomposed() -> None:
    """The next export asks anew: it finds the operator, and sends its parts to ONNX."""
    model = Function(lambda x, w: torch.ops.torch2engine_composites.twice(x) * w)
    exported(Function(lambda x, w: x * w), torch.randn(4, 3), {"x": BATCH})
    with torch.library._scoped_library("torch2engine_composites", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
        artifact, cases = exported(model, torch.randn(4, 3), {"x": BATCH})
        np.testing.assert_allclose(answer(artifact, cases[0])["output"], cases[0].outputs["output"].numpy(), rtol=1e-6)


def test_what_holds_for_an_operator_is_asked_once_for_all_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare torch asks it of all operators for every decomposition."""
    exported(Function(lambda x, w: x * w), torch.randn(4, 3), {"x": BATCH})
    is_valid, asked = UTILS._check_valid_to_preserve, []

    def counted(operator: Any) -> bool:
        asked.append(operator)
        return is_valid(operator)

    monkeypatch.setattr(UTILS, "_check_valid_to_preserve", counted)
    for _ in range(2):
        exported(Function(lambda x, w: x * w), torch.randn(4, 3), {"x": BATCH})
    assert len(asked) == len(set(asked)) > 500


def test_operator_that_is_gone_may_stay_in_no_graph() -> None:
    """What was found out about it holds only as long as its library is there."""
    with composite_operators_found_once():
        with torch.library._scoped_library("torch2engine_short_lived", "FRAGMENT") as library:
            library.define("twice(Tensor x) -> Tensor")
            library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
            operator: Any = torch.ops.torch2engine_short_lived.twice.default
            assert UTILS._check_valid_to_preserve(operator)
        assert not UTILS._check_valid_to_preserve(operator)
