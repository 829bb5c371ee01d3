"""The proof that a traced program is right at every size of every axis, or an error that says where it is not.

Enters: a traced program with its conditions, and the captured call. Leaves: nothing, or a `DynamicAxisError` with the
sizes, the user's line and an Axis that the model can have. Separate from `size_conditions` because that file only
evaluates, and this one decides.

A condition that fails somewhere may be no fault, because torch also records conditions that change nothing. An example
is whether a size is 1 when two tensors of that size are added. So the program runs at each of these sizes, or at some
that stand for them, and its result is compared with the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import sympy
import torch
from numpy.typing import NDArray

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.host_trial import HostTrial
from torch2engine.core.errors import DynamicAxisError, ExportError
from torch2engine.core.spec import Axis
from torch2engine.exporter.sizes.shape_guards import ShapeGuards
from torch2engine.exporter.sizes.size_conditions import SizeCondition, collect_conditions, holds_at
from torch2engine.exporter.sizes.size_grid import SizeGrid, make_size_grid

__all__ = ["SizeFault", "find_size_fault"]

_MOST_TRIALS = 16
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Failure:
    """A condition with the points of the grid at which it does not hold."""

    condition: SizeCondition
    fails: NDArray[np.bool_]


@dataclass(frozen=True)
class SizeFault:
    """A condition that makes the program wrong at some size, and the refusal that explains it.

    Args:
        pins: the axis became a number.
    """

    condition: SizeCondition
    error: DynamicAxisError
    pins: bool


def find_size_fault(
    captured: CapturedCall, program: torch.export.ExportedProgram, guards: ShapeGuards
) -> SizeFault | None:
    """Find what makes the program wrong at some size; None where it is right at all of them.

    Args:
        captured: the call that was traced.
        program: torch's.
        guards: torch's decisions while it traced.
    """
    signature = captured.signature
    if not signature.axes:
        return None
    grid = make_size_grid(signature.axes)
    failures = [
        _Failure(condition, ~truth)
        for condition in collect_conditions(program, guards, signature)
        if not (truth := holds_at(condition, grid)).all()
    ]
    failures.sort(key=lambda failure: (not failure.condition.is_input, len(failure.condition.axes)))
    trials = _Trials(captured, program)
    for failure in failures:
        wrong_sizes = _wrong_sizes(trials, failure, grid)
        if wrong_sizes is not None:
            pins = failure.condition.is_input and len(failure.condition.axes) == 1
            return SizeFault(failure.condition, _explain(failure.condition, captured, wrong_sizes, grid), pins)
    return None


def _wrong_sizes(trials: _Trials, failure: _Failure, grid: SizeGrid) -> list[dict[str, int]] | None:
    """The sizes of the axes that decide at which the program is wrong, or may be; None where it is right."""
    axes = failure.condition.axes if failure.condition.is_input else _deciding_axes(failure, grid)
    columns = np.stack([grid.sizes[axis][failure.fails] for axis in axes], axis=1)
    failing = [dict(zip(axes, map(int, row), strict=True)) for row in np.unique(columns, axis=0)]
    if failure.condition.is_input:
        return failing
    if len(failing) > _MOST_TRIALS:
        return None if all(map(trials.are_right, _spread(failing))) else failing
    return [sizes for sizes in failing if not trials.are_right(sizes)] or None


def _deciding_axes(failure: _Failure, grid: SizeGrid) -> tuple[str, ...]:
    """The axes on whose sizes the condition's truth depends.

    `length % (batch * length) != 0` has two axes, and fails where batch is 1, at each length.
    """
    deciding = list(failure.condition.axes)
    for axis in failure.condition.axes:
        others = [name for name in deciding if name != axis]
        if others and _is_decided_by(others, failure.fails, grid):
            deciding = others
    return tuple(deciding)


def _is_decided_by(axes: Sequence[str], fails: NDArray[np.bool_], grid: SizeGrid) -> bool:
    """Tell whether all points with the same sizes of these axes fail, or none of them."""
    points = np.stack([grid.sizes[axis] for axis in axes], axis=1)
    _, group = np.unique(points, axis=0, return_inverse=True)
    group = group.reshape(-1)  # numpy 2.0 gives it another dimension
    failed = np.bincount(group, weights=fails)
    all_of = np.bincount(group)
    return bool(((failed == 0) | (failed == all_of)).all())


def _spread(sizes: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    """Some of many sizes: those with the least and the largest of each axis, and others evenly between."""
    extremes = [choose(sizes, key=itemgetter(axis)) for axis in sizes[0] for choose in (min, max)]
    between = [sizes[index * (len(sizes) - 1) // (_MOST_TRIALS - 1)] for index in range(_MOST_TRIALS)]
    return extremes + between


@dataclass
class _Trials:
    """Runs of the program and the model at given sizes.

    Args:
        captured: the call that was traced.
        program: torch's.
        known: the outcome at each size that was tried, since several conditions fail at the same ones.
    """

    captured: CapturedCall
    program: torch.export.ExportedProgram
    known: dict[tuple[int, ...], bool] = field(default_factory=dict[tuple[int, ...], bool])

    def are_right(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether the program answers like the model at these sizes, the other axes at opt."""
        complete = {axis.name: sizes.get(axis.name, axis.range[1]) for axis in self.captured.signature.axes}
        key = tuple(complete.values())
        if key not in self.known:
            self.known[key] = self._answers_agree(complete)
        return self.known[key]

    def _answers_agree(self, sizes: dict[str, int]) -> bool:
        inputs = self.captured.sample_of_sizes(sizes)
        trial = self.captured.trial
        if trial is not None and trial.obstacle():
            return False
        try:
            if trial is None:
                expected = self.captured.reference(inputs).leaves
                answers = _run(self.program, inputs)
            else:  # sizes that nobody gave may end the process's CUDA context, so both run on the CPU
                expected = trial.run(inputs).leaves
                answers = _run_on_cpu(self.program, inputs, trial)
        except (ExportError, RuntimeError, IndexError, ValueError):  # either of them does not take these sizes
            return False
        return all(_is_close(answer, right) for answer, right in zip(answers, expected, strict=True))


