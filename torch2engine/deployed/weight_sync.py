"""Live weights → a deployed module: the work of `refit`, `stale` and `track`.

Enters: the PyTorch module whose weights have changed. Leaves: a backend that has them, without an export or a build.
Separate because a refit follows the same rules for every backend. Each weight is computed anew from the module's own,
and no call uses wrong weights during it or afterwards.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import Enum
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import nn

from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.capture.examples import bind_examples, read_examples
from torch2engine.capture.fingerprint import WeightSnapshot, fingerprints, take_snapshot
from torch2engine.capture.host_trial import find_unsafe_inputs
from torch2engine.capture.live_parameters import saved_live_values
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.process_state import exact_arithmetic, process_state_lock
from torch2engine.capture.reference import Reference, outputs_by_name
from torch2engine.capture.rounding_sensitivity import measure_sensitivity
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import Tolerances, check_tolerance
from torch2engine.core.errors import ParityError, RefitError
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.deployed.backend import FIX_OF_WRONG_WEIGHTS, Backend, Infer, RefittableBackend, WeightsGuard
from torch2engine.deployed.made_inputs import corner_sizes, named_examples, random_cases
from torch2engine.deployed.out_of_range import OutOfRange
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = ["NamedInputs", "Refit", "WeightSync"]

NamedInputs = Sequence[tuple[str, Sequence[torch.Tensor]]]
"""Flat inputs with the names of their cases."""

R = TypeVar("R")

_SUBJECT = "refit"
_SHOWN_PATHS = 3  # of the changed weights, in a repr
_PIECE = 1 << 24  # elements that are checked together, in at most 64 MiB of temporaries


@dataclass(frozen=True)
class Refit:
    """The outcome of a refit.

    Args:
        changed: paths of the parameters and buffers whose values differed from the engine's; without any, nothing was
            done.
        seconds: that it took, verification included.
        parity: the comparison with the model, if it was made.
    """

    changed: tuple[str, ...]
    seconds: float
    parity: ParityReport | None = None

    def __repr__(self) -> str:
        shown = ", ".join(self.changed[:_SHOWN_PATHS])
        more = f" and {len(self.changed) - _SHOWN_PATHS} more" if len(self.changed) > _SHOWN_PATHS else ""
        parity = "not compared" if self.parity is None else f"parity {self.parity.verdict}"
        return f"Refit({len(self.changed)} changed{': ' if shown else ''}{shown}{more}; {self.seconds:.3f} s; {parity})"


class _Comparison(Enum):
    """When a refit compares the backend's answers with the model's."""

    ALWAYS = "always"
    IF_DUE = "if due"  # until a comparison has passed, and again after weights were found wrong
    NEVER = "never"

    @classmethod
    def of(cls, verify: bool | None, has_examples: bool) -> _Comparison:
        """Read `verify` of `DeployedModule.refit`; new examples are given to be compared on."""
        if verify is None:
            return cls.ALWAYS if has_examples else cls.IF_DUE
        return cls.ALWAYS if verify else cls.NEVER

    def is_required(self, is_due: bool) -> bool:
        """Whether to compare now, given whether a comparison is due."""
        return self is _Comparison.ALWAYS or (self is _Comparison.IF_DUE and is_due)


@dataclass
class _HeldWeights:
    """The weights that the backend holds now, and what refits need to know about them.

    Args:
        program: how they follow from a model's parameters and buffers.
        fingerprints: of these parameters and buffers, at the time when the backend took them over.
        source: the model that was deployed, which is not kept alive.
        samples: inputs on the CPU, to compare on; empty for a loaded module.
        tolerance: for that comparison; None means the precision's.
        is_verified: whether a comparison has passed since the weights were last found wrong.
        is_comparison_due: whether the present weights still have to be compared.
    """

    program: WeightProgram
    fingerprints: Mapping[str, int]
    source: weakref.ReferenceType[nn.Module] | None = None
    samples: NamedInputs = ()
    tolerance: Tolerances | None = None
    is_verified: bool = False
    is_comparison_due: bool = False


@dataclass(frozen=True)
class _FirstLook:
    """The result of a look at the model before a refit takes its locks.

    Args:
        needs_refit: whether there is anything to do.
        snapshot: the model's weights; None where the check did not need it.
    """

    needs_refit: bool
    snapshot: WeightSnapshot | None = None


class WeightSync:
    """Keeps the weights of one backend equal to a live model's. Threads may share it.

    Its methods take the module's `infer`, so that it holds no module and nothing becomes a reference cycle.

    Args:
        backend: takes the weights.
        guard: the lock on them, which the backend reads.
        out_of_range: forgets what it proved with other weights, and answers with the model whose weights are in use.
    """

    def __init__(self, backend: Backend, guard: WeightsGuard, out_of_range: OutOfRange) -> None:
        self.tracked: nn.Module | None = None  # every call looks at it; `track` alone writes it
        self._backend = backend
        self._refit_target = backend if isinstance(backend, RefittableBackend) else None
        self._guard = guard
        self._out_of_range = out_of_range
        self._held: _HeldWeights | None = None
        self._weights_version = 0  # odd while weights are being replaced

    @property
    def lock(self) -> ForkSafeLock:
        """The lock on the weights; see `WeightsGuard`."""
        return self._guard.lock

    def weights_locked(self) -> AbstractContextManager[None]:
        """Let no other thread change the weights meanwhile, and refuse wrong ones; see `WeightsGuard`."""
        return self._guard.weights_locked()

    def refit(
        self,
        infer: Infer,
        model: nn.Module | None,
        *,
        verify: bool | None = None,
        examples: Iterable[Any] | None = None,
        tolerance: Tolerances | None = None,
        onnx_is_current: bool = False,
    ) -> Refit:
        """Take over a model's weights as they are now; see `DeployedModule.refit`.

        Args:
            infer: the deployed module's flat call.
            model, verify, examples, tolerance: as there.
            onnx_is_current: whether the artifact's ONNX was exported from this model as it is now.

        Raises:
            RefitError, InputError, DeviceError, InstallationError, ArtifactError: as there.
        """
        start = perf_counter()
        held = self.held_weights()
        check_tolerance(tolerance)
        given = read_examples(examples)
        comparison = _Comparison.of(verify, has_examples=given is not None)
        if given is not None:
            samples = self._named_samples(given)
            with self._guard.lock:
                held.samples = samples
        look = self._first_look(held, model, comparison)
        if not look.needs_refit:
            return Refit((), perf_counter() - start)
        with process_state_lock(), self._guard.lock:  # in this order, which others take too
            live = self._live_model(held, model)
            tensors = held.program.tensors(live)
            new = take_snapshot(tensors, look.snapshot).fingerprints
            changed = tuple(path for path, number in new.items() if number != held.fingerprints.get(path))
            if changed or self._guard.fault:
                check = comparison is not _Comparison.NEVER
                weights = self._work_out(held.program, tensors, _device_of(live), check)
                self._commit_weights(held, weights, new, onnx_is_current)
                held.is_comparison_due = comparison.is_required(is_due=not held.is_verified)
            self._out_of_range.set_reference(live)
            compares = comparison.is_required(held.is_comparison_due)
            parity = self._compare(infer, held, live, tolerance or held.tolerance) if compares else None
            return Refit(changed, perf_counter() - start, parity)

    def stale(self, model: nn.Module | None) -> bool:
        """Tell whether a model's weights are others than the backend's; see `DeployedModule.stale`."""
        held = self.held_weights()
        with self._guard.lock:
            tensors = held.program.tensors(self._live_model(held, model))
            return bool(self._guard.fault) or fingerprints(tensors) != dict(held.fingerprints)

    def track(self, model: nn.Module | None) -> None:
        """Follow a model from now on, or none; see `DeployedModule.track`."""
        if model is not None:
            self.held_weights().program.tensors(unwrap(model))
        self.tracked = model

    def follow(self, infer: Infer) -> None:
        """Refit from the tracked model, right before a call."""
        self._refittable().check_can_follow()
        self.refit(infer, self.tracked)

    def attach_model(
        self, infer: Infer, model: nn.Module, samples: NamedInputs, tolerance: Tolerances | None, onnx_is_current: bool
    ) -> bool:
        """Make a model the source of later refits, and give the backend its weights now.

        An engine from a cache may hold other weights.

        Args:
            infer: the deployed module's flat call.
            model: that was deployed; it is not kept alive.
            samples: inputs to verify refits on; copied to the CPU.
            tolerance: when they count as equal; None means the precision's.
            onnx_is_current: whether the artifact's ONNX was exported from this model just now.

        Returns:
            whether the backend held other weights.

        Raises:
            RefitError: a weight of the engine does not follow from the model.
        """
        held = self.held_weights()
        held.source = weakref.ref(model)
        held.samples = [(name, [leaf.detach().cpu() for leaf in leaves]) for name, leaves in samples]
        held.tolerance = tolerance
        self._refittable().check_coverage(held.program)
        return bool(self.refit(infer, model, verify=False, onnx_is_current=onnx_is_current).changed)

    def with_one_version(self, answer: Callable[[], R]) -> R:
        """Answer a call that consists of several calls, all with the same weights.

        Args:
            answer: answers the whole call; it runs again if the weights have changed meanwhile.
        """
        while True:
            version = self._weights_version
            if version % 2:
                with self._guard.lock:
                    continue
            try:
                result = answer()
            except ParityError:
                if version == self._weights_version:
                    raise
                continue
            if version == self._weights_version:
                return result

    def held_weights(self) -> _HeldWeights:
        """Return the weights that the backend holds, read from its artifact at the first use.

        Raises:
            RefitError: the module was not deployed to be refitted.
        """
        held = self._held
        if held is not None:
            return held
        self._refittable()
        with self._guard.lock:
            if self._held is None:
                program = WeightProgram.from_json(self._backend.artifact.read(WEIGHTS))
                self._held = _HeldWeights(program, program.fingerprint)
            return self._held

    def _refittable(self) -> RefittableBackend:
        if self._refit_target is not None and WEIGHTS in self._backend.artifact.files:
            return self._refit_target
        raise RefitError(
            self._guard.subject,
            got="a module that was not deployed to be refitted",
            allowed="a module of deploy(..., config=BuildConfig(refittable=True))",
            fix="deploy the model again with that",
        )

    def _first_look(self, held: _HeldWeights, model: nn.Module | None, comparison: _Comparison) -> _FirstLook:
        """Find out whether a refit is needed, without the lock on the process's state."""
        with self._guard.lock:
            live = self._live_model(held, model)
            if self._guard.fault or comparison.is_required(held.is_comparison_due):
                return _FirstLook(needs_refit=True)
            if self._out_of_range.has_other_reference(live):
                return _FirstLook(needs_refit=True)
            snapshot = take_snapshot(held.program.tensors(live))
            return _FirstLook(dict(snapshot.fingerprints) != dict(held.fingerprints), snapshot)

    def _live_model(self, held: _HeldWeights, model: nn.Module | None) -> nn.Module:
        if model is None:
            model = self.tracked or (held.source() if held.source is not None else None)
        if model is None:
            raise RefitError(
                _SUBJECT,
                got="no model, and the one that was deployed is not alive or not known here",
                allowed="a model of the same structure",
                fix="pass it",
            )
        return unwrap(model)

    def _named_samples(self, examples: Sequence[Any]) -> NamedInputs:
        """The tensors of examples by name, on the CPU.

        Raises:
            InputError, DtypeError, ShapeError: as `bind_examples`.
        """
        artifact = self._backend.artifact
        bound = bind_examples(artifact.signature, artifact.profiles, examples, saved_live_values(artifact))
        return list(named_examples(artifact.signature, bound, torch.device("cpu")).items())

    def _work_out(
        self, program: WeightProgram, tensors: Mapping[str, torch.Tensor], near: torch.device, check: bool
    ) -> dict[str, torch.Tensor]:
        """Compute the backend's weights from the model's tensors, on the backend's `weights_device`."""
        device = self._refittable().weights_device(near)
        with exact_arithmetic():  # the caller may have chosen another one for training
            weights = program.run({path: tensor.to(device) for path, tensor in tensors.items()})
        if check:
            _check_finite(program, tensors, weights)
        return weights

    def _commit_weights(
        self,
        held: _HeldWeights,
        weights: Mapping[str, torch.Tensor],
        numbers: Mapping[str, int],
        onnx_is_current: bool,
    ) -> None:
        """Put weights in place of those that the backend holds; the caller has the lock."""
        backend = self._refittable()
        commit = backend.prepare_weights(weights, replace(held.program, fingerprint=numbers), onnx_is_current)
        self._weights_version += 1
        try:
            commit()
        except BaseException as error:
            if backend.weights_incomplete:
                self._refuse_to_answer(held, f"a refit that failed half-way: {error}")
            raise
        finally:
            self._weights_version += 1
        held.fingerprints = numbers
        self._guard.fault = ""
        self._out_of_range.forget()  # what old weights proved

    def _refuse_to_answer(self, held: _HeldWeights, fault: str) -> None:
        self._guard.fault = fault
        held.is_verified = False
        self._refittable().stop()

    def _compare(
        self, infer: Infer, held: _HeldWeights, model: nn.Module, tolerance: Tolerances | None
    ) -> ParityReport:
        """Compare the backend's answers with the model's, and refuse to answer any more if they differ.

        Raises:
            RefitError: they differ.
        """
        report = self._parity(infer, held.samples, model, tolerance)
        try:
            report.raise_if_failed()
        except ParityError as error:
            self._refuse_to_answer(held, "answers after a refit that differ from the model's")
            raise RefitError(
                _SUBJECT,
                got=f"answers that differ from the model's\n{error}",
                allowed="answers like the model's",
                fix=FIX_OF_WRONG_WEIGHTS,
            ) from error
        held.is_verified = True
        held.is_comparison_due = False
        return report

    def _parity(
        self, infer: Infer, samples: NamedInputs, model: nn.Module, tolerance: Tolerances | None
    ) -> ParityReport:
        artifact = self._backend.artifact
        bounds = Bounds.of(tolerance, artifact.precision, self._backend.runtime_kind)
        signature = artifact.signature
        reference = Reference.for_signature(model, signature)
        names = [spec.name for spec in signature.outputs]
        models_device = _device_of(model)
        device = self._refittable().weights_device(models_device)
        if not samples:
            live = saved_live_values(artifact)
            samples = _safe_cases(reference, random_cases(signature, corner_sizes(artifact.profiles), device, live))
        report = ParityReport((), f"PyTorch vs {self._backend.title}, refitted", bounds.tolerance)
        with undisturbed(model):
            cases: list[ParityCase] = []
            for name, leaves in samples:
                inputs = tuple(leaf.to(models_device, copy=True) for leaf in leaves)
                outputs = outputs_by_name(reference(inputs), signature.output, names)
                cases.append(ParityCase(name, inputs, outputs))
            for case in measure_sensitivity(reference, signature, cases, (artifact.precision,)):
                answer = infer([leaf.to(device, copy=True) for leaf in case.inputs])
                sensitivity = case.sensitivity.get(artifact.precision)
                report = report.add(compare(case.outputs, answer, bounds, case=case.name, sensitivity=sensitivity))
        return report


