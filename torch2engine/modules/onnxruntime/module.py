"""`OnnxArtifact` → `ORTModule`: the exported graph on the CPU, called like the model.

Enters: CPU tensors. Leaves: fresh CPU tensors. A room of its own so that a machine without a GPU keeps the interface,
the checks and the errors of TRTModule.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import nn

from torch2engine.artifact.file_access import write_file
from torch2engine.artifact.files import disk_errors
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.capture.torch_types import torch_dtype
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import DeviceError
from torch2engine.modules.refit import Refittable
from torch2engine.modules.warmup_inputs import zeros
from torch2engine.onnx_graph.model_file import replace_weights
from torch2engine.onnx_graph.session import OrtSession
from torch2engine.onnx_graph.strict_rounding import write_strictly_rounded

if TYPE_CHECKING:
    from torch2engine.pipeline.report import DeployReport

__all__ = ["ORTModule", "StrictModule"]

_CPU = torch.device("cpu")


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    # numpy has no bfloat16; OrtSession answers such graphs in float32
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class ORTModule(Refittable[OnnxArtifact]):
    """The exported model on ONNX Runtime's CPU provider, in the model's place.

    Args:
        artifact: the exported model.
        report: what deploy() found, or None.
        runtime_config: only out_of_range means something here.
        reference: as for `DeployedModule`.

    Raises:
        InputError: an option that only a GPU engine has, or a reference that does not go with out_of_range.
    """

    _session: tuple[int, OrtSession] | None
    _opening: threading.Lock

    def __init__(
        self,
        artifact: OnnxArtifact,
        report: DeployReport | None = None,
        runtime_config: RuntimeConfig = RuntimeConfig(),
        reference: nn.Module | None = None,
    ) -> None:
        super().__init__(artifact, report, runtime_config, reference)
        runtime_config.check_cpu("ORTModule")
        self._forget_weights()
        self._reset()

    def _reset(self) -> None:
        self.__dict__.setdefault("_opening", None)
        if self.__dict__["_opening"] is None:
            self.__dict__["_opening"] = threading.Lock()
        with self._opening:
            self.__dict__["_session"] = None

    @property
    def device(self) -> torch.device:
        return _CPU

    def _can_run_on(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def _move(self, device: torch.device) -> None:
        """There is one CPU."""

    @property
    def runtime(self) -> str:
        return "ONNX Runtime"

    def _check_ready(self) -> None:
        self._check_weights()
        process, _ = self._opened()
        if process != os.getpid():
            raise DeviceError(
                "ORTModule",
                got=f"it was first called in process {process} and is called in its fork {os.getpid()}",
                allowed="the process that first called it, since ONNX Runtime's threads do not survive a fork",
                fix="start workers with the 'spawn' method, or fork before the first call",
            )

    def _infer(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        _, session = self._opened()
        names = [spec.name for spec in self.signature.inputs]
        outputs = session({name: _array(tensor) for name, tensor in zip(names, inputs, strict=True)})
        return [torch.from_numpy(outputs[spec.name]).to(torch_dtype(spec.dtype)) for spec in self.signature.outputs]

    def _swap(self, artifact: OnnxArtifact) -> None:
        with self._opening:  # or a thread that opens a session would keep the old model's
            self.__dict__["_artifact"] = artifact
            self.__dict__["_session"] = None

    def _check_coverage(self, program: WeightProgram) -> None:
        """The program is the graph's own."""

    def _weights_device(self, near: torch.device) -> torch.device:
        return _CPU

    def _offer(self, new: Mapping[str, torch.Tensor], program: WeightProgram) -> Callable[[], None]:
        owner, old = scratch_folder(), self._artifact
        # float32 holds a bfloat16 exactly, and numpy has none.
        arrays = {name: _array(tensor) for name, tensor in new.items()}
        with disk_errors(owner.path):
            replace_weights(old.onnx_path, owner.path / "model.onnx", arrays)
            write_file(owner.path / WEIGHTS, program.to_json())
        return partial(self._swap, old.replace(folder=owner.path, owner=owner))

    def _stop(self) -> None:
        self._reset()

    def warmup(self, shapes: Iterable[Mapping[str, int]] | None = None) -> None:
        """Answer zeros at some shapes, so that the first real call finds the session open.

        Args, Raises: as `TRTModule.warmup`.
        """
        for inputs in zeros(self.signature, self._artifact.profiles, shapes, _CPU):
            self.infer(inputs)

    def trim(self) -> None:
        """Close the session; the next call opens it anew."""
        self._reset()

    def _opened(self) -> tuple[int, OrtSession]:
        with self._opening:
            if self._session is None:
                self._session = (os.getpid(), self._open())
            return self._session

    def _open(self) -> OrtSession:
        artifact = self._artifact  # held, with its files, whatever a refit makes of the attribute meanwhile
        return OrtSession(artifact.onnx_path)

    def _travels(self, name: str) -> bool:
        return name.startswith("model.onnx") or name == WEIGHTS

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_session": None, "_opening": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_weights()
        self._reset()


class StrictModule(ORTModule):
    """The judge of a typed model: answers on the CPU, rounded to each tensor's own type after every operator.

    Where a value overflows on the GPU it overflows here; ONNX Runtime's own answers, in float32, don't.
    """

    @property
    def runtime(self) -> str:
        return "ONNX Runtime, rounding after every operator"

    def _open(self) -> OrtSession:
        artifact = self._artifact
        with tempfile.TemporaryDirectory(prefix="torch2engine-") as folder:
            twin = Path(folder) / "model.onnx"
            write_strictly_rounded(artifact.onnx_path, twin)
            return OrtSession(twin, as_it_is=True)

    def _infer(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        return super()._infer([x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in inputs], profile)
