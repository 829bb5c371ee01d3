"""What becomes of a call outside every profile: an error, chunks, or PyTorch's own answer.

Enters: a checked call and the ShapeError that it would be. Leaves: its answer, or an error that says more. Apart from
`deployed` because it has a state of its own, what was proved and whether it has warned, and few calls come here.
"""

from __future__ import annotations

import math
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from torch2engine.capture.reference import Reference, outputs_by_name
from torch2engine.capture.source_lines import innermost_user_frame
from torch2engine.capture.torch_types import dtype_name, torch_dtype
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import RuntimeConfig, Tolerance
from torch2engine.core.errors import DeviceError, ExportError, InputError, ParityError, ShapeError
from torch2engine.core.spec import TensorSpec
from torch2engine.modules.split import Cut, InRangeRunner, Unsplittable, cut, halves, places, prove, split
from torch2engine.parity.compare import ParityReport

__all__ = ["InRangeRunner", "OutOfRange", "checked_reference"]

_Proof: TypeAlias = "tuple[Cut, Sequence[torch.Tensor]]"
_Failure: TypeAlias = "tuple[Cut, ParityReport]"

_PROOFS = 2  # calls with entries that differ, on which deploy proves an axis


def checked_reference(subject: str, config: RuntimeConfig, reference: object) -> nn.Module | None:
    """The module that answers under out_of_range="eager", None under any other policy.

    Raises:
        InputError: none where one is needed, one that nothing would use, or one that is no PyTorch module.
    """
    eager = config.out_of_range == "eager"
    if eager == (reference is not None):
        return unwrap(reference) if eager else None
    raise InputError(
        subject,
        got=f"out_of_range={config.out_of_range!r} and {'no' if eager else 'a'} reference",
        allowed="'eager' with the PyTorch module that then answers, or another without one",
        fix="pass reference=model" if eager else "leave it out, or pass RuntimeConfig(out_of_range='eager')",
    )


class OutOfRange:
    """One module's policy and what it remembers; threads may share it.

    Args:
        reference: the module that answers under "eager"; None splits, or is an error under "eager".
    """

    def __init__(self, policy: str, reference: nn.Module | None) -> None:
        self._policy = policy
        self._reference = reference
        self._lock = threading.Lock()
        self._proved: set[str] = set()
        self._refused: dict[str, _Failure] = {}
        self._warned = False

    def answer(
        self, inside: InRangeRunner, leaves: Sequence[torch.Tensor], sizes: Mapping[str, int], error: ShapeError
    ) -> dict[str, torch.Tensor]:
        """Answer.

        Args:
            inside: who answers sizes inside the profiles.
            leaves: the call's inputs, checked in all but their sizes.
            sizes: every axis's size.
            error: what the call is under "error".

        Returns:
            output name -> fresh tensor on the inputs' device.

        Raises:
            ShapeError: the policy does not help here; says why.
            ParityError: entries along the axis influence each other.
            DeviceError: the PyTorch module is elsewhere.
            InputError: a CUDA graph is being captured.
        """
        with torch.no_grad():
            if self._policy == "eager":
                return self._eager(inside, leaves, error)
            try:
                how = cut(inside.signature, inside.profiles, sizes)
            except Unsplittable as reason:
                raise _with(error, f"it can't be split: {reason}") from reason
            if how.axis not in self._proved:
                _refuse_capture(leaves, "a call that has yet to prove that it can be split")
                if failure := self._failure(inside, [(how, leaves)]):
                    raise _influence(failure, error.fix)
            return split(inside, how, leaves)

    def _failure(
        self, inside: InRangeRunner, proofs: Sequence[_Proof], tolerance: Tolerance | None = None
    ) -> _Failure | None:
        """What shows that entries along an axis influence each other; None if nothing does. Asked once per axis."""
        axis = proofs[0][0].axis
        with self._lock:
            if axis in self._proved:
                return None
            if axis in self._refused:
                return self._refused[axis]
            conclusive = 0
            for how, leaves in proofs:
                report, differ = prove(inside, how, leaves, tolerance)
                if not report.passed:
                    # An answer of nothing but NaN says nothing about the axis.
                    if any(row.nonfinite_reference < math.prod(row.shape) for row in report.failures):
                        self._refused[axis] = how, report
                    return how, report
                conclusive += differ
                if conclusive == _PROOFS:
                    break
            if conclusive:
                self._proved.add(axis)
        return None

    def prove(
        self, inside: InRangeRunner, calls: Sequence[Sequence[torch.Tensor]], tolerance: Tolerance | None = None
    ) -> tuple[str, ...]:
        """Find, from calls inside the profiles, the axes that may be split.

        Returns:
            a sentence on every axis.

        Raises:
            InputError: no axis can be split, or none can be proved.
            ParityError: none was proved: entries along an axis influence each other.
        """
        notes: list[str] = []
        errors: list[ParityError] = []
        proved = False
        for axis in inside.signature.axes:
            try:
                proofs = _proofs(inside, axis.name, calls)
            except Unsplittable as reason:
                notes.append(f"axis '{axis.name}' is never split: {reason}")
                continue
            with torch.no_grad():
                failure = self._failure(inside, proofs, tolerance)
            if failure:
                errors.append(_influence(failure, "leave out out_of_range='split'"))
                notes.append(f"axis '{axis.name}' is never split: {errors[-1].got}")
            else:
                first, second = proofs[0][0].proof
                notes.append(
                    f"axis '{axis.name}' may be split: {first + second} entries answer like {first} + {second}"
                )
                proved = True
        if proved:
            return tuple(notes)
        if errors:
            raise errors[0]
        raise InputError(
            "out_of_range='split'",
            got="; ".join(notes) or "there is no dynamic axis",
            allowed="an axis that is one dimension of every output and can be proved",
            fix="use out_of_range='eager' or 'error'",
        )

    def _eager(
        self, inside: InRangeRunner, leaves: Sequence[torch.Tensor], error: ShapeError
    ) -> dict[str, torch.Tensor]:
        if self._reference is None:
            allowed = "the PyTorch module that answers outside has stayed behind, as it does when this one is copied"
            fix = "load it with runtime_config=RuntimeConfig(out_of_range='eager') and reference=model"
            raise _with(error, allowed, f"{fix}, or {error.fix}")
        _refuse_capture(leaves, "a call that PyTorch answers")
        device = leaves[0].device
        _check_device(self._reference, device)
        self._warn(error)
        signature = inside.signature
        inputs = [leaf.to(torch_dtype(spec.dtype)) for spec, leaf in zip(signature.inputs, leaves, strict=True)]
        try:
            with undisturbed(self._reference):
                flat = Reference(self._reference, signature.parameters, signature.preprocess)(inputs)
                found = outputs_by_name(flat, signature.output, [spec.name for spec in signature.outputs])
                # While the module's buffers, which may be among them, still have this answer's values.
                answer = {
                    name: torch.empty(value.shape, dtype=value.dtype, device=device).copy_(value)
                    for name, value in found.items()
                }
        except ExportError as failure:
            raise _with(error, f"the PyTorch module can't answer either ({failure})") from failure
        for spec, value in zip(signature.outputs, answer.values(), strict=True):
            _check_output(spec, value, error)
        return answer

    def _warn(self, error: ShapeError) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            text = f"{error.subject}: {error.got}, {error.allowed}; PyTorch answers such calls, slower; {error.fix}"
            frames = [(frame.filename, frame.lineno) for frame in traceback.extract_stack()]
            file, _, line = innermost_user_frame(frames).rpartition(":")
            warnings.warn_explicit(text, UserWarning, file, int(line or 0))