def _run(program: torch.export.ExportedProgram, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
    """Run the program as it is, without torch's checks of its sizes."""
    with torch.no_grad():
        return torch.fx.Interpreter(program.graph_module).run(*_arguments(program, inputs))


def _run_on_cpu(
    program: torch.export.ExportedProgram, inputs: Sequence[torch.Tensor], trial: HostTrial
) -> Sequence[Any]:
    """As `_run`, with all tensors on the CPU.

    Raises:
        RuntimeError: the program holds a tensor on a GPU that is none of its inputs and weights.
    """
    on_cpu = [
        argument.cpu() if isinstance(argument, torch.Tensor) else argument for argument in _arguments(program, inputs)
    ]
    with torch.no_grad(), trial.on_cpu():
        return _CpuInterpreter(program.graph_module).run(*on_cpu)


def _arguments(program: torch.export.ExportedProgram, inputs: Sequence[torch.Tensor]) -> list[Any]:
    weights: dict[str, Any] = {**program.state_dict, **program.constants}
    remaining = iter(inputs)
    return [
        next(remaining) if spec.kind.name == "USER_INPUT" else weights[str(spec.target)]
        for spec in program.graph_signature.input_specs
    ]


class _CpuInterpreter(torch.fx.Interpreter):
    """Runs a program on the CPU, whatever devices its operators name."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operator on the CPU."""
        on_cpu = {key: _CPU if isinstance(value, torch.device) else value for key, value in kwargs.items()}
        positional = tuple(_CPU if isinstance(value, torch.device) else value for value in args)
        return super().call_function(target, positional, on_cpu)


def _is_close(answer: Any, right: torch.Tensor) -> bool:
    """The same kernels ran, though perhaps in other layouts."""
    if answer.shape != right.shape or answer.dtype != right.dtype:
        return False
    if not right.is_floating_point():
        return torch.equal(answer, right)
    finite = right[right.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(answer, right, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def _explain(
    condition: SizeCondition, captured: CapturedCall, wrong: Sequence[Mapping[str, int]], grid: SizeGrid
) -> DynamicAxisError:
    """The error for a condition, by the sizes at which the program is wrong."""
    first_axis, *other_axes = condition.axes
    if other_axes:
        return _several_axes(condition, wrong)
    axis = captured.signature.axis(first_axis)
    sizes = np.unique(grid.sizes[axis.name])
    right = np.setdiff1d(sizes, [point[axis.name] for point in wrong])
    if len(right) == 1:
        return DynamicAxisError(
            f"axis '{axis.name}'",
            axis=axis.name,
            got="a model that pins it down",
            allowed=f"one that also works with other sizes than {axis.name} = {right[0]}",
            fix=f"compute with x.shape or -1 instead of a fixed size there, or leave '{axis.name}' out of dynamic_axes",
            source=condition.source,
        )
    return DynamicAxisError(
        f"axis '{axis.name}'",
        axis=axis.name,
        got="a model that does not hold for all of its range",
        allowed=f"sizes for which {condition}, which is wrong at {axis.name} = "
        + _describe(np.setdiff1d(sizes, right), axis.multiple_of),
        fix=_narrower_axis(axis, right),
        source=condition.source,
    )


def _several_axes(condition: SizeCondition, wrong: Sequence[Mapping[str, int]]) -> DynamicAxisError:
    if isinstance(condition.expression, sympy.Eq) and all(side.is_Symbol for side in condition.expression.args):
        return _axes_must_be_equal(condition)
    first = ", ".join(f"{name} = {size}" for name, size in wrong[0].items())
    others = f" and {len(wrong) - 1} other combinations" if len(wrong) > 1 else ""
    return DynamicAxisError(
        f"axes {' and '.join(map(repr, condition.axes))}",
        axis=condition.axes[0],
        got="a model that does not hold for all of their sizes together",
        allowed=f"sizes for which {condition}, which is wrong at {first}{others}",
        fix="change the line so that it holds for every size, or narrow the axes to sizes for which it does",
        source=condition.source,
    )


def _axes_must_be_equal(condition: SizeCondition) -> DynamicAxisError:
    """The error for two axes that the model needs to be equal."""
    first, second = condition.axes
    return DynamicAxisError(
        f"axes '{first}' and '{second}'",
        axis=second,
        got="a model that needs them to be equal",
        allowed="one name for sizes that are always equal",
        fix=f"call both '{first}' in dynamic_axes",
        source=condition.source,
    )


def _runs(sizes: NDArray[np.int64], step: int) -> Iterator[NDArray[np.int64]]:
    """Sizes in stretches without a gap."""
    return iter(np.split(sizes, np.flatnonzero(np.diff(sizes) != step) + 1))


def _describe(sizes: NDArray[np.int64], step: int) -> str:
    """Sizes for people: "2, 5..8"."""
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in _runs(sizes, step)]
    return ", ".join(texts) if len(texts) <= 4 else f"{', '.join(texts[:3])} and others up to {sizes[-1]}"


def _narrower_axis(axis: Axis, right: NDArray[np.int64]) -> str:
    """The Axis that holds most of the sizes at which the model is right."""
    low, opt, _ = axis.range
    if not len(right):
        return "change the line so that it holds for every size"
    step = int(np.gcd.reduce(right))
    expected = np.arange(-(-low // step) * step, int(right[-1]) + 1, step, dtype=np.int64)
    if step > axis.multiple_of and np.array_equal(right, expected):
        opt = min(max(opt // step * step, int(right[0])), int(right[-1]))
        return f"take such sizes only: Axis({axis.name!r}, {right[0]}, {opt}, {right[-1]}, multiple_of={step})"
    run = max(_runs(right, axis.multiple_of), key=lambda run: (run[0] <= opt <= run[-1], len(run)))
    opt = min(max(opt, int(run[0])), int(run[-1]))
    multiple = f", multiple_of={axis.multiple_of}" if axis.multiple_of > 1 else ""
    return f"give the range that it holds for: Axis({axis.name!r}, {run[0]}, {opt}, {run[-1]}{multiple})"
