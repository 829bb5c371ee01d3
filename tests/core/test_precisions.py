"""The table of precisions: its facts are those of PyTorch and ONNX, and everything else follows from it.

Enters: the table. Leaves: proof that no row contradicts the libraries, and that errors and tolerances come from it.
"""

from __future__ import annotations

import onnx
import pytest
import torch

import torch2engine as t2e
from torch2engine.core.precisions import (
    CAST_PRECISIONS,
    FLOAT32_PRECISIONS,
    LOW_PRECISIONS,
    MODEL_PRECISIONS,
    PRECISION_TYPES,
    QUANTIZED_PRECISIONS,
    WEIGHT_PRECISIONS,
    lowest_cast_precision,
    quoted,
)

FLOATS = [name for name, row in PRECISION_TYPES.items() if "float" in row.dtype]


def test_sets_follow_from_the_rows() -> None:
    """Each precision is made in one way, and errors list them in the table's order."""
    assert FLOAT32_PRECISIONS == ("fp32", "tf32")
    assert CAST_PRECISIONS == ("fp16", "bf16")
    assert QUANTIZED_PRECISIONS == ("int8", "fp8")
    assert WEIGHT_PRECISIONS == ("int4",)
    assert (*CAST_PRECISIONS, *QUANTIZED_PRECISIONS) == LOW_PRECISIONS
    assert (*FLOAT32_PRECISIONS, *LOW_PRECISIONS) == MODEL_PRECISIONS
    assert quoted(LOW_PRECISIONS, "or") == "'fp16', 'bf16', 'int8' or 'fp8'"


@pytest.mark.parametrize("name", FLOATS)
def test_largest_values_are_pytorchs(name: str) -> None:
    """The largest finite value and the size of each floating-point type."""
    row = PRECISION_TYPES[name]
    dtype = getattr(torch, row.dtype)
    assert row.largest == torch.finfo(dtype).max
    assert row.bits == torch.finfo(dtype).bits
    assert row.largest_kept <= row.largest or row.made_by != "cast"


@pytest.mark.parametrize("name", PRECISION_TYPES)
def test_types_are_onnxs(name: str) -> None:
    """Every name of a type is one of onnx.TensorProto's."""
    row = PRECISION_TYPES[name]
    assert {row.onnx_type, *row.other_onnx_types} <= set(onnx.TensorProto.DataType.keys())


@pytest.mark.parametrize("name", MODEL_PRECISIONS)
def test_default_tolerance_is_the_rows(name: str) -> None:
    """A user asks for it by the precision's word."""
    row = PRECISION_TYPES[name]
    assert t2e.Tolerance.default(name) == t2e.Tolerance(
        rel_l2=row.rel_l2, max_rel=row.max_rel, abs=row.abs, mismatch=row.mismatch
    )


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ({"float32", "int64"}, None),
        ({"float32", "float16"}, "fp16"),
        ({"bfloat16", "float16"}, "bf16"),
    ],
)
def test_lowest_precision_of_dtypes(dtypes: set[str], expected: str | None) -> None:
    """A model that computes in several types is judged by the one with the fewest digits."""
    assert lowest_cast_precision(dtypes) == expected
