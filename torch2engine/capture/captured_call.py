"""The captured call as data: the reference with its signature, its profiles and the sample.

Enters: the parts, from `capture_call`. Leaves: `CapturedCall`, and the sample at other sizes. Separate because the
exporter and the parity cases read a captured call, and neither captures one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from torch2engine.artifact.artifact import Artifact
from torch2engine.capture.host_trial import HostTrial
from torch2engine.capture.reference import Reference
from torch2engine.core.spec import Profile, Signature

__all__ = ["CapturedCall", "resized"]


@dataclass(frozen=True)
class CapturedCall:
    """One call of a model, and everything that later stages need to know about it.

    Args:
        reference: the module as a function of the flat inputs.
        signature: with the outputs' dynamic dimensions still at the sample's sizes (export finds their names).
        profiles: at least one; without axes, one without ranges.
        sample: the sample's tensors in the signature's order, on the sample's device.
        output_axes: {output name: {dimension: axis name or None}} that the user named in dynamic_axes.
        precision: the lowest floating precision that the model itself computes in: "fp32", "fp16" or "bf16".
        notes: what a user should know, e.g. that a call changes a counter.
        examples: real inputs to be compared on instead of invented ones, in the signature's order and dtypes.
        trial: where invented inputs must run before they may reach the model; None if no trial is needed.
    """

    reference: Reference
    signature: Signature
    profiles: tuple[Profile, ...]
    sample: tuple[torch.Tensor, ...]
    output_axes: Mapping[str, Mapping[int, str | None]]
    precision: str
    notes: tuple[str, ...] = ()
    examples: tuple[tuple[torch.Tensor, ...], ...] = ()
    trial: HostTrial | None = None

    def with_axes_and_profiles_of(self, artifact: Artifact) -> CapturedCall:
        """A copy with the axes and profiles of its artifact; export finds which axes follow from others."""
        signature = replace(self.signature, inputs=artifact.signature.inputs, axes=artifact.signature.axes)
        return replace(self, signature=signature, profiles=artifact.profiles)

    @property
    def target_gpu(self) -> torch.device:
        """The GPU that an engine is for: the sample's, or PyTorch's current one for a sample on the CPU."""
        device = self.sample[0].device
        return device if device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())

    def sample_sizes(self) -> dict[str, int]:
        """The size of every dynamic axis in the sample."""
        return self.signature.resolve([leaf.shape for leaf in self.sample])

    def sample_of_sizes(self, sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Fresh copies of the sample's tensors, cut or repeated to these axis sizes."""
        pairs = zip(self.sample, self.signature.inputs, strict=True)
        return tuple(resized(tensor, spec.sized(sizes)) for tensor, spec in pairs)


def resized(leaf: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`leaf` cut or repeated along every dimension to `shape`."""
    for dim, size in enumerate(shape):
        if size != leaf.shape[dim]:
            index = torch.arange(size, device=leaf.device) % leaf.shape[dim]
            leaf = leaf.index_select(dim, index)
    return leaf.detach().clone(memory_format=torch.contiguous_format)
