"""Live weights → a deployed module: `refit`, `stale` and `track`.

Enters: the PyTorch module whose weights have changed. Leaves: the deployed module with them, without an export or a
build. A room of its own because what makes a refit right is the same for an engine and for ONNX Runtime: that every
weight is worked out anew from the module's own, and that nothing else answers meanwhile or afterwards.
"""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from torch import nn

from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.capture.fingerprint import WeightSnapshot, fingerprints, take_snapshot
from torch2engine.capture.process_state import exact_arithmetic, process_state_lock
from torch2engine.capture.reference import Reference, outputs_by_name
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import Tolerance, of_kind
from torch2engine.core.errors import ParityError, RefitError, ShapeError
from torch2engine.modules.benchmark import Benchmarked, made_inputs
from torch2engine.modules.deployed import AnyArtifact
from torch2engine.modules.out_of_range import OutOfRange
from torch2engine.modules.refit_checks import check_finite, device_of
from torch2engine.parity.compare import ParityReport, compare

__all__ = ["Refit", "Refittable"]

_SUBJECT = "refit"
_REDEPLOY = "refit it with weights that it answers rightly with (or a wider tolerance=), or deploy the model again"


@dataclass(frozen=True)
class Refit:
    """What a refit did.

    Args:
        changed: paths of the parameters and buffers whose values were others than the engine's; nothing was done
            where there are none.
        seconds: that it took, verification included.
        parity: the comparison with the model, if it was made.
    """

    changed: tuple[str, ...]
    seconds: float
    parity: ParityReport | None = None


@dataclass
class _Weights:
    """What a deployed module knows of the weights that it holds."""

    program: WeightProgram
    held: Mapping[str, int]  # fingerprints
    source: weakref.ReferenceType[nn.Module] | None = None
    samples: Sequence[tuple[str, Sequence[torch.Tensor]]] = ()
    tolerance: Tolerance | None = None
    is_verified: bool = False
    is_due: bool = False  # a comparison that was to be made and did not end
    broken: str = ""


