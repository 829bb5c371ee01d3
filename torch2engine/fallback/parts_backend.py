"""The backend of models in parts: engines in turn with PyTorch.

Enters: checked inputs. Leaves: fresh outputs. Separate from `parts_module` because it keeps the contract of
`torch2engine.deployed.backend`, so that calls, copies, saving and refits are those of every deployed module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.artifact.saved_folder import PROGRAM, WEIGHTS
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.deployed.backend import WeightsGuard
from torch2engine.deployed.direct_call import DirectCall
from torch2engine.deployed.torch_state import dual_level, modes
from torch2engine.fallback.parts_session import PartsSession
from torch2engine.fallback.program_file import replace_tensors
from torch2engine.fallback.run_record import RunRecord
from torch2engine.trt.bindings import PRODUCT_NAMES

__all__ = ["PartsBackend"]


class PartsBackend:
    """A model in engines and PyTorch, opened at the first call. Threads may share it.

    Args:
        artifact: the model.
        guard: whether its weights may answer.
        runtime_config: how TensorRT engines answer.
        device: where to run; None for the CPU, or with TensorRT engines for the first input's GPU.
    """

    def __init__(
        self, artifact: PartsArtifact, guard: WeightsGuard, runtime_config: RuntimeConfig, device: torch.device | None
    ) -> None:
        hardware = artifact.hardware
        self.artifact = artifact
        self.record = RunRecord()
        self.runtime_kind = "onnxruntime" if hardware is None else hardware.flavour
        self.title = f"{'ONNX Runtime' if hardware is None else PRODUCT_NAMES[hardware.flavour]} and PyTorch"
        self.device_type = "cuda" if hardware is not None or (device is not None and device.type == "cuda") else "cpu"
        self.device = torch.device("cpu") if self.device_type == "cpu" else device
        self.direct_call = DirectCall.of(artifact.signature)
        self.weights_incomplete = False
        self._guard = guard
        self._runtime_config = runtime_config
        self._lock = ForkSafeLock()
        self._live: PartsSession | None = None
        self._weights_version = 0  # odd while weights are being replaced
        self._new_weights: Mapping[str, torch.Tensor] | None = None  # weights that the artifact does not hold yet
        self._new_program: WeightProgram | None = None

    def move(self, device: torch.device) -> None:
        """Run on another device of its type from now on."""
        artifact = self.current_artifact()
        with self._lock:
            self.artifact = artifact
            self._live = None
            self.device = device

    def check_ready(self) -> None:
        self._guard.check()

    def bind(self, device: torch.device) -> PartsSession:
        """Make the engines live now rather than at the first call, on the device that the module has, or else this one.

        Raises:
            ArtifactError, InstallationError: as `PartsSession`.
        """
        live = self._live
        if live is not None:
            return live
        with self._lock:
            if self._live is None:
                self.record = RunRecord()
                self._live = PartsSession(self.artifact, self.device or device, self._runtime_config, self.record)
                self.device = self._live.device
            return self._live

    def try_fast_path(self, leaves: Sequence[Any]) -> list[torch.Tensor] | None:
        """Answer inputs that need no cast, copy or refusal, at shapes that were answered before; else None.

        Args:
            leaves: one value for each input; a caller may have passed anything.
        """
        live = self._live
        version = self._weights_version
        if live is None or version % 2 or self.weights_incomplete or self._guard.fault:
            return None
        if torch.is_autocast_enabled(self.device_type) or dual_level() >= 0 or modes():
            return None
        if not live.is_plain_call(leaves):
            return None
        with torch.no_grad():
            outputs = live.answer(leaves)
        return outputs if version == self._weights_version else None

    def run(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        device = inputs[0].device
        live = self.bind(device)
        while True:
            version = self._weights_version
            if version % 2:
                with self._guard.lock:  # until the refit has ended
                    continue
            if torch.is_autocast_enabled(device.type):
                with torch.autocast(device.type, enabled=False):
                    outputs = live.answer(inputs)
            else:
                outputs = live.answer(inputs)
            if version == self._weights_version:  # otherwise some parts had old weights and some had new ones
                live.remember(inputs)
                return outputs

    def trim(self) -> None:
        """Wait for calls in flight and give back working memory, contexts and CUDA graphs."""
        live = self._live
        if live is not None:
            live.trim()

    def current_artifact(self) -> PartsArtifact:
        with self._lock:
            live = self._live
            if live is None:
                return self.artifact
            files: dict[str, bytes] = {}
            if self._new_weights is not None and self._new_program is not None:
                files[PROGRAM] = replace_tensors(self.artifact.read(PROGRAM), f"{self.artifact}", self._new_weights)
                files[WEIGHTS] = self._new_program.to_json()
            engines = live.changed_engines()
            return self.artifact.with_changes(files, engines) if files or engines else self.artifact

    def in_state_dict(self, file: str) -> bool:
        return True

    def weights_device(self, near: torch.device) -> torch.device:
        if self.device is not None:
            return self.device
        return near if near.type == "cuda" else torch.device("cuda", torch.cuda.current_device())

    def check_coverage(self, program: WeightProgram) -> None:
        """Accept every weight program, since the program was written with this graph."""

    def check_can_follow(self) -> None:
        """Do nothing: a refit can precede any call."""

    def prepare_weights(
        self, weights: Mapping[str, torch.Tensor], program: WeightProgram, onnx_is_current: bool
    ) -> Callable[[], None]:
        copies = {
            path: (torch.view_as_complex(tensor) if program.sources[path][1].is_complex else tensor).detach().clone()
            for path, tensor in weights.items()
        }
        device = self.weights_device(torch.device("cpu"))
        return partial(self._commit_weights, self.bind(device), copies, program)

    def _commit_weights(self, live: PartsSession, weights: Mapping[str, torch.Tensor], program: WeightProgram) -> None:
        self._weights_version += 1
        self.weights_incomplete = True
        try:
            live.refit(weights)
            self.weights_incomplete = False
        finally:
            self._weights_version += 1
        self._new_weights = weights
        self._new_program = program

    def stop(self) -> None:
        """Do nothing: every call reads the guard."""
