"""What is looked at before a refit hands weights over.

Enters: a model, and the weights that a program worked out. Leaves: an error that names what is wrong with them. Apart
from `refit`, which decides when to look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from torch2engine.capture.weight_program import WeightProgram
from torch2engine.core.errors import RefitError

__all__ = ["check_finite", "device_of"]

_PIECE = 1 << 24  # elements that are looked at together, in at most 64 MiB of temporaries


def device_of(model: nn.Module) -> torch.device:
    """Where a model is; the CPU for one without tensors."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def check_finite(program: WeightProgram, tensors: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that would make every answer NaN, before the engine has them.

    An infinity that a buffer has itself, as masks do, may stay.

    Raises:
        RefitError: names them.
    """
    floats = {name: tensor for name, tensor in new.items() if tensor.is_floating_point() and tensor.numel()}
    if _all_finite(list(floats.values())):
        return
    buffers = {path: tensor for path, tensor in tensors.items() if path not in (program.parameters or ())}
    masks = {path for path, tensor in buffers.items() if tensor.is_floating_point() and bool(tensor.isinf().any())}
    wrong = [
        name
        for name, tensor in floats.items()
        if bool(tensor.isnan().any()) or (bool(tensor.isinf().any()) and not masks & program.sources_of(name))
    ]
    if wrong:
        raise RefitError(
            "weights " + ", ".join(f"'{name}'" for name in wrong[:8]),
            got="NaN or infinity in the engine's type",
            allowed="finite weights; the engine keeps its own",
            fix="mend the model, or pass verify=False to have it all the same",
        )


def _all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all elements are; few kernels do for many tensors, whose launches would take longer than the work."""
    found: list[torch.Tensor] = []
    for dtype in {tensor.dtype for tensor in tensors}:
        waiting = [tensor.reshape(-1) for tensor in tensors if tensor.dtype == dtype]
        while waiting:
            group = [waiting.pop()]
            size = len(group[0])
            while waiting and size + len(waiting[-1]) <= _PIECE:
                group.append(waiting.pop())
                size += len(group[-1])
            found.append((group[0] if len(group) == 1 else torch.cat(group)).isfinite().all())
    return not found or bool(torch.stack(found).all())
