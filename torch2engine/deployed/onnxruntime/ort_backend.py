"""`OnnxArtifact` → outputs: the exported ONNX graph on ONNX Runtime's CPU provider.

Enters: checked CPU tensors. Leaves: fresh CPU tensors. Separate from `ort_module` because only this file runs
ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray

from torch2engine.artifact.file_access import write_file
from torch2engine.artifact.files import disk_errors
from torch2engine.artifact.model_graph import is_model_file
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.capture.torch_types import torch_dtype
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.errors import DeviceError
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.deployed.backend import WeightsGuard
from torch2engine.onnx_graph.model_file import replace_weights
from torch2engine.onnx_graph.ort_session import OrtSession

__all__ = ["OnnxRuntimeBackend"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _OpenSession:
    """A session, and the process that opened it: its threads do not survive a fork."""

    session: OrtSession
    process: int


class OnnxRuntimeBackend:
    """An exported model on ONNX Runtime, opened at the first call. Threads may share it.

    Args:
        artifact: the exported model.
        guard: whether its weights may answer.
    """

    title = "ONNX Runtime"
    runtime_kind = "onnxruntime"
    device_type = "cpu"
    device = _CPU
    weights_incomplete = False  # new weights are another model file, which is swapped in at once

    def __init__(self, artifact: OnnxArtifact, guard: WeightsGuard) -> None:
        self.artifact = artifact
        self._guard = guard
        self._lock = ForkSafeLock()  # guards artifact and session, which belong together
        self._opened: _OpenSession | None = None
        self._opening_process: int | None = None

    def move(self, device: torch.device) -> None:
        """Do nothing, since there is one CPU."""

    def check_ready(self) -> None:
        self._guard.check()
        self._refuse_fork()
        self._open_session()

    def _refuse_fork(self) -> None:
        """Refuse a fork before it waits for a lock: a lock that another thread held at the fork is never released."""
        opened = self._opened
        process = self._opening_process if opened is None else opened.process
        if process not in (None, os.getpid()):
            raise DeviceError(
                "ORTModule",
                got=f"a call in the fork {os.getpid()} of process {process}, which called it first",
                allowed="the process that first called it, since ONNX Runtime's threads do not survive a fork",
                fix="start workers with the 'spawn' method, or fork before the first call",
            )

    def run(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        session = self._open_session().session
        signature = self.artifact.signature
        names = [spec.name for spec in signature.inputs]
        outputs = session({name: _array(tensor) for name, tensor in zip(names, inputs, strict=True)})
        return [torch.from_numpy(outputs[spec.name]).to(torch_dtype(spec.dtype)) for spec in signature.outputs]

    def current_artifact(self) -> OnnxArtifact:
        return self.artifact

    def in_state_dict(self, file: str) -> bool:
        return is_model_file(file) or file == WEIGHTS

    def close(self) -> None:
        """Close the session; the next call opens another one."""
        with self._lock:
            self._opened = None
            self._opening_process = None

    def weights_device(self, near: torch.device) -> torch.device:
        return _CPU

    def check_coverage(self, program: WeightProgram) -> None:
        """Accept every weight program, since the program was written with this graph."""

    def check_can_follow(self) -> None:
        """Do nothing: a refit can precede any call."""

    def prepare_weights(
        self, weights: Mapping[str, torch.Tensor], program: WeightProgram, onnx_is_current: bool
    ) -> Callable[[], None]:
        owner = scratch_folder()
        old = self.artifact
        # float32 holds a bfloat16 exactly, and numpy has none.
        arrays = {name: _array(tensor) for name, tensor in weights.items()}
        with disk_errors(owner.path):
            replace_weights(old.checked_onnx_path, owner.path / "model.onnx", arrays)
            write_file(owner.path / WEIGHTS, program.to_json())
        return partial(self._commit_weights, old.replace(folder=owner.path, owner=owner))

    def stop(self) -> None:
        self.close()

    def _commit_weights(self, artifact: OnnxArtifact) -> None:
        with self._lock:  # or a thread that opens a session would keep the old model's
            self.artifact = artifact
            self._opened = None

    def _open_session(self) -> _OpenSession:
        self._opening_process = os.getpid()
        with self._lock:
            if self._opened is None:
                self._opening_process = os.getpid()  # once more: `close` may have been called meanwhile
                artifact = self.artifact  # held, with its files, while the session reads them
                self._opened = _OpenSession(OrtSession(artifact.checked_onnx_path), os.getpid())
            return self._opened


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    # numpy has no bfloat16; Session answers such graphs in float32
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
