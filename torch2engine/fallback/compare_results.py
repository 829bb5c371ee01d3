"""The results of the user's own code, before and after its submodules were deployed → a comparison.

Enters: two results of any kind. Leaves: `ParityReport`. Separate because such a result holds images, texts and
numbers beside tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from torch2engine.core.errors import ParityError
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = ["compare_results"]

_TITLE = "PyTorch vs deployed submodules, the whole call"


def compare_results(before: Any, after: Any, bounds: Bounds) -> ParityReport:
    """Compare what the user's code returned in PyTorch with what it returns now.

    Args:
        before, after: results. Tensors, arrays and images are compared by the bounds, texts and numbers by equality.
        bounds: when tensors count as equal.

    Raises:
        ParityError: other texts, or other tensors in it.
    """
    expected = dict(_leaves(before, "result"))
    got = dict(_leaves(after, "result"))
    if expected.keys() != got.keys():
        missing = ", ".join(sorted(expected.keys() ^ got.keys())[:4])
        raise _differ(f"a result with other parts ({missing})", bounds)
    for name, value in expected.items():
        if not isinstance(value, torch.Tensor) and value != got[name]:
            raise _differ(f"{name} = {got[name]!r}, where PyTorch gives {value!r}", bounds)
    tensors = {name: value for name, value in expected.items() if isinstance(value, torch.Tensor)}
    rows = compare(tensors, {name: got[name] for name in tensors}, bounds, case="call") if tensors else ()
    return ParityReport(tuple(rows), _TITLE, bounds.tolerance)


def _differ(got: str, bounds: Bounds) -> ParityError:
    return ParityError(
        "the whole call",
        got=got,
        allowed="what it returned before",
        fix="deploy with precision='fp32', or leave out the submodule whose rounding decides",
        report=ParityReport((), _TITLE, bounds.tolerance),
    )


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The values to compare: tensors, arrays as tensors, and values with a plain equality. All others are left out."""
    if isinstance(value, torch.Tensor):
        yield name, value.detach()
    elif isinstance(value, (str, bytes, bool, int, float)) or value is None:
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[Any, Any]", value).items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, Sequence):
        for index, item in enumerate(cast("Sequence[Any]", value)):
            yield from _leaves(item, f"{name}.{index}")
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # numpy and PIL
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            yield name, torch.from_numpy(np.ascontiguousarray(array))
