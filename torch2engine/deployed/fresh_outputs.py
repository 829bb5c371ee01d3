"""What PyTorch's operators returned → tensors of the caller's own.

Enters: tensors, which may be views of inputs, of weights or of each other. Leaves: tensors on memory of their own.
Separate because every backend that runs PyTorch's operators keeps this promise of the call contract.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch

__all__ = ["fresh_outputs", "memory_of"]


def fresh_outputs(
    outputs: Iterable[torch.Tensor], inputs: Sequence[torch.Tensor], taken: Collection[int]
) -> list[torch.Tensor]:
    """Copy the outputs whose memory somebody else has.

    Args:
        outputs: of one call.
        inputs: of the same call.
        taken: addresses of memory that outlives the call, such as the weights'.
    """
    in_use = [memory_of(tensor) for tensor in inputs]
    fresh: list[torch.Tensor] = []
    for output in outputs:
        memory = memory_of(output)
        if memory in in_use or memory in taken:
            output = output.clone()
            memory = memory_of(output)
        in_use.append(memory)
        fresh.append(output)
    return fresh


def memory_of(tensor: torch.Tensor) -> int:
    """The address of a tensor's memory, which views share."""
    return tensor.untyped_storage().data_ptr()
