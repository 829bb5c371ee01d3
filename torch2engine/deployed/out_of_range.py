"""The policy for a call outside every profile: an error, chunks, or an answer from PyTorch.

Enters: a checked call and the ShapeError for it. Leaves: the call's answer, or an error that says more. Separate
because the policy has a state of its own: its proofs and its warning. Few calls need it.
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
from torch2engine.core.config import RuntimeConfig, Tolerances
from torch2engine.core.errors import DeviceError, ExportError, InputError, ParityError, ShapeError
from torch2engine.core.select_profile import select_profile
from torch2engine.core.spec import TensorSpec
from torch2engine.deployed.split import (
    Cut,
    InRangeRunner,
    Unsplittable,
    choose_cut,
    compare_in_chunks,
    halves,
    independent_places,
    split,
)
from torch2engine.parity.parity_report import ParityReport

__all__ = ["OutOfRange", "checked_reference"]

_Proof: TypeAlias = "tuple[Cut, Sequence[torch.Tensor]]"
_Failure: TypeAlias = "tuple[Cut, ParityReport]"

_PROOFS = 2  # calls with entries that differ, on which deploy proves an axis


def checked_reference(subject: str, config: RuntimeConfig, reference: object) -> nn.Module | None:
    """The module that answers under out_of_range="eager"; None under any other policy.

    Raises:
        InputError: a reference that is missing, has no use, or is no PyTorch module.
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


