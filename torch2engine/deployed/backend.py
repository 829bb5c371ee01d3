"""The contract between a deployed module and the backend that computes for it.

Enters: checked inputs inside a profile, or new weights. Leaves: outputs, or a typed error. Separate because a further
backend is one folder that keeps this contract, and one row in `torch2engine.deployed.backend_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from torch2engine.artifact.artifact import Artifact
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.errors import RefitError
from torch2engine.core.fork_safe_lock import ForkSafeLock

__all__ = ["FIX_OF_WRONG_WEIGHTS", "Backend", "Infer", "RefittableBackend", "WeightsGuard"]

Infer: TypeAlias = "Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]]"
"""Flat inputs in the signature's order → outputs by name."""

FIX_OF_WRONG_WEIGHTS = (
    "refit it with weights that it answers rightly with (or a wider tolerance=), or deploy the model again"
)


class WeightsGuard:
    """The lock on the weights of one backend, and the reason why they must not answer.

    `WeightSync` writes both. A backend reads them before it computes.

    Args:
        subject: the class name of the deployed module, for errors.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        # A thread holds it while it changes the weights, or reads them for a copy. It is the first lock that such a
        # thread takes.
        self.lock = ForkSafeLock(reentrant=True)
        self.fault = ""

    def check(self) -> None:
        """Refuse to answer with weights that were found wrong.

        Raises:
            RefitError: they were.
        """
        if self.fault:
            raise RefitError(self.subject, got=self.fault, allowed="right weights", fix=FIX_OF_WRONG_WEIGHTS)

    @contextmanager
    def weights_locked(self) -> Generator[None]:
        """Let no other thread change the weights meanwhile.

        Raises:
            RefitError: the weights were found wrong.
        """
        with self.lock:
            self.check()
            yield


class Backend(Protocol):
    """The part of a deployed module that computes. Threads may share it.

    A module makes it from an artifact, and uses it only from the first call on. It never holds the module.
    """

    @property
    def artifact(self) -> Artifact:
        """The model, as it was deployed or loaded. Its signature and its profiles never change."""
        ...

    @property
    def title(self) -> str:
        """The name of the runtime, for people, e.g. "ONNX Runtime"."""
        ...

    @property
    def runtime_kind(self) -> str:
        """The runtime whose rounding the answers have, for `sensitivity_factor`; "" if nobody has measured it."""
        ...

    @property
    def device_type(self) -> str:
        """The type of the devices that it runs on, as PyTorch spells it, e.g. "cuda"."""
        ...

    @property
    def device(self) -> torch.device | None:
        """Where inputs must be; None until the first call binds it."""
        ...

    def move(self, device: torch.device) -> None:
        """Run on another device of its type from now on."""
        ...

    def check_ready(self) -> None:
        """Refuse a process or state in which nothing may be computed, before any work is done.

        Raises:
            DeviceError, InputError, RefitError: it is one.
        """
        ...

    def run(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        """Compute the outputs of one call.

        Args:
            inputs: in the signature's order and dtypes, contiguous, on the backend's device.
            profile: the index of the profile that holds their sizes.

        Returns:
            fresh tensors in the signature's order and dtypes, ready on the caller's current stream.
        """
        ...

    def current_artifact(self) -> Artifact:
        """Return the artifact to save or copy, with everything that calls and refits have added."""
        ...

    def in_state_dict(self, file: str) -> bool:
        """Tell whether a file of the artifact goes into a state_dict."""
        ...


@runtime_checkable
class RefittableBackend(Backend, Protocol):
    """A backend whose weights can be replaced."""

    @property
    def weights_incomplete(self) -> bool:
        """Whether a refit that failed has left some weights old and some new."""
        ...

    def weights_device(self, near: torch.device) -> torch.device:
        """Where new weights must be, for a model that is on device `near`."""
        ...

    def check_coverage(self, program: WeightProgram) -> None:
        """Refuse a weight program that lacks a replaceable weight.

        Raises:
            RefitError: names such weights.
        """
        ...

    def check_can_follow(self) -> None:
        """Refuse a call that no refit can precede.

        Raises:
            InputError: a CUDA graph is being captured.
        """
        ...

    def prepare_weights(
        self, weights: Mapping[str, torch.Tensor], program: WeightProgram, onnx_is_current: bool
    ) -> Callable[[], None]:
        """Make everything ready for new weights.

        Args:
            weights: by name, on `weights_device`; they may be the memory of the model's parameters.
            program: how they follow from the model, with the model's fingerprints.
            onnx_is_current: whether the artifact's own ONNX was exported with these weights.

        Returns:
            a function that puts them in place. If it fails and `weights_incomplete` is true, no call may be answered
            any more.
        """
        ...

    def stop(self) -> None:
        """Let no later call compute before it has read the guard."""
        ...
