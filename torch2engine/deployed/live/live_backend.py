"""A live model → outputs: PyTorch itself, in eager or compiled, and in CUDA graphs where that pays.

Enters: checked inputs. Leaves: fresh outputs. Separate from `live_module` because it keeps the contract of
`torch2engine.deployed.backend`, so that calls and refusals are those of every deployed module.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch

from torch2engine.artifact.artifact import Artifact
from torch2engine.capture.process_state import full_float32, grad_and_autocast_off, process_state_lock
from torch2engine.capture.reference import Reference, outputs_by_name
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import ArtifactError, DeviceError
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.deployed.backend import WeightsGuard
from torch2engine.deployed.fresh_outputs import fresh_outputs
from torch2engine.deployed.live.live_program import LiveProgram
from torch2engine.deployed.whole_graph import WholeGraphs

__all__ = ["LiveBackend"]

_WITHOUT_GRAPHS = "a call of a LiveModule is no CUDA graph, so PyTorch launches its kernels one by one"


class LiveBackend:
    """A live model in PyTorch. Threads may share it.

    Args:
        artifact: of the model's engine; it describes the call, and is not run.
        guard: whether the weights may answer.
        program: how the model is run.
        runtime_config: when a call is a CUDA graph.
    """

    def __init__(
        self, artifact: Artifact, guard: WeightsGuard, program: LiveProgram, runtime_config: RuntimeConfig
    ) -> None:
        signature = artifact.signature
        self.artifact = artifact
        self.title = program.title
        self.runtime_kind = program.runtime_kind
        self.device = program.device
        self.device_type = program.device.type
        self._guard = guard
        self._program = program
        self._reference = Reference.for_signature(program.weights.module, signature)
        self._written = {write.input for write in signature.writes}
        self._names = [spec.name for spec in signature.outputs]
        self._lock = ForkSafeLock()  # of these two
        self._weights_version = program.weights.refresh()
        self._taken = program.weights.memory()
        self._process = os.getpid()
        self.graphs: WholeGraphs | None = None  # only a GPU has them
        if self.device_type == "cuda" and runtime_config.cuda_graphs is not False:
            self.graphs = WholeGraphs(program.device, runtime_config, without=_WITHOUT_GRAPHS)

    def move(self, device: torch.device) -> NoReturn:
        raise DeviceError(
            self._guard.subject,
            got=f"a move to {device}",
            allowed=f"{self.device}, where the model's weights are, since this module calls the model",
            fix="move the model, and deploy it again",
        )

    def check_ready(self) -> None:
        self._guard.check()
        if os.getpid() != self._process:
            raise DeviceError(
                self._guard.subject,
                got=f"a call in the fork {os.getpid()} of process {self._process}, which deployed it",
                allowed="the process that deployed it, since PyTorch's threads and CUDA do not survive a fork",
                fix="start workers with the 'spawn' method, and deploy there",
            )
        self._follow_weights()

    def _follow_weights(self) -> None:
        """Use the tensors that are now in the places of the model's weights.

        Raises:
            RefitError: one of them is of another kind than the one before.
        """
        weights = self._program.weights
        if weights.refresh() == self._weights_version:
            return
        with self._lock:
            version = weights.refresh()
            self._taken = weights.memory()
            self.trim()  # CUDA graphs read the tensors before
            self._weights_version = version

    def run(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        graphs = self.graphs
        outputs = None if graphs is None else graphs.replay(inputs)
        if outputs is not None:
            return outputs
        with self._arithmetic():
            return self._compute(inputs) if graphs is None else graphs.answer(inputs, self._compute)

    @contextmanager
    def _arithmetic(self) -> Generator[None]:
        """Compute as the engine that this replaces; a CUDA graph keeps the kernels that are chosen in here."""
        if not self._program.is_exact:
            with grad_and_autocast_off():
                yield
            return
        with process_state_lock(), grad_and_autocast_off(), full_float32():
            yield

    def _compute(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Answer with fresh tensors, by calling the model."""
        signature = self.artifact.signature
        pairs = zip(signature.inputs, inputs, strict=True)
        leaves = [leaf.clone() if spec.name in self._written else leaf for spec, leaf in pairs]
        args, kwargs = self._reference.arguments(leaves)
        result = self._program.call(*args, **kwargs)
        flat = self._reference.flatten_answer(result, args, kwargs, leaves)
        outputs = outputs_by_name(flat, signature.output, self._names).values()
        return fresh_outputs((output.contiguous() for output in outputs), inputs, self._taken)

    def trim(self) -> None:
        """Wait for calls in flight and let go of all CUDA graphs."""
        if self.graphs is not None:
            with self.graphs.suspended():
                pass

    def current_artifact(self) -> NoReturn:
        raise ArtifactError(
            self._guard.subject,
            got="a deep copy, a state_dict or a file of a module that calls the live PyTorch model",
            allowed="a module with an engine, which has its weights inside",
            fix="deploy the model with runtime='auto', and save that; or save the model itself",
        )

    def in_state_dict(self, file: str) -> bool:
        return False
