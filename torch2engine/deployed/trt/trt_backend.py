"""`EngineArtifact` → outputs: an engine on PyTorch's memory and streams, with the weights of the last refit.

Enters: checked CUDA tensors on the caller's current stream, or new weights. Leaves: fresh CUDA tensors, ready on that
stream, and an artifact with the present weights to save or send. Separate from `engine_session`, which ends and begins
anew with every device, while the backend stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.model_graph import is_model_file
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import DeviceError, InstallationError, RefitError
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.deployed.backend import WeightsGuard
from torch2engine.deployed.direct_call import DirectCall
from torch2engine.deployed.trt.engine_session import EngineSession, not_prepared
from torch2engine.trt.bindings import PRODUCT_NAMES

__all__ = ["TensorRTBackend", "require_cuda"]


def require_cuda() -> None:
    """Make sure that PyTorch can use a GPU.

    Raises:
        InstallationError: a CPU build of PyTorch, or no GPU.
    """
    if not torch.cuda.is_available():
        raise InstallationError(
            "PyTorch",
            got=f"torch {torch.__version__}, which sees no CUDA device",
            allowed="a CUDA device, since TRTModule works on CUDA tensors",
            fix="install a CUDA build of torch on a machine with a GPU",
        )


@dataclass(frozen=True)
class _UnsavedWeights:
    """Weights that the live engine has and the artifact has not.

    Args:
        program: how they follow from the model.
        onnx_is_current: whether the ONNX beside the plan holds them.
    """

    program: WeightProgram
    onnx_is_current: bool


class TensorRTBackend:
    """An engine, live on one device after the first call. Threads may share it.

    Args:
        artifact: the engine.
        runtime_config: how it answers.
        guard: whether its weights may answer.
        device: a CUDA device. None, or a device without an index, binds to the first input's device.

    Raises:
        DeviceError: no CUDA device.
    """

    device_type = "cuda"

    def __init__(
        self,
        artifact: EngineArtifact,
        runtime_config: RuntimeConfig,
        guard: WeightsGuard,
        device: torch.device | str | None = None,
    ) -> None:
        target = None if device is None else cuda_device(device)
        self.artifact = artifact
        self.direct_call = DirectCall.of(artifact.signature)
        self.device = target if target is not None and _has_index(target) else None
        self.session: EngineSession | None = None  # the fast path of every call reads it
        self._runtime_config = runtime_config
        self._guard = guard
        self._unsaved_weights: _UnsavedWeights | None = None
        self._binding = ForkSafeLock()  # guards session and device

    @property
    def title(self) -> str:
        hardware = self.artifact.hardware
        return f"{PRODUCT_NAMES[hardware.flavour]} {hardware.flavour_version}"

    @property
    def runtime_kind(self) -> str:
        return self.artifact.hardware.flavour

    def bind(self, device: torch.device | str | None = None) -> EngineSession:
        """Make the engine live on a device now.

        Args:
            device: a CUDA device; None for the one that the backend has, else PyTorch's current device.

        Raises:
            DeviceError, InstallationError, ArtifactError, RefitError: as `TRTModule.bind`.
        """
        self.check_process()
        target = self.device if device is None else cuda_device(device)
        require_cuda()
        if target is None or not _has_index(target):
            target = torch.device("cuda", torch.cuda.current_device())
        with self._guard.weights_locked(), self._binding:
            session = self.session
            if session is None or session.device != target:
                self._write_back_weights()
                session = self._start_session(target)
            return session

    def move(self, device: torch.device) -> None:
        self.bind(device)

    def check_process(self) -> None:
        """Refuse calls in a process that was forked from the one that made the engine live.

        Raises:
            DeviceError: this process is a fork of that one.
        """
        session = self.session
        if session is not None:
            session.engine.check_process()

    def check_ready(self) -> None:
        self._guard.check()
        self.check_process()
        if self.session is None and torch.cuda.is_current_stream_capturing():
            raise not_prepared("that nothing prepared: the engine is not on the GPU yet")

    def run(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        return self._session_on(inputs[0].device).run(profile, inputs)

    def current_artifact(self) -> EngineArtifact:
        """Return the artifact with the kernels that TensorRT-RTX compiled so far, and the weights of the last refit."""
        self._write_back_weights()
        session = self.session
        if session is not None and session.is_usable and (kernels := session.engine.runtime_cache()):
            self.artifact = self.artifact.with_runtime_cache(kernels)
        return self.artifact

    def in_state_dict(self, file: str) -> bool:
        return not is_model_file(file)

    @property
    def memory_bytes(self) -> int:
        """Device memory that the engine's contexts work in; 0 until it is live."""
        session = self.session
        return 0 if session is None else session.memory_bytes

    def trim(self) -> None:
        """Wait for calls in flight and give back working memory, contexts and CUDA graphs."""
        session = self.session
        if session is not None:
            session.engine.check_process()
            session.trim()

    @property
    def weights_incomplete(self) -> bool:
        session = self.session
        return session is not None and session.weights_incomplete

    def weights_device(self, near: torch.device) -> torch.device:
        if self.device is None and near.type == "cuda":
            return near
        require_cuda()
        return self.device or torch.device("cuda", torch.cuda.current_device())

    def check_coverage(self, program: WeightProgram) -> None:
        self.bind().engine.check_weights(program.weights, program.fixed)

    def check_can_follow(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise not_prepared("of a module that tracks a model", "end it with track(None) first")

    def prepare_weights(
        self, weights: Mapping[str, torch.Tensor], program: WeightProgram, onnx_is_current: bool
    ) -> Callable[[], None]:
        self.check_process()
        session = self.session
        if session is None:  # seen by nobody until it has the weights
            device = next((weight.device for weight in weights.values()), self.device)
            assert device is not None, "an engine that can be refitted has weights"
            session = EngineSession(self.artifact, device, self._runtime_config)
        session.check_refittable()
        return partial(self._commit_weights, session, weights, _UnsavedWeights(program, onnx_is_current))

    def stop(self) -> None:
        with self._binding:
            if self.session is not None and self.session.is_captured:
                self.session.invalidate()  # the user's graphs need it until trim()
            else:
                self.session = None  # the next call finds no engine, and reads the guard
                self._unsaved_weights = None

    def _commit_weights(
        self, session: EngineSession, weights: Mapping[str, torch.Tensor], unsaved_weights: _UnsavedWeights
    ) -> None:
        session.refit(weights)
        with self._binding:
            if self.session is not None and self.session is not session:
                raise RefitError(
                    "refit",
                    got="a module that another thread has bound meanwhile",
                    allowed="a module that stays where it is during a refit",
                    fix="refit it again",
                )
            self.session = session
            self.device = session.device
            self._unsaved_weights = unsaved_weights

    def _write_back_weights(self) -> None:
        """Put the weights of the last refit into the artifact.

        Raises:
            DeviceError: this is a fork of the process that has them.
        """
        session = self.session
        unsaved = self._unsaved_weights
        if session is None or unsaved is None:
            return
        session.engine.check_process()
        plan = session.engine.serialized()
        self.artifact = self.artifact.refitted(plan, unsaved.program.to_json(), unsaved.onnx_is_current)
        self._unsaved_weights = None

    def _session_on(self, device: torch.device) -> EngineSession:
        """Return the live engine, made on this device if there is none yet."""
        session = self.session
        if session is None:
            require_cuda()
            with self._binding:
                session = self.session
                if session is None:
                    self._guard.check()
                    session = self._start_session(device)
        if session.device != device:
            raise DeviceError(
                "TRTModule",
                got=f"inputs on {device}",
                allowed=f"{session.device}, to which another thread has just bound the module",
                fix="use a copy.deepcopy of the module for each device",
            )
        return session

    def _start_session(self, device: torch.device) -> EngineSession:
        """Make the engine live; the caller holds the lock."""
        session = EngineSession(self.artifact, device, self._runtime_config)
        self.session = session
        self.device = device
        return session


def cuda_device(device: torch.device | str) -> torch.device:
    """Return a CUDA device.

    Raises:
        DeviceError: it is another one.
    """
    target = torch.device(device)
    if target.type != "cuda":
        raise DeviceError(
            "TRTModule",
            got=f"device {target}",
            allowed="a CUDA device",
            fix="deploy with runtime='onnxruntime' for the CPU",
        )
    return target


def _has_index(device: torch.device) -> bool:
    """Tell whether two devices are the same; "cuda" without a number may be any GPU."""
    return cast("int | None", device.index) is not None
