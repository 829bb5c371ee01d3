"""A captured call → torch.export's program, right at every size of the user's dynamic axes.

Enters: a captured call. Leaves: an ExportedProgram, and what torch decided about each axis on the way. Separate because
all that is particular to torch.export's call stays here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.hashable_sizes import hashable_sizes
from torch2engine.core.errors import Torch2EngineError
from torch2engine.core.spec import Axis, Signature, size_of
from torch2engine.exporter.flat_module import FlatModule
from torch2engine.exporter.refusals import explain_refusal
from torch2engine.exporter.sizes.derived_axes import derive_axis
from torch2engine.exporter.sizes.pinned_axes import becomes_a_number
from torch2engine.exporter.sizes.prove_sizes import SizeFault, find_size_fault
from torch2engine.exporter.sizes.shape_guards import AxisOfDimension, ShapeGuards, record_guards
from torch2engine.exporter.sizes.size_conditions import shape_environment
from torch2engine.exporter.sizes.tensor_lengths import lengths_as_sizes

__all__ = ["TracedCall", "trace"]


@dataclass(frozen=True)
class TracedCall:
    """torch's program, with the decisions about shapes that led to it.

    Args:
        captured: the call that was traced; axes that follow from others are expressions now.
    """

    captured: CapturedCall
    program: torch.export.ExportedProgram
    guards: ShapeGuards


def trace(captured: CapturedCall) -> TracedCall:
    """Trace the model by torch.export, and prove that the program is right at every size of every axis.

    Raises:
        DynamicAxisError: the model pins an axis, or holds only for a part of its range; names the user's line.
        ExportError: torch can't trace the model.
    """
    faults: list[SizeFault] = []
    for sizes in _sizes_to_trace_with(captured):
        try:
            traced = _trace_with(captured, sizes)
        except Torch2EngineError:
            if faults:
                break  # the first fault says more
            raise
        fault = find_size_fault(captured, traced.program, traced.guards)
        if fault is None:
            return traced
        derived = derive_axis(captured, fault.condition)
        if derived is not None:
            return trace(derived)
        faults.append(fault)
    first, *others = faults
    if first.pins and any(other.pins and other.condition.axes == first.condition.axes for other in others):
        raise becomes_a_number(first.condition.axes[0], first.condition.source)
    raise first.error


def _trace_with(captured: CapturedCall, sizes: Mapping[str, int]) -> TracedCall:
    """Trace the model with the sample at these sizes.

    torch decides itself which axes stay dynamic (Dim.AUTO). Then torch refuses nothing; its decisions are checked
    later.
    """
    signature = captured.signature
    least = {axis.name: axis.range[0] for axis in signature.axes}
    largest = {axis.name: axis.range[2] for axis in signature.axes}
    dynamic_shapes = tuple(
        {
            index: torch.export.Dim.AUTO(min=size_of(dim, least), max=size_of(dim, largest))
            for index, dim in enumerate(spec.shape)
            if isinstance(dim, str)
        }
        for spec in signature.inputs
    )
    with (
        record_guards(_axis_of_dimension(signature)) as guards,
        lengths_as_sizes(captured.reference.model),
        hashable_sizes(),
    ):
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
            raise explain_refusal(error) from error
    environment = shape_environment(program)
    if environment is not None:
        guards.read_symbols(environment)
    return TracedCall(captured, program, guards)


def _axis_of_dimension(signature: Signature) -> AxisOfDimension:
    return {
        (number, index): dim
        for number, spec in enumerate(signature.inputs)
        for index, dim in enumerate(spec.shape)
        if isinstance(dim, str)
    }


def _sizes_to_trace_with(captured: CapturedCall) -> Iterator[dict[str, int]]:
    """Sizes for each attempt: first opt, then sizes that nothing else in the model has.

    If two sizes are equal by chance, torch decides as if they were always equal.
    """
    signature = captured.signature
    usual = {axis.name: _usual_size(axis) for axis in signature.axes}
    yield usual
    model = captured.reference.model
    taken = {size for tensor in (*model.parameters(), *model.buffers()) for size in tensor.shape}
    taken |= {dim for spec in (*signature.inputs, *signature.outputs) for dim in spec.shape if isinstance(dim, int)}
    taken |= set(usual.values())
    unusual: dict[str, int] = {}
    for axis in signature.axes:
        low, opt, high = axis.range
        step = axis.multiple_of
        free = [size for size in range(max(low, 2 * step), high + 1, step) if size not in taken]
        unusual[axis.name] = min(free, key=lambda size: abs(size - opt), default=usual[axis.name])
        taken.add(unusual[axis.name])
    if unusual != usual:
        yield unusual


def _usual_size(axis: Axis) -> int:
    """A size other than 0 and 1 steps, which torch would fix as constants."""
    _, opt, high = axis.range
    return next(size for size in (opt, high) if size // axis.multiple_of >= 2)
