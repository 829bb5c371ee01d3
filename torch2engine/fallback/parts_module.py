"""A deployed model of which some operators stay in PyTorch: the module that deploy(fallback=True) returns.

Enters: calls as the model takes them. Leaves: fresh results in the model's own types, or a typed error. Separate
because it answers by several engines and PyTorch in turn, where `modules` knows one engine for a whole call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from torch2engine.capture.torch_types import check_tensor, dtype_name, torch_dtype
from torch2engine.core.errors import DeviceError, InputError
from torch2engine.core.package import public
from torch2engine.core.pytree import as_inputs, bind, unflatten
from torch2engine.core.spec import Signature
from torch2engine.core.wording import kind_of
from torch2engine.exporter.program import FunctionalProgram
from torch2engine.fallback.explanation import Explanation, Obstacle, RunRecord, time_calls
from torch2engine.fallback.partition import PartitionedGraph

if TYPE_CHECKING:
    from torch2engine.pipeline.deploy_report import DeployReport

__all__ = ["PartsModule"]


@public
class PartsModule(nn.Module):
    """A model in engines, and in PyTorch where no engine takes an operator; made by `deploy(..., fallback=True)`.

    It holds the weights of the moment at which it was deployed. It lives in this process: it is not saved or refitted.

    Attributes:
        report: what deploy() found; its notes name every operator that stays in PyTorch.
    """

    def __init__(
        self,
        program: FunctionalProgram,
        graph: PartitionedGraph,
        weights: Mapping[str, torch.Tensor],
        record: RunRecord,
    ) -> None:
        super().__init__()
        self.report: DeployReport | None = None
        self.training = False
        self._program = program
        self._graph = graph
        self._weights = dict(weights)
        self._record = record
        self._device = program.captured.sample[0].device

    @property
    def signature(self) -> Signature:
        """Names, dtypes, axes and structure of a call. Sizes of outputs may depend on values."""
        return self._program.captured.signature

    @property
    def obstacles(self) -> tuple[Obstacle, ...]:
        """Every place in the user's code that no engine takes."""
        return tuple(self._record.obstacles.values())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer like the model.

        Args:
            args, kwargs: as the model takes them; tensors on the sample's device.

        Returns:
            the model's own types around fresh tensors.

        Raises:
            InputError: missing, extra or other arguments, other constants, or a tensor that requires grad while grad is
                enabled.
            ShapeError, DtypeError, DeviceError: what can't be answered, refused before anything runs.
        """
        leaves = bind(self.signature.parameters, args, kwargs)
        return unflatten(self.signature.output, list(self.infer(leaves).values()))

    def infer(self, leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Answer flat inputs, in the signature's order, with flat outputs by name."""
        signature = self.signature
        self._check(leaves)
        with torch.no_grad():
            inputs = [
                leaf.detach().to(torch_dtype(spec.dtype)) for spec, leaf in zip(signature.inputs, leaves, strict=True)
            ]
            outputs = self._graph(*self._program.values(self._weights, inputs))
            taken = {_memory(tensor) for tensor in (*leaves, *inputs, *self._weights.values())}
            fresh: dict[str, torch.Tensor] = {}
            for spec, output in zip(signature.outputs, outputs, strict=True):
                fresh[spec.name] = output.clone() if _memory(output) in taken else output
                taken.add(_memory(fresh[spec.name]))
        return fresh

    def explain(self, sample_input: Any) -> Explanation:
        """Say what runs where, with the share of the time of each part in calls with this input.

        Args:
            sample_input: as for `deploy`.
        """
        sample = as_inputs(sample_input)
        return time_calls(lambda: self(*sample.args, **sample.kwargs), self._record)

    def save(self, path: str | Path, overwrite: bool = True) -> Path:
        """Refuse to be saved, as what stays in PyTorch has no file of its own.

        Raises:
            InputError: always.
        """
        raise self._only_here(f"a request to save it as '{path}'")

    def _only_here(self, got: str) -> InputError:
        return InputError(
            type(self).__name__,
            got=got,
            allowed="use in the process that deployed it",
            fix="deploy the model again there",
        )

    def _check(self, leaves: Sequence[torch.Tensor]) -> None:
        signature = self.signature
        for spec, leaf in zip(signature.inputs, leaves, strict=True):
            subject = f"input '{spec.name}'"
            if not isinstance(cast("object", leaf), torch.Tensor):
                raise InputError(
                    subject, name=spec.name, got=kind_of(leaf), allowed="a torch.Tensor", fix="pass a tensor of it"
                )
            check_tensor(spec.name, leaf)
            signature.check_dtype(spec, dtype_name(leaf.dtype))
            if leaf.device != self._device:
                raise DeviceError(
                    subject,
                    name=spec.name,
                    got=f"device {leaf.device}",
                    allowed=f"{self._device}, where the module was deployed",
                    fix=f"move it with .to('{self._device}')",
                )
            if leaf.requires_grad and torch.is_grad_enabled():
                raise InputError(
                    subject,
                    name=spec.name,
                    got="a tensor that requires grad while grad is enabled",
                    allowed="a tensor without gradients, since an engine only infers",
                    fix="call it under torch.no_grad(), or pass the tensor's .detach()",
                )
        sizes = signature.resolve([leaf.shape for leaf in leaves])
        signature.select_profile(self._program.captured.profiles, sizes)

    def _apply(self, fn: Any, recurse: bool = True) -> PartsModule:
        raise InputError(
            type(self).__name__,
            got="a move or a cast",
            allowed="the device and the dtypes that it was deployed with",
            fix="move or cast the model, and deploy it again",
        )

    def __getstate__(self) -> dict[str, Any]:
        raise self._only_here("a copy, a pickle or a transfer to another process")


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
