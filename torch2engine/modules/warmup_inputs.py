"""Inputs of zeros at wished-for sizes, by which modules are prepared for calls to come.

Enters: axis sizes. Leaves: flat inputs, or the name of an axis that is none. Apart from `module` and `ort_module`
because both are prepared alike.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence

import torch

from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.errors import InputError
from torch2engine.core.profiles import corners
from torch2engine.core.spec import Profile, Signature

__all__ = ["zeros"]


def zeros(
    signature: Signature,
    profiles: Sequence[Profile],
    shapes: Iterable[Mapping[str, int]] | None,
    device: torch.device | None,
) -> Generator[list[torch.Tensor]]:
    """Flat inputs of zeros.

    Args:
        signature: the inputs.
        profiles: where sizes that are not given come from: the first one's opt.
        shapes: axis name -> size; None for min, opt and max of every profile, and sizes of its own if others answer
            these.
        device: where to make them.

    Raises:
        InputError: no such axis.
    """
    if shapes is None:
        shapes = [sizes for index in range(len(profiles)) for sizes in corners(signature, profiles, index)] or [{}]
    names = [axis.name for axis in signature.axes]
    for wanted in shapes:
        if unknown := [name for name in wanted if name not in names]:
            allowed = f"the axes are {', '.join(names)}" if names else "the engine has no dynamic axes"
            raise InputError("warmup", got=f"axis '{unknown[0]}'", allowed=allowed, fix="name one of them")
        sizes = {**(profiles[0].sizes(1) if profiles else {}), **wanted}
        yield [
            torch.zeros(spec.sized(sizes), dtype=torch_dtype(spec.dtype), device=device) for spec in signature.inputs
        ]
