"""A captured call → torch.export's program, with the user's dynamic axes.

Enters: a captured call. Leaves: an ExportedProgram, and what torch decided about each axis on the way. Separate because
all that is particular to torch.export's call stays here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.core.spec import Axis, Signature
from torch2engine.exporter.flat_module import FlatModule
from torch2engine.exporter.shape_guards import AxisOfDimension, ShapeGuards, explain_refusal, record_guards

__all__ = ["TracedCall", "trace"]


@dataclass(frozen=True)
class TracedCall:
    """torch's program, with the decisions about shapes that led to it."""

    program: torch.export.ExportedProgram
    guards: ShapeGuards


def trace(captured: CapturedCall) -> TracedCall:
    """Trace the model by torch.export.

    Raises:
        DynamicAxisError: the model pins an axis, or holds only for a part of its range; names the user's line.
        ExportError: torch can't trace the model.
    """
    signature = captured.signature
    torch_dims = {axis.name: _torch_dim(axis) for axis in signature.axes}
    dynamic_shapes = tuple(
        {index: torch_dims[dim] for index, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in signature.inputs
    )
    sizes = {axis.name: _size_to_trace_with(axis) for axis in signature.axes}
    with record_guards(_axis_of_dimension(signature)) as guards:
        try:
            program = torch.export.export(
                FlatModule(captured),
                (captured.sample_of_sizes(sizes),),  # clones: one tensor passed twice would become one input
                None,
                dynamic_shapes=(dynamic_shapes,),
                strict=False,
                preserve_module_call_signature=(),
                prefer_deferred_runtime_asserts_over_guards=False,
            )
        except Exception as error:
            raise explain_refusal(error, guards) from error
    return TracedCall(program, guards)


def _axis_of_dimension(signature: Signature) -> AxisOfDimension:
    return {
        (number, index): dim
        for number, spec in enumerate(signature.inputs)
        for index, dim in enumerate(spec.shape)
        if isinstance(dim, str)
    }


def _size_to_trace_with(axis: Axis) -> int:
    """A size other than 0 and 1 steps, which torch would fix as constants."""
    _, opt, high = axis.range
    return next(size for size in (opt, high) if size // axis.multiple_of >= 2)


def _torch_dim(axis: Axis) -> Any:
    low, _, high = axis.range
    step = axis.multiple_of
    if step == 1:
        return torch.export.Dim(axis.name, min=low, max=high)
    return step * torch.export.Dim(f"_{axis.name}", min=low // step, max=high // step)