def _proofs(inside: InRangeRunner, axis: str, calls: Sequence[Sequence[torch.Tensor]]) -> list[_Proof]:
    """The calls whose size is the sum of two that a profile allows, the largest first.

    Raises:
        Unsplittable: there is none, or the axis is not in every output.
    """
    where = places(inside.signature, axis)
    step = inside.signature.axis(axis).multiple_of
    proofs: list[_Proof] = []
    narrow: Unsplittable | None = None
    for leaves in calls:
        sizes = inside.signature.resolve([leaf.shape for leaf in leaves])
        inside.signature.select_profile(inside.profiles, sizes)  # which refuses sizes outside
        # Not the profile that answers, since one of a single size allows no sums.
        ranges = [profile.ranges[axis] for profile in inside.profiles if profile.contains(sizes)]
        low, _, high = min(ranges, key=lambda one: (one[0], -one[2]))
        try:
            halves(high, low, step)
            proofs.append((Cut(axis, where, (), halves(sizes[axis], low, step)), leaves))
        except Unsplittable as reason:
            narrow = narrow or reason
    if not proofs:
        raise narrow or Unsplittable("there was no call to prove it on")
    return sorted(proofs, key=lambda proof: -sum(proof[0].proof))


def _with(error: ShapeError, allowed: str, fix: str = "") -> ShapeError:
    return ShapeError(
        error.subject, name=error.name, got=error.got, allowed=f"{error.allowed}, and {allowed}", fix=fix or error.fix
    )


def _influence(failure: _Failure, fix: str) -> ParityError:
    how, report = failure
    first, second = how.proof
    worst = report.failures[0]
    return ParityError(
        f"axis '{how.axis}'",
        report=report,
        got=f"{first + second} entries are not answered like {first} + {second} of them, so they influence each other "
        f"(output '{worst.name}', entries {worst.case}: {worst.reason})",
        allowed="out_of_range='split' is for axes whose entries don't",
        fix=f"{fix}, or use out_of_range='eager'",
    )


def _refuse_capture(leaves: Sequence[torch.Tensor], what: str) -> None:
    if leaves[0].is_cuda and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "call",
            got=f"{what}, during the capture of a CUDA graph",
            allowed="work that only enqueues",
            fix="call it with shapes inside a profile; under 'split', prove it by a call before the capture",
        )


def _check_device(reference: nn.Module, device: torch.device) -> None:
    tensors: list[Any] = [*reference.parameters(), *reference.buffers()]
    devices = {tensor.device for tensor in tensors}
    if devices and device not in devices:
        raise DeviceError(
            "the PyTorch module",
            got=f"it is on {', '.join(sorted(map(str, devices)))}",
            allowed=f"out_of_range='eager' needs it on the inputs' device, {device}",
            fix=f"move it with .to('{device}')",
        )


def _check_output(spec: TensorSpec, value: torch.Tensor, error: ShapeError) -> None:
    dtype, sizes = dtype_name(value.dtype), list(value.shape)
    fits = len(sizes) == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, sizes, strict=True)
    )
    if dtype != spec.dtype or not fits:
        raise _with(
            error, f"the PyTorch module gives {dtype}{sizes} for output '{spec}', so it is not what was deployed"
        )