class Refittable(Benchmarked[AnyArtifact]):
    """A deployed module that takes other weights, if it was deployed with BuildConfig(refittable=True)."""

    _weights: _Weights | None
    _tracked: nn.Module | None
    _turn: int  # odd while weights are being replaced
    # Held by whoever changes the weights, or reads them for a copy; the first of all locks that a thread takes.
    _refitting: threading.RLock

    def _forget_weights(self) -> None:
        """Know nothing but the artifact, and follow no model."""
        self.__dict__["_weights"] = None
        self.__dict__["_tracked"] = None
        self.__dict__["_turn"] = 0
        if self.__dict__.get("_refitting") is None:
            self.__dict__["_refitting"] = threading.RLock()

    def _known(self) -> _Weights:
        weights = self._weights
        if weights is not None:
            return weights
        if WEIGHTS not in self._artifact.files:
            raise RefitError(
                type(self).__name__,
                got="it was not deployed to be refitted",
                allowed="a module of deploy(..., config=BuildConfig(refittable=True))",
                fix="deploy the model again with that",
            )
        with self._refitting:
            if self._weights is None:
                program = WeightProgram.from_json(self._artifact.read(WEIGHTS))
                self.__dict__["_weights"] = _Weights(program, program.fingerprint)
            return cast("_Weights", self._weights)

    @contextmanager
    def _settled(self) -> Generator[None]:
        """Keep the weights as they are meanwhile, and refuse wrong ones.

        Raises:
            RefitError: they were found wrong.
        """
        with self._refitting:
            self._check_weights()
            yield

    def set_extra_state(self, state: Any) -> None:
        with self._refitting:
            super().set_extra_state(state)
            self._forget_weights()

    set_extra_state.__doc__ = Benchmarked.set_extra_state.__doc__

    def __getstate__(self) -> dict[str, Any]:
        with self._settled():
            return {**super().__getstate__(), "_weights": None, "_tracked": None, "_refitting": None}

    def save(self, path: str | Path, overwrite: bool = True) -> Path:
        with self._settled():
            return super().save(path, overwrite)

    save.__doc__ = Benchmarked.save.__doc__

    def get_extra_state(self) -> dict[str, Any]:
        with self._settled():
            return super().get_extra_state()

    get_extra_state.__doc__ = Benchmarked.get_extra_state.__doc__

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._follow()
        return super()._answer(args, kwargs)

    def _follow(self) -> None:
        """Refit before a call, if a model is tracked and has changed."""
        if self._tracked is not None:
            self._check_follows()
            self.refit(self._tracked)

    def _check_follows(self) -> None:
        """Refuse a call that can't be preceded by a refit."""

    def refit(
        self, model: nn.Module | None = None, *, verify: bool | None = None, tolerance: Tolerance | None = None
    ) -> Refit:
        """Take over a model's weights as they are now.

        What the engine holds follows from parameters and buffers as it did when it was exported: BatchNorm folded into
        convolutions, weights cast, transposed, tied, parametrised. Calls in flight end with the old weights, later ones
        see the new; other threads' calls wait meanwhile. The next call of each shape makes its context, and its CUDA
        graph, anew.

        Args:
            model: of the structure that was deployed, on any device; by default the one that was deployed (or is
                tracked), as long as it lives. It is only read.
            verify: True compares the answers with the model's on the inputs that deploy used (random ones, for a module
                that was loaded); False trusts them; None does so the first time, and afterwards only looks whether all
                weights are finite. Until a comparison has passed, calls in other threads may see the new weights.
            tolerance: when the answers count as equal; by default deploy's, and the precision's for a module that was
                loaded or that a metric judged.

        Returns:
            what changed. Where nothing did, nothing is done.

        Raises:
            RefitError: not deployed to be refitted; a parameter or buffer is missing or has another shape or dtype, or
                is not tied any more; a weight is not finite in the engine's type: the old weights stay. Or the answers
                differ from the model's, or TensorRT failed half-way: every call then raises it, until a refit succeeds.
            InputError: no module, or a tolerance that is none.
            DeviceError, InstallationError, ArtifactError: the engine can't be made live, or the new weights not stored.
        """
        start = perf_counter()
        weights = self._known()
        if tolerance is not None:
            of_kind("tolerance", tolerance, Tolerance)
        seen = None
        if not verify:
            due, seen = self._is_due(weights, model, verify)
            if not due:
                return Refit((), perf_counter() - start)
        with process_state_lock(), self._refitting:  # in this order, which others take too
            live = self._live_model(weights, model)
            tensors = weights.program.tensors(live)
            now = take_snapshot(tensors, seen).numbers
            changed = tuple(path for path, number in now.items() if number != weights.held.get(path))
            if changed or weights.broken:
                due = not weights.is_verified if verify is None else verify
                self._replace(weights, tensors, now, device_of(live), check=verify is not False)
                weights.is_due = due
            self._refer_to(live)
            compares = verify or (verify is None and weights.is_due)
            parity = self._compare(weights, live, tolerance or weights.tolerance) if compares else None
            return Refit(changed, perf_counter() - start, parity)

    def _is_due(
        self, weights: _Weights, model: nn.Module | None, verify: bool | None
    ) -> tuple[bool, WeightSnapshot | None]:
        """Whether a refit has anything to do, and what was seen of the weights, if it was looked at them."""
        with self._refitting:
            live = self._live_model(weights, model)
            if weights.broken or (verify is None and weights.is_due):
                return True, None
            if self._reference is not None and self._reference is not live:
                return True, None
            seen = take_snapshot(weights.program.tensors(live))
            return dict(seen.numbers) != dict(weights.held), seen

    def _refer_to(self, model: nn.Module) -> None:
        """Have sizes out of range answered with the weights that the others are answered with."""
        if self._reference is not None and self._reference is not model:
            self.__dict__["_reference"] = model
            self._outside = OutOfRange(self._runtime_config.out_of_range, model)

    def _answer_outside(
        self, leaves: Sequence[torch.Tensor], sizes: Mapping[str, int], error: ShapeError
    ) -> dict[str, torch.Tensor]:
        while True:  # until all chunks of one answer are answered with the same weights
            turn = self._turn
            if turn % 2:
                with self._refitting:
                    continue
            try:
                answer = super()._answer_outside(leaves, sizes, error)
            except ParityError:
                if turn == self._turn:
                    raise
                continue
            if turn == self._turn:
                return answer

    def stale(self, model: nn.Module | None = None) -> bool:
        """Whether a model's weights are others than this module's, by the values of all that count.

        Exact for whatever may change parameters and registered buffers: optimizer steps, load_state_dict, moving
        averages, running statistics, assignment to `.data`, writes through it. Version counters are not asked, since
        they miss the last. It reads every weight once and waits for the GPU.

        Args:
            model: as for `refit`.

        Raises:
            RefitError, InputError: as `refit`.
        """
        weights = self._known()
        with self._refitting:
            tensors = weights.program.tensors(self._live_model(weights, model))
            return bool(weights.broken) or fingerprints(tensors) != dict(weights.held)

    def track(self, model: nn.Module | None) -> None:
        """Follow a model: each call of this module (not of `infer`) looks whether it is stale, and refits it first.

        Args:
            model: as for `refit`; it is kept alive. None ends it. Copies of this module follow nothing.

        Raises:
            RefitError, InputError: as `refit`.
        """
        if model is not None:
            weights = self._known()
            weights.program.tensors(unwrap(model))
        self.__dict__["_tracked"] = model

    def own(
        self, model: nn.Module, samples: Sequence[tuple[str, Sequence[torch.Tensor]]], tolerance: Tolerance | None
    ) -> None:
        """Settle a module that was just deployed: what it came from, and that its engine holds that one's weights.

        An engine from a cache may hold other ones.

        Args:
            model: that was deployed.
            samples: inputs by the case's name, to verify refits on; copied to the CPU.
            tolerance: when they count as equal; None means the precision's.

        Raises:
            RefitError: a weight of the engine does not follow from the model.
        """
        weights = self._known()
        weights.source = weakref.ref(model)
        weights.samples = [(name, [leaf.detach().cpu() for leaf in leaves]) for name, leaves in samples]
        weights.tolerance = tolerance
        self._check_coverage(weights.program)
        self.refit(model, verify=False)

    @abstractmethod
    def _check_coverage(self, program: WeightProgram) -> None:
        """Refuse a program that does not give every weight that can be given."""

    @abstractmethod
    def _offer(self, new: Mapping[str, torch.Tensor], program: WeightProgram) -> Callable[[], None]:
        """Make everything ready for these weights, which may be a parameter's own memory.

        Returns:
            what puts them in place; if that fails and `_is_spoilt`, nothing must answer any more.
        """

    @abstractmethod
    def _weights_device(self, near: torch.device) -> torch.device:
        """Where `_offer` wants them, for a model that is there."""

    @property
    def _is_spoilt(self) -> bool:
        """Whether a refit that failed has left the weights half-way."""
        return False

    def _stop(self) -> None:
        """Have every later call look at `_check_weights`."""

    def _check_weights(self) -> None:
        """Refuse to answer with weights that were found wrong."""
        weights = self._weights
        if weights is not None and weights.broken:
            raise RefitError(type(self).__name__, got=weights.broken, allowed="right ones", fix=_REDEPLOY)

    def _live_model(self, weights: _Weights, model: nn.Module | None) -> nn.Module:
        if model is None:
            model = self._tracked or (weights.source() if weights.source is not None else None)
        if model is None:
            raise RefitError(
                _SUBJECT,
                got="no model was given, and the one that was deployed is not alive or not known here",
                allowed="a model of the same structure",
                fix="pass it",
            )
        return unwrap(model)

    def _replace(
        self,
        weights: _Weights,
        tensors: Mapping[str, torch.Tensor],
        now: Mapping[str, int],
        near: torch.device,
        check: bool,
    ) -> None:
        device, program = self._weights_device(near), weights.program
        with exact_arithmetic():  # whatever the caller has chosen for training
            new = program.run({path: tensor.to(device) for path, tensor in tensors.items()})
        if check:
            check_finite(program, tensors, new)
        put = self._offer(new, replace(program, fingerprint=now))
        self.__dict__["_turn"] += 1
        try:
            put()
        except BaseException as error:
            if self._is_spoilt:
                self._break(weights, f"its refit failed half-way: {error}")
            raise
        finally:
            self.__dict__["_turn"] += 1
        weights.held, weights.broken = now, ""
        self._outside = OutOfRange(self._runtime_config.out_of_range, self._reference)  # old weights proved old things

    def _break(self, weights: _Weights, reason: str) -> None:
        weights.broken, weights.is_verified = reason, False
        self._stop()

    def _compare(self, weights: _Weights, model: nn.Module, bounds: Tolerance | None) -> ParityReport:
        """Hold the answers against the model's.

        Raises:
            RefitError: they differ.
        """
        signature = self.signature
        reference = Reference(model, signature.parameters, signature.preprocess)
        report = ParityReport((), f"PyTorch vs {self.runtime}, refitted", bounds or Tolerance.default(self.precision))
        names = [spec.name for spec in signature.outputs]
        there = device_of(model)
        here = self._weights_device(there)
        samples = weights.samples or list(made_inputs(self, here).items())
        with undisturbed(model):
            for name, leaves in samples:
                flat = reference([leaf.to(there, copy=True) for leaf in leaves])
                expected = outputs_by_name(flat, signature.output, names)
                answer = self.infer([leaf.to(here, copy=True) for leaf in leaves])
                report = report.add(compare(expected, answer, report.tolerance, case=name))
        try:
            report.raise_if_failed()
        except ParityError as error:
            self._break(weights, "its answers after a refit differ from the model's")
            raise RefitError(
                _SUBJECT,
                got=f"the answers differ from the model's\n{error}",
                allowed="answers like the model's",
                fix=_REDEPLOY,
            ) from error
        weights.is_verified, weights.is_due = True, False
        return report