def _safe_cases(reference: Reference, cases: Mapping[str, Sequence[torch.Tensor]]) -> NamedInputs:
    """The invented inputs with which the model can't end the process's CUDA context.

    Raises:
        RefitError: there is none.
    """
    with undisturbed(reference.model):
        unsafe = find_unsafe_inputs(reference, cases)
    if len(unsafe) == len(cases):
        raise RefitError(
            _SUBJECT,
            got=f"no made-up input is safe to verify on: {next(iter(unsafe.values()))}",
            allowed="inputs that the model answers on the CPU, too",
            fix="pass real inputs as examples=[...]",
        )
    return [(name, leaves) for name, leaves in cases.items() if name not in unsafe]


def _device_of(model: nn.Module) -> torch.device:
    """Where a model is; the CPU for one without tensors."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _check_finite(
    program: WeightProgram, tensors: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> None:
    """Refuse weights that would make every answer NaN, before the engine has them.

    An infinity that stands in a buffer of the model, such as a mask, may stay.

    Raises:
        RefitError: names the weights.
    """
    floats = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point() and tensor.numel()}
    if _all_finite(list(floats.values())):
        return
    buffers = {path: tensor for path, tensor in tensors.items() if path not in (program.parameters or ())}
    masks = {path for path, tensor in buffers.items() if tensor.is_floating_point() and bool(tensor.isinf().any())}
    wrong = [
        name
        for name, tensor in floats.items()
        if bool(tensor.isnan().any()) or (bool(tensor.isinf().any()) and not masks & program.sources_of(name))
    ]
    if wrong:
        raise RefitError(
            "weights " + ", ".join(f"'{name}'" for name in wrong[:8]),
            got="NaN or infinity in the engine's type",
            allowed="finite weights; the engine keeps its own",
            fix="correct the model, or pass verify=False to take its weights anyway",
        )


def _all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether all elements are finite.

    Tensors are joined first: one kernel for each of them would take longer to launch than to run.
    """
    results: list[torch.Tensor] = []
    for dtype in {tensor.dtype for tensor in tensors}:
        waiting = [tensor.reshape(-1) for tensor in tensors if tensor.dtype == dtype]
        while waiting:
            group = [waiting.pop()]
            size = len(group[0])
            while waiting and size + len(waiting[-1]) <= _PIECE:
                group.append(waiting.pop())
                size += len(group[-1])
            results.append((group[0] if len(group) == 1 else torch.cat(group)).isfinite().all())
    return not results or bool(torch.stack(results).all())
