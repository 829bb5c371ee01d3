"""How an engine on a GPU takes other weights: what `TRTModule` adds to `refit`.

Enters: weights on the engine's device. Leaves: an engine that has them, and an artifact that has them before it is
saved or sent anywhere. Apart from `module`, which calls engines and knows nothing of weights.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import InstallationError, RefitError
from torch2engine.modules.refit import Refittable
from torch2engine.modules.trt.session import EngineSession, not_prepared

__all__ = ["RefittableEngine", "require_cuda"]


def require_cuda() -> None:
    """Make sure that PyTorch can use a GPU.

    Raises:
        InstallationError: a CPU build of PyTorch, or no GPU.
    """
    if not torch.cuda.is_available():
        raise InstallationError(
            "PyTorch",
            got=f"torch {torch.__version__} sees no CUDA device",
            allowed="TRTModule works on CUDA tensors",
            fix="install a CUDA build of torch on a machine with a GPU, or deploy with runtime='onnxruntime'",
        )


class RefittableEngine(Refittable[EngineArtifact]):
    """The part of TRTModule that has to do with weights."""

    _device: torch.device | None
    _live: EngineSession | None
    _program_now: WeightProgram | None  # of weights that are in the live engine and not in the artifact
    _onnx_agrees: bool  # whether the ONNX beside the plan holds the live engine's weights, where that is newer
    _binding: threading.Lock

    @abstractmethod
    def bind(self, device: torch.device | str | None = None) -> RefittableEngine:
        """Make the engine live."""

    @abstractmethod
    def _check_process(self) -> None:
        """Refuse a fork of the process that made the engine."""

    def _settle(self) -> None:
        """Put the weights of the last refit into the artifact.

        Raises:
            DeviceError: this is a fork of the process that has them.
        """
        live, program = self._live, self._program_now
        if live is None or program is None:
            return
        live.engine.check_process()
        self.__dict__["_artifact"] = self._artifact.refitted(
            live.engine.serialized(), program.to_json(), self._onnx_agrees
        )
        self.__dict__["_program_now"] = None

    def _check_follows(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise not_prepared("of a module that tracks a model", "end it with track(None) first")

    def _weights_device(self, near: torch.device) -> torch.device:
        if self._device is None and near.type == "cuda":
            return near
        require_cuda()
        return self._device or torch.device("cuda", torch.cuda.current_device())

    def _check_coverage(self, program: WeightProgram) -> None:
        live = self.bind()._live
        assert live is not None, "bind has made it"
        live.engine.check_weights(program.weights, program.fixed)

    def _offer(self, new: Mapping[str, torch.Tensor], program: WeightProgram) -> Callable[[], None]:
        self._check_process()
        live, device = self._live, next((one.device for one in new.values()), self._device)
        if live is None:  # seen by nobody until it has the weights
            assert device is not None, "an engine that can be refitted has weights"
            live = EngineSession(self._artifact, device, self._runtime_config)
        live.check_refittable()
        return partial(self._put, live, new, program)

    def _put(self, live: EngineSession, new: Mapping[str, torch.Tensor], program: WeightProgram) -> None:
        live.refit(new)
        with self._binding:
            if self._live is not None and self._live is not live:
                raise RefitError(
                    "refit",
                    got="another thread has bound the module meanwhile",
                    allowed="a module that stays where it is during a refit",
                    fix="refit it again",
                )
            self._live, self._device = live, live.device
            self.__dict__["_program_now"] = program
            self.__dict__["_onnx_agrees"] = False

    def own(
        self, model: nn.Module, samples: Sequence[tuple[str, Sequence[torch.Tensor]]], tolerance: Tolerance | None
    ) -> None:
        super().own(model, samples, tolerance)
        self.__dict__["_onnx_agrees"] = True  # it was exported from this model just now

    own.__doc__ = Refittable.own.__doc__

    def own_earlier(
        self, model: nn.Module, samples: Sequence[tuple[str, Sequence[torch.Tensor]]], tolerance: Tolerance | None
    ) -> bool:
        """As `own`, where plan and ONNX are of one earlier deploy; whether the weights were others."""
        super().own(model, samples, tolerance)
        return self._program_now is not None

    @property
    def _is_spoilt(self) -> bool:
        live = self._live
        return live is not None and live.weights_incomplete

    def _stop(self) -> None:
        with self._binding:
            if self._live is not None and self._live.is_captured:
                self._live.invalidate()  # the user's graphs need it until trim()
            else:
                self._reset()  # the next call finds no engine, looks why, and says so