class _ProofRecord:
    """The proofs and warnings of the policy, for the present weights and reference."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.proved: set[str] = set()
        self.refused: dict[str, _Failure] = {}
        self.has_warned = False

    def find_influence(
        self, runner: InRangeRunner, proofs: Sequence[_Proof], tolerance: Tolerances | None = None
    ) -> _Failure | None:
        """Return the comparison which shows that entries along an axis influence each other, or None.

        It is made once for each axis.
        """
        axis = proofs[0][0].axis
        with self.lock:
            if axis in self.proved:
                return None
            if axis in self.refused:
                return self.refused[axis]
            conclusive = 0
            for cut, leaves in proofs:
                report, differ = compare_in_chunks(runner, cut, leaves, tolerance)
                if not report.passed:
                    # An answer of nothing but NaN says nothing about the axis.
                    if any(row.nonfinite_reference < math.prod(row.shape) for row in report.failures):
                        self.refused[axis] = cut, report
                    return cut, report
                conclusive += differ
                if conclusive == _PROOFS:
                    break
            if conclusive:
                self.proved.add(axis)
        return None

    def warn_once(self, error: ShapeError) -> None:
        """Warn, at the first such call, that PyTorch answers."""
        with self.lock:
            if self.has_warned:
                return
            self.has_warned = True
        text = f"{error.subject}: {error.facts}; PyTorch answers such calls, slower; {error.fix}"
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_stack()]
        file, _, line = innermost_user_frame(frames).rpartition(":")
        warnings.warn_explicit(text, UserWarning, file, int(line or 0))


class OutOfRange:
    """The policy of one deployed module, and what it remembers. Threads may share it.

    Args:
        policy: "error", "split" or "eager", as `RuntimeConfig.out_of_range`.
        reference: the PyTorch module that answers under "eager"; None makes such calls errors.
    """

    def __init__(self, policy: str, reference: nn.Module | None) -> None:
        self.policy = policy
        self.reference = reference
        self._proof_record = _ProofRecord()

    def forget(self) -> None:
        """Discard all proofs, because the weights have changed. Running calls keep the old ones."""
        self._proof_record = _ProofRecord()

    def has_other_reference(self, model: nn.Module) -> bool:
        """Tell whether there is a reference, and it is not this model."""
        return self.reference is not None and self.reference is not model

    def set_reference(self, model: nn.Module) -> None:
        """Let this model answer from now on, if the policy uses a model."""
        if self.has_other_reference(model):
            self.reference = model
            self.forget()

    def answer(
        self, runner: InRangeRunner, leaves: Sequence[torch.Tensor], sizes: Mapping[str, int], error: ShapeError
    ) -> dict[str, torch.Tensor]:
        """Answer a call outside every profile.

        Args:
            runner: who answers sizes inside the profiles.
            leaves: the call's inputs, with everything checked but their sizes.
            sizes: every axis's size.
            error: the error that the policy "error" raises.

        Returns:
            output name -> fresh tensor on the inputs' device.

        Raises:
            ShapeError: the policy can't answer this call; the text says why.
            ParityError: entries along the axis influence each other.
            DeviceError: the PyTorch module is elsewhere.
            InputError: a CUDA graph is being captured.
        """
        with torch.no_grad():
            proof_record = self._proof_record
            if self.policy == "eager":
                return self._eager(proof_record, runner, leaves, error)
            try:
                cut = choose_cut(runner, sizes)
            except Unsplittable as reason:
                raise _with_reason(error, f"it can't be split: {reason}") from reason
            if cut.axis not in proof_record.proved:
                _refuse_capture(leaves, "a call that has yet to prove that it can be split")
                if failure := proof_record.find_influence(runner, [(cut, leaves)]):
                    raise _influence(failure, error.fix)
            return split(runner, cut, leaves)

    def prove_split_axes(
        self, runner: InRangeRunner, calls: Sequence[Sequence[torch.Tensor]], tolerance: Tolerances | None = None
    ) -> tuple[str, ...]:
        """Find, from calls inside the profiles, the axes that may be split.

        Returns:
            a sentence on every axis.

        Raises:
            InputError: no axis can be split, or none can be proved.
            ParityError: none was proved: entries along an axis influence each other.
        """
        proof_record = self._proof_record
        notes: list[str] = []
        errors: list[ParityError] = []
        proved = False
        for axis in runner.signature.axes:
            try:
                proofs = _proofs(runner, axis.name, calls)
            except Unsplittable as reason:
                notes.append(f"axis '{axis.name}' is never split: {reason}")
                continue
            with torch.no_grad():
                failure = proof_record.find_influence(runner, proofs, tolerance)
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
            got="; ".join(notes) or "no dynamic axis",
            allowed="an axis that is one dimension of every output and can be proved",
            fix="use out_of_range='eager' or 'error'",
        )

    def _eager(
        self, proof_record: _ProofRecord, runner: InRangeRunner, leaves: Sequence[torch.Tensor], error: ShapeError
    ) -> dict[str, torch.Tensor]:
        """Let the PyTorch module answer."""
        reference = self.reference
        if reference is None:
            reason = "the PyTorch module that answers outside has stayed behind, as it does when this one is copied"
            fix = "load it with runtime_config=RuntimeConfig(out_of_range='eager') and reference=model"
            raise _with_reason(error, reason, f"{fix}, or {error.fix}")
        _refuse_capture(leaves, "a call that PyTorch answers")
        device = leaves[0].device
        _check_device(reference, device)
        proof_record.warn_once(error)
        signature = runner.signature
        inputs = [leaf.to(torch_dtype(spec.dtype)) for spec, leaf in zip(signature.inputs, leaves, strict=True)]
        try:
            with undisturbed(reference):
                flat = Reference.for_signature(reference, signature)(inputs)
                outputs = outputs_by_name(flat, signature.output, [spec.name for spec in signature.outputs])
                # Copied while the module's own buffers, which may be the result, still have the values of this answer.
                answer = {
                    name: torch.empty(value.shape, dtype=value.dtype, device=device).copy_(value)
                    for name, value in outputs.items()
                }
        except ExportError as failure:
            raise _with_reason(error, f"the PyTorch module can't answer either ({failure})") from failure
        for spec, value in zip(signature.outputs, answer.values(), strict=True):
            _check_output(spec, value, error)
        return answer


def _proofs(runner: InRangeRunner, axis: str, calls: Sequence[Sequence[torch.Tensor]]) -> list[_Proof]:
    """The calls whose size is the sum of two sizes that a profile allows, the largest first.

    Raises:
        Unsplittable: there is none, the axis is not in every output, or an operator may mix its entries.
    """
    where = independent_places(runner, axis)
    step = runner.signature.axis(axis).multiple_of
    proofs: list[_Proof] = []
    narrow: Unsplittable | None = None
    for leaves in calls:
        sizes = runner.signature.resolve([leaf.shape for leaf in leaves])
        select_profile(runner.signature, runner.profiles, sizes)  # which refuses sizes outside
        # Not the profile that answers, since one of a single size allows no sums.
        ranges = [profile.ranges[axis] for profile in runner.profiles if profile.contains(sizes)]
        low, _, high = min(ranges, key=lambda one: (one[0], -one[2]))
        try:
            halves(high, low, step)
            proofs.append((Cut(axis, where, (), halves(sizes[axis], low, step)), leaves))
        except Unsplittable as reason:
            narrow = narrow or reason
    if not proofs:
        raise narrow or Unsplittable("there was no call to prove it on")
    return sorted(proofs, key=lambda proof: -sum(proof[0].proof))


def _with_reason(error: ShapeError, reason: str, fix: str = "") -> ShapeError:
    allowed = f"{error.allowed} ({reason})"
    return ShapeError(error.subject, name=error.name, got=error.got, allowed=allowed, fix=fix or error.fix)


def _influence(failure: _Failure, fix: str) -> ParityError:
    cut, report = failure
    first, second = cut.proof
    worst = report.failures[0]
    return ParityError(
        f"axis '{cut.axis}'",
        report=report,
        got=f"{first + second} entries that are not answered like {first} + {second} of them, so they influence each "
        f"other (output '{worst.name}', entries {worst.case}: {worst.reason})",
        allowed="an axis whose entries don't, for out_of_range='split'",
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
            got=f"a module on {', '.join(sorted(map(str, devices)))}",
            allowed=f"one on the inputs' device, {device}, for out_of_range='eager'",
            fix=f"move it with .to('{device}')",
        )


def _check_output(spec: TensorSpec, value: torch.Tensor, error: ShapeError) -> None:
    dtype = dtype_name(value.dtype)
    sizes = list(value.shape)
    fits = len(sizes) == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, sizes, strict=True)
    )
    if dtype != spec.dtype or not fits:
        raise _with_reason(
            error, f"the PyTorch module gives {dtype}{sizes} for output '{spec}', so it is not what was deployed"
        )
