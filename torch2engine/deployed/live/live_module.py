"""A live model → `LiveModule`: PyTorch itself under the face and the contract of a deployed module.

Enters: calls as the model takes them. Leaves: fresh results in the model's own types, or a typed error. Separate
because only such a module follows the model by itself, and can't be saved.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torch2engine.artifact.artifact import Artifact
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import RuntimeConfig, Tolerances
from torch2engine.core.errors import RefitError
from torch2engine.core.package import public
from torch2engine.deployed.backend import WeightsGuard
from torch2engine.deployed.deployed_module import DeployedModule, Model_co
from torch2engine.deployed.live.live_backend import LiveBackend
from torch2engine.deployed.live.live_program import LiveProgram
from torch2engine.deployed.made_inputs import zeros
from torch2engine.deployed.weight_sync import Refit

if TYPE_CHECKING:
    from torch2engine.deployed.deploy_report import DeployReport

__all__ = ["LiveModule"]

_WARM_CALLS = 10  # enough for a CUDA graph


@public
class LiveModule(DeployedModule[LiveBackend, Model_co]):
    """The PyTorch model under the contract of a deployed module; made by `deploy(..., runtime="fastest")`.

    It checks calls, refuses them in the same words and returns fresh results, as an engine does. But it computes with
    the model's own parameters and buffers, always in evaluation mode. New values of them count from the next call on:
    there is nothing to refit. Everything else of the model is as it was when it was deployed. It keeps the weights
    alive, stays on their device, and can't be saved or pickled.

    Args:
        artifact: of the model's engine; it describes the call.
        program: how PyTorch runs the model.
        model: the one that was deployed; it is not kept alive.
        report: what deploy() found, or None.
        runtime_config: how it answers. Results are fresh, or static in a CUDA graph where `output` says so.
        reference: the PyTorch module that answers under out_of_range="eager".

    >>> import warnings
    >>> quick = t2e.BuildConfig(optimize_seconds=0)  # without torch.compile
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # without a GPU: it says that ONNX Runtime is the engine
    ...     module = t2e.deploy(model, sample, axes, runtime="fastest", config=quick)
    >>> [one.name for one in module.report.tried if one.microseconds]
    ['ONNX Runtime', 'PyTorch in eager']
    >>> isinstance(module, t2e.LiveModule) == (not module.report.tried[0].is_chosen)
    True
    """

    def __init__(
        self,
        artifact: Artifact,
        program: LiveProgram,
        model: nn.Module | weakref.ReferenceType[nn.Module],
        report: DeployReport | None = None,
        runtime_config: RuntimeConfig = RuntimeConfig(),
        reference: nn.Module | None = None,
    ) -> None:
        self._program = program  # the constructor below makes the backend of it
        self._model = weakref.ref(model) if isinstance(model, nn.Module) else model
        super().__init__(artifact, report, runtime_config, reference)

    def _make_backend(self, artifact: Artifact, guard: WeightsGuard, device: torch.device | str | None) -> LiveBackend:
        return LiveBackend(artifact, guard, self._program, self._runtime_config)

    def __copy__(self) -> LiveModule[Model_co]:
        """Another module of the same weights, with CUDA graphs of its own."""
        reference = self._out_of_range.reference
        return LiveModule(self._artifact, self._program, self._model, self.report, self._runtime_config, reference)

    def refit(
        self,
        model: nn.Module | None = None,
        *,
        verify: bool | None = None,
        examples: Iterable[Any] | None = None,
        tolerance: Tolerances | None = None,
    ) -> Refit:
        """Do nothing, since every call uses the weights as they are.

        Raises:
            RefitError: for another model than the one that was deployed.
        """
        self._require_own(model)
        return Refit((), 0.0)

    def stale(self, model: nn.Module | None = None) -> bool:
        """Whether it has other weights than the model: never.

        Raises:
            RefitError: for another model than the one that was deployed.
        """
        self._require_own(model)
        return False

    def track(self, model: nn.Module | None) -> None:
        """Do nothing: it follows the model that was deployed in any case.

        Raises:
            RefitError: for another model.
        """
        self._require_own(model)

    def _require_own(self, model: nn.Module | None) -> None:
        if model is not None and unwrap(model) is not self._model():
            raise RefitError(
                type(self).__name__,
                got="another model than the one that was deployed, whose weights it computes with",
                allowed="that model",
                fix="load the weights into that model with load_state_dict, or deploy the other one",
            )

    def set_extra_state(self, state: Any) -> None:
        """Refuse a state, since the weights are the model's.

        Raises:
            ArtifactError: always.
        """
        self._backend.current_artifact()

    def prepare(self, inputs: Sequence[Sequence[torch.Tensor]]) -> str:
        """Call the module until nothing is compiled or captured any more for these inputs.

        Args:
            inputs: flat inputs of each call, as for `infer`.

        Returns:
            a clause on whether CUDA graphs answer such calls; "" on the CPU.
        """
        for leaves in inputs:
            for _ in range(_WARM_CALLS):
                self.infer(leaves)
        graphs = self._backend.graphs
        if graphs is None:
            return "without CUDA graphs" if self._backend.device_type == "cuda" else ""
        if all(map(graphs.has_graph, inputs)):
            return "in a CUDA graph"
        return f"without a CUDA graph{': ' if graphs.obstacle else ''}{graphs.obstacle}"

    def warmup(self, shapes: Iterable[Mapping[str, int]] | None = None) -> None:
        """Answer zeros at some shapes, so that later calls find kernels and CUDA graphs ready.

        Args, Raises: as `TRTModule.warmup`.
        """
        self.prepare(list(zeros(self.signature, self._artifact.profiles, shapes, self.device)))

    def trim(self) -> None:
        """Wait for calls in flight and give back the memory of CUDA graphs; the next calls of each shape are slower."""
        self._backend.trim()
