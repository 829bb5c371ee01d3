"""A precision + parity cases → the cases and the tolerance for the comparison of a lowered model.

Enters: cases of the float32 model. Leaves: the same in the types of the lowered model. Separate because an engine from
the cache is compared in the same way as one that was just lowered and built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.config import Precision, Tolerances
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import PRECISION_TYPES, QUANTIZED_PRECISIONS
from torch2engine.core.spec import Signature, TensorSpec

__all__ = ["cast_case", "cast_signature", "parity_cases_for", "tolerance_for"]


def tolerance_for(precision: Precision, tolerance: Tolerances | None) -> Tolerances | None:
    """Choose when a lowered model counts as equal: the budget's tolerance, else the user's.

    None means the default of `Precision.lowest_type`, or more where the model's sensitivity is larger.
    """
    if precision.budget is not None and precision.budget.tolerance is not None:
        return precision.budget.tolerance
    return tolerance


def parity_cases_for(precision: str, cases: Sequence[ParityCase]) -> Sequence[ParityCase]:
    """Choose the cases that a model in this precision is compared on.

    A quantised model has the ranges of real data, so random inputs prove nothing about it.
    """
    if precision not in QUANTIZED_PRECISIONS:
        return cases
    return [case for case in cases if case.kind != "random"]


def cast_signature(signature: Signature, precision: Precision) -> Signature:
    """Give float32 inputs and outputs the low type, if low_io was requested."""
    if not precision.low_io:
        return signature
    dtype = PRECISION_TYPES[precision.dtype].dtype

    def cast_spec(spec: TensorSpec) -> TensorSpec:
        return replace(spec, dtype=dtype) if spec.dtype == "float32" else spec

    return replace(
        signature,
        inputs=tuple(cast_spec(spec) for spec in signature.inputs),
        outputs=tuple(cast_spec(spec) for spec in signature.outputs),
    )


def cast_case(case: ParityCase, signature: Signature, precision: str) -> ParityCase:
    """Cast a case to the dtypes of a lowered signature.

    Args:
        case: in the dtypes of the model.
        signature: of the lowered model.
        precision: its name, for errors.

    Raises:
        InputError: an answer that the dtype can't hold.
    """
    inputs = tuple(leaf.to(torch_dtype(spec.dtype)) for leaf, spec in zip(case.inputs, signature.inputs, strict=True))
    outputs: dict[str, torch.Tensor] = {}
    for spec in signature.outputs:
        exact = case.outputs[spec.name]
        typed = exact.to(torch_dtype(spec.dtype))
        if exact.is_floating_point() and not typed.isfinite().equal(exact.isfinite()):
            raise InputError(
                "Precision.low_io",
                got=f"an output '{spec.name}' that reaches {float(exact[exact.isfinite()].abs().max()):.3g}",
                allowed=f"answers that {precision} can hold",
                fix="leave low_io out",
            )
        outputs[spec.name] = typed
    return replace(case, inputs=inputs, outputs=outputs)
